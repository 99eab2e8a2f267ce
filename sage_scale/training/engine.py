"""The DeepSpeed engine of a stage: the only file that depends on DeepSpeed's behaviour.

DeepSpeed averages gradients over ranks. Here each rank computes its *share* of the loss, and the shares of all ranks
sum to the loss of the global batch. `Engine.backward` therefore multiplies by the number of ranks; no other code does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sage_scale.config import Stage
from sage_scale.errors import RecipeError
from sage_scale.planning.step import BUCKET_ELEMENTS
from sage_scale.training.distributed import Ranks
from sage_scale.training.optimizer import (
    can_compile,
    learning_rate_factor,
    make_optimizer,
    parameter_groups,
    state_names,
)

PREFIX = "model."


def has_fast_bf16(device: torch.device) -> bool:
    """Returns whether the device multiplies bfloat16 matrices in hardware, faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


def compute_dtype(stage: Stage, device: torch.device) -> torch.dtype:
    """Returns the dtype of matrix products in forward and backward that `stage.precision` means on this device."""
    if stage.precision == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[stage.precision]


def deepspeed_config(stage: Stage, world: int, sizes: Sequence[int]) -> dict[str, Any]:
    """Returns DeepSpeed's configuration for a stage; `sizes` are the element counts of its trained parameters.

    The stream makes the batches, so DeepSpeed's batch sizes are nominal. Weights stay float32; forward and backward run
    under autocast. ZeRO shards the float32 weights and optimizer states, and keeps them in host memory or on an NVMe
    disk according to the recipe key `offload`.
    """
    # Each rank allocates one bucket. DeepSpeed's default is 500 million elements (2 GB) for any model.
    bucket = max([1, min(sum(sizes), BUCKET_ELEMENTS), *sizes])
    bucket += bucket % 2  # DeepSpeed requires an even number
    zero: dict[str, Any] = {
        "stage": stage.zero_stage,
        "contiguous_gradients": True,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if stage.offload != "none":
        target: dict[str, Any] = {"device": stage.offload, "pin_memory": torch.cuda.is_available()}
        if stage.offload == "nvme":
            target["nvme_path"] = stage.offload_dir
        zero["offload_optimizer"] = target
        if stage.zero_stage == 3:
            # Weights are many small tensors: reading each of them from disk would dominate the step.
            zero["offload_param"] = {"device": "cpu", "pin_memory": target["pin_memory"]}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
        "gradient_clipping": stage.clip,  # given in any case: DeepSpeed's own default is to clip at 1
    }


class _Autocast(nn.Module):
    """Runs the model under the stage's autocast, since DeepSpeed disables an autocast that encloses its engine."""

    def __init__(
        self, model: nn.Module, forward: Callable, context: Callable[[], AbstractContextManager]
    ) -> None:
        super().__init__()
        self.model = model
        self._forward = forward
        self._context = context

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._context():
            return self._forward(*args, **kwargs)


class LossScale:
    """Dynamic loss scale of float16 training (Micikevicius et al. 2018, section 3.2).

    A step with non-finite gradients is skipped and halves the scale; `patience` finite steps in a row double it.
    """

    def __init__(self, enabled: bool, value: float = 2.0**16, patience: int = 2000) -> None:
        self.enabled, self.value, self.patience = enabled, value if enabled else 1.0, patience
        self._good = 0

    def state_dict(self) -> dict[str, float]:
        """Returns the state for a checkpoint; empty if loss scaling is disabled."""
        return {"loss_scale": self.value, "good_steps": float(self._good)} if self.enabled else {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state of `state_dict`; does nothing if loss scaling is disabled."""
        if self.enabled and state:
            self.value, self._good = state["loss_scale"], int(state["good_steps"])

    def update(self, finite: bool) -> None:
        """Update the scale after a step; `finite` says whether all gradients were finite."""
        if not self.enabled:
            return
        self._good = self._good + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, 1.0)
        elif self._good % self.patience == 0:
            self.value *= 2


class Engine:
    """A model and its optimizer under DeepSpeed ZeRO.

    `model` is the unwrapped module (its parameters are sharded under ZeRO-3). `forward` runs it under the stage's
    precision; `backward` takes this rank's share of the loss; `step` clips gradients, updates weights and clears
    gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        stage: Stage,
        ranks: Ranks,
        forward: Callable | None = None,
        build: Callable[[], nn.Module] | None = None,
    ) -> None:
        """`forward` replaces the model's forward pass. `build` returns a new model of the same architecture, which
        ZeRO-3 needs for evaluation (see `evaluating`)."""
        import deepspeed

        if stage.offload == "nvme" and not can_compile("AsyncIOBuilder"):
            raise RecipeError(
                "offload=nvme needs DeepSpeed's async_io, which cannot be compiled here: install a C++ compiler, "
                "ninja and libaio (Debian: libaio-dev), or set offload=cpu"
            )
        self.stage = stage
        self.ranks = ranks
        self.model: Any = model.to(ranks.device)
        self.evaluation_model: Any = None
        """The unsharded model in eval mode, within `evaluating` only; using it needs no collective."""
        self._build: Any = build
        self.compute_dtype = compute_dtype(stage, ranks.device)
        self.loss_scale = LossScale(enabled=self.compute_dtype is torch.float16)
        wrapped = _Autocast(self.model, forward or self.model, self.precision)
        optimizer = make_optimizer(parameter_groups(wrapped, stage, PREFIX), stage, ranks.device)
        sizes = [math.prod(self.full_shape(parameter)) for _, parameter in self.trainable_parameters()]
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=wrapped,
            optimizer=optimizer,
            config=deepspeed_config(stage, ranks.world, sizes),
            dist_init_required=False,
        )
        self._accessors: Any = deepspeed.utils
        self.prepare_optimizer_state(0)
        self._norm = 0.0
        self._skip_update = False
        self.updated = True
        """Whether the last step changed the weights."""
        self._torch_optimizer().register_step_pre_hook(self._drop_gradients)

    def precision(self) -> AbstractContextManager:
        """Returns the autocast context of forward passes, in training and in evaluation."""
        if self.compute_dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.ranks.device.type, dtype=self.compute_dtype)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's forward pass in training mode."""
        return self._engine(*args, **kwargs)

    def backward(self, share: Tensor, last: bool = True) -> None:
        """Compute gradients of this rank's share of the loss; `last` marks a step's last micro-batch."""
        self._engine.set_gradient_accumulation_boundary(last)
        factor = float(self.ranks.world)
        if self.loss_scale.enabled and self.stage.zero_stage == 0:
            factor *= self.loss_scale.value
        elif self.loss_scale.enabled:  # ZeRO multiplies by the scale here, and divides when it clips
            self._optimizer.override_loss_scale(self.loss_scale.value)
        self._engine.backward(share * factor, scale_wrt_gas=False)

    @contextmanager
    def coalesced_reduction(self) -> Iterator[None]:
        """Reduce the gradients of all backward passes in this context once, at its end.

        Every rank must make the same number of passes. Gradients stay unsharded until then, also under ZeRO-2 and 3.
        """
        if self.stage.zero_stage == 0:  # DeepSpeed reduces in the backward pass marked as last
            yield
        else:
            with self._engine.coalesce_grad_reduction():
                yield

    def step(self, progress: float, skip_update: bool = False) -> float:
        """Make one optimizer step at the learning rate for `progress` (0 to 1), and return that rate.

        Weights and optimizer state do not change if `skip_update` is true (it must be the same on every rank) or if the
        gradient norm is not finite; see `updated`.
        """
        factor = learning_rate_factor(self.stage, progress)
        for group in self._optimizer.param_groups:
            group["lr"] = self.stage.lr * group["lr_scale"] * factor
        if self.stage.zero_stage == 0:  # DeepSpeed computes no norm of unsharded float32 gradients
            gradients = [
                parameter.grad for _, parameter in self.trainable_parameters() if parameter.grad is not None
            ]
            if self.loss_scale.enabled:
                torch._foreach_mul_(gradients, 1 / self.loss_scale.value)
            self._norm = float(torch.nn.utils.get_total_norm(gradients))
            skip_update = skip_update or not math.isfinite(self._norm)
        self._skip_update = skip_update
        self._engine.step()  # ZeRO itself skips a step with a non-finite norm
        finite = math.isfinite(self.gradient_norm())
        self.updated = not skip_update and finite
        self.loss_scale.update(finite)
        return self.stage.lr * factor

    def _drop_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # A parameter without gradient keeps its value, momentum and step count.
        if self._skip_update:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def gradient_norm(self) -> float:
        """Returns the L2 norm of the last step's global gradient, before clipping."""
        if self.stage.zero_stage == 0:
            return self._norm
        return float(self._engine.get_global_grad_norm() or 0.0)

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Returns (name, parameter) of the trainable parameters, in the order of `named_parameters`."""
        return [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Returns the unsharded float32 weight, on every rank (a collective under ZeRO)."""
        value = self._accessors.safe_get_full_fp32_param(parameter)
        return (parameter if value is None else value).detach().float().reshape(self.full_shape(parameter))

    def optimizer_state(self, parameter: nn.Parameter, name: str) -> Tensor:
        """Returns one unsharded optimizer state tensor of a parameter, on every rank (a collective under ZeRO)."""
        if self.stage.zero_stage == 0:
            value = self._torch_optimizer().state[parameter][name]
        else:
            value = self._accessors.safe_get_full_optimizer_state(parameter, name)
        return value.detach().float().reshape(self.full_shape(parameter))

    def set_weight(self, parameter: Any, value: Tensor) -> None:
        """Set a parameter to the unsharded `value`, with its low-precision and sharded copies."""
        value = value.to(self.ranks.device)
        if self.stage.zero_stage == 3:
            self._accessors.safe_set_local_fp32_param(parameter, self._partition(parameter, value))
            with torch.no_grad():
                parameter.ds_tensor.copy_(self._partition(parameter, value).to(parameter.ds_tensor.dtype))
            return
        if self.stage.zero_stage in (1, 2):
            self._accessors.safe_set_full_fp32_param(parameter, value.reshape(parameter.shape))
        with torch.no_grad():
            parameter.copy_(value.reshape(parameter.shape))

    def set_optimizer_state(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        """Set an optimizer state tensor to the unsharded `value`. Call `prepare_optimizer_state` first."""
        value = value.to(self.ranks.device)
        if self.stage.zero_stage == 0:
            self._torch_optimizer().state[parameter][name].copy_(value.reshape(parameter.shape))
        elif self.stage.zero_stage == 3:
            self._accessors.safe_set_local_optimizer_state(parameter, self._partition(parameter, value), name)
        else:
            self._accessors.safe_set_full_optimizer_state(parameter, value.reshape(parameter.shape), name)

    def prepare_optimizer_state(self, step: int) -> None:
        """Allocate the optimizer state, which PyTorch otherwise allocates in the first step, and set its step count.

        New state tensors are zero, the initial value of SGD and AdamW.
        """
        optimizer = self._torch_optimizer()
        if self.stage.zero_stage == 3:
            holders = list(self._optimizer.fp32_partitioned_groups_flat)
        else:
            holders = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for holder in holders:
            state = optimizer.state[holder]
            for name in state_names(self.stage):
                state.setdefault(name, torch.zeros_like(holder, dtype=torch.float32))
            if self.stage.optimizer == "adamw":
                # The fused kernel reads the step count on the weights' device; otherwise torch expects it on the host.
                device = holder.device if optimizer.defaults.get("fused") else "cpu"
                state["step"] = torch.tensor(float(step), device=device)
        relink = getattr(self._optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if self.stage.zero_stage in (1, 2) and relink is not None:
            self._optimizer._hp_optimizer_states_linked = False
            relink()

    def full_shape(self, parameter: nn.Parameter) -> torch.Size:
        """Returns the unsharded shape of a parameter, also under ZeRO-3."""
        return getattr(parameter, "ds_shape", parameter.shape)

    @contextmanager
    def evaluating(self) -> Iterator[Any]:
        """Yield `evaluation_model`: the unsharded model in eval mode (a collective).

        Under ZeRO-3 it is a copy. A sharded model gathers its weights module by module, in lockstep with all ranks,
        and ranks that translate different sentences do not run in lockstep.
        """
        if self.stage.zero_stage == 3:
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(self.model.parameters())):
                state = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.evaluation_model = self._build().to(self.ranks.device)
            self.evaluation_model.load_state_dict(state)
        else:
            self.evaluation_model = self.model
        self.evaluation_model.eval()
        try:
            yield self.evaluation_model
        finally:
            self.evaluation_model = None

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self._optimizer.optimizer if self.stage.zero_stage else self._optimizer

    def _partition(self, parameter: Any, value: Tensor) -> Tensor:
        # ZeRO-3 pads a weight to a multiple of the number of ranks before it shards it.
        size = parameter.ds_tensor.numel()
        flat = value.reshape(-1).float()
        padded = torch.zeros(size * self.ranks.world, dtype=torch.float32, device=value.device)
        padded[: flat.numel()] = flat
        return padded[size * self.ranks.rank : size * (self.ranks.rank + 1)]
