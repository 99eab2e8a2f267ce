"""The DeepSpeed engine of a stage; no other file depends on DeepSpeed's behaviour.

DeepSpeed averages gradients over ranks, while a rank of ours returns its *share* of the loss and the shares sum to
the whole. So `Engine.backward` multiplies by the number of ranks, and nothing else does.
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
from sage_scale.training.distributed import Ranks
from sage_scale.training.optimizer import can_compile, make_optimizer, parameter_groups, rate, state_names

PREFIX = "model."


def fast_bf16(device: torch.device) -> bool:
    """Returns whether the device multiplies bfloat16 matrices in hardware, faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())


def compute_type(stage: Stage, device: torch.device) -> torch.dtype:
    """Returns the type of matrix products in forward and backward: `precision` on this device."""
    if stage.precision == "auto":
        return torch.bfloat16 if fast_bf16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[stage.precision]


BUCKET = 50_000_000
"""Gradients (numbers) that ranks reduce at a time."""


def deepspeed_config(stage: Stage, world: int, sizes: Sequence[int]) -> dict[str, Any]:
    """Returns DeepSpeed's JSON for a stage whose trained parameters have these `sizes` (numbers of elements).

    Batches are cut by the stream, not by DeepSpeed, so its own batch sizes are nominal. Weights stay float32 and
    forward and backward run under autocast: ZeRO then shards float32 weights and states, and keeps them in host memory
    or on an NVMe disk where the recipe says `offload`.
    """
    # Each rank holds a buffer for a bucket; by default it has room for 500 million numbers, 2 GB, whatever is trained.
    bucket = max([1, min(sum(sizes), BUCKET), *sizes])
    bucket += bucket % 2  # which DeepSpeed asks for
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
            # Weights are many small ones: reading each from disk when it is wanted would be all that happens.
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
    """The model under the stage's precision: DeepSpeed switches off an autocast opened outside of it."""

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
    """The factor that keeps small gradients above float16's smallest number: halved when one overflows, whose step is
    left out, and doubled after `patience` steps without (Micikevicius et al. 2018, section 3.2)."""

    def __init__(self, enabled: bool, value: float = 2.0**16, patience: int = 2000) -> None:
        self.enabled, self.value, self.patience = enabled, value if enabled else 1.0, patience
        self._good = 0

    def state(self) -> dict[str, float]:
        """Returns the state for a checkpoint; empty where no loss is scaled."""
        return {"loss_scale": self.value, "good_steps": float(self._good)} if self.enabled else {}

    def load(self, state: dict[str, float]) -> None:
        """Restore `state`; ignored where no loss is scaled."""
        if self.enabled and state:
            self.value, self._good = state["loss_scale"], int(state["good_steps"])

    def update(self, finite: bool) -> None:
        """Take in, after each step, whether its gradients were finite."""
        if not self.enabled:
            return
        self._good = self._good + 1 if finite else 0
        if not finite:
            self.value = max(self.value / 2, 1.0)
        elif self._good % self.patience == 0:
            self.value *= 2


class Engine:
    """A model with its optimizer under DeepSpeed ZeRO.

    `model` is the plain module (its parameters are sharded under ZeRO-3). `forward` runs it under the stage's
    precision; `backward` takes a share of the loss; `step` clips, updates and clears gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        stage: Stage,
        ranks: Ranks,
        forward: Callable | None = None,
        build: Callable[[], nn.Module] | None = None,
    ) -> None:
        """`forward` replaces the model's own forward pass; `build` makes another model of the same form, which ZeRO-3
        needs to evaluate (see `evaluating`)."""
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
        """The model with all its weights, in eval mode, within `evaluating`; any rank may use it on its own."""
        self._build: Any = build
        self.compute_type = compute_type(stage, ranks.device)
        self.scale = LossScale(enabled=self.compute_type is torch.float16)
        wrapped = _Autocast(self.model, forward or self.model, self.precision)
        optimizer = make_optimizer(parameter_groups(wrapped, stage, PREFIX), stage, ranks.device)
        sizes = [math.prod(self.shape(parameter)) for _, parameter in self.trained()]
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=wrapped,
            optimizer=optimizer,
            config=deepspeed_config(stage, ranks.world, sizes),
            dist_init_required=False,
        )
        self._accessors: Any = deepspeed.utils
        self.prepare_optimizer_state(0)
        self._norm = 0.0
        self._hold = False
        self.updated = True
        """Whether the last step moved the weights."""
        self._torch_optimizer().register_step_pre_hook(self._leave_out)

    def precision(self) -> AbstractContextManager:
        """Returns the autocast context of forward passes, training or not."""
        if self.compute_type is torch.float32:
            return nullcontext()
        return torch.autocast(self.ranks.device.type, dtype=self.compute_type)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model's forward pass, in training mode."""
        return self._engine(*args, **kwargs)

    def backward(self, share: Tensor, last: bool = True) -> None:
        """Compute gradients of this rank's share of the loss; `last` marks a step's last micro-batch."""
        self._engine.set_gradient_accumulation_boundary(last)
        factor = float(self.ranks.world)
        if self.scale.enabled and self.stage.zero_stage == 0:
            factor *= self.scale.value
        elif self.scale.enabled:  # ZeRO multiplies by it here, and divides where it clips
            self._optimizer.override_loss_scale(self.scale.value)
        self._engine.backward(share * factor, scale_wrt_gas=False)

    @contextmanager
    def reduced_once(self) -> Iterator[None]:
        """Reduce the gradients of the backward passes within it once, at its end; every rank makes as many passes.

        Whole gradients are held meanwhile, also under ZeRO-2 and 3.
        """
        if self.stage.zero_stage == 0:  # reduces in the backward pass that is marked as the last
            yield
        else:
            with self._engine.coalesce_grad_reduction():
                yield

    def step(self, progress: float, hold: bool = False) -> float:
        """Make one optimizer step at the schedule's rate for `progress` (0 to 1); returns that rate.

        With `hold` (the same on every rank), and where the gradient norm is not finite, weights and optimizer stay as
        they are (see `updated`).
        """
        factor = rate(self.stage, progress)
        for group in self._optimizer.param_groups:
            group["lr"] = self.stage.lr * group["lr_scale"] * factor
        if self.stage.zero_stage == 0:  # DeepSpeed keeps no norm of float32 gradients that it does not shard
            gradients = [parameter.grad for _, parameter in self.trained() if parameter.grad is not None]
            if self.scale.enabled:
                torch._foreach_mul_(gradients, 1 / self.scale.value)
            self._norm = float(torch.nn.utils.get_total_norm(gradients))
            hold = hold or not math.isfinite(self._norm)
        self._hold = hold
        self._engine.step()  # ZeRO leaves a step out by itself where the norm is not finite
        finite = math.isfinite(self.gradient_norm())
        self.updated = not hold and finite
        self.scale.update(finite)
        return self.stage.lr * factor

    def _leave_out(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # Before the optimizer moves weights: one without gradients stays, with its momentum and its count of steps.
        if self._hold:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def gradient_norm(self) -> float:
        """Returns the norm of the last step's gradient over all ranks, before clipping."""
        if self.stage.zero_stage == 0:
            return self._norm
        return float(self._engine.get_global_grad_norm() or 0.0)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Returns the trainable parameters with the model's own names, in a fixed order."""
        return [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """Returns the whole float32 weight, on every rank (a collective under ZeRO)."""
        value = self._accessors.safe_get_full_fp32_param(parameter)
        return (parameter if value is None else value).detach().float().reshape(self.shape(parameter))

    def optimizer_state(self, parameter: nn.Parameter, name: str) -> Tensor:
        """Returns one whole optimizer state tensor of a parameter, on every rank."""
        if self.stage.zero_stage == 0:
            value = self._torch_optimizer().state[parameter][name]
        else:
            value = self._accessors.safe_get_full_optimizer_state(parameter, name)
        return value.detach().float().reshape(self.shape(parameter))

    def set_weight(self, parameter: Any, value: Tensor) -> None:
        """Overwrite a whole weight, and the low-precision or sharded copies of it."""
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
        """Overwrite one whole optimizer state tensor of a parameter, after `prepare_optimizer_state`."""
        value = value.to(self.ranks.device)
        if self.stage.zero_stage == 0:
            self._torch_optimizer().state[parameter][name].copy_(value.reshape(parameter.shape))
        elif self.stage.zero_stage == 3:
            self._accessors.safe_set_local_optimizer_state(parameter, self._partition(parameter, value), name)
        else:
            self._accessors.safe_set_full_optimizer_state(parameter, value.reshape(parameter.shape), name)

    def prepare_optimizer_state(self, step: int) -> None:
        """Make the optimizer's tensors, which it otherwise makes in its first step, so that they can be set and read.

        Zeros are what the first step starts from, in every optimizer here.
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
                # The fused kernel reads the count where the weights are; elsewhere torch wants it on the host.
                device = holder.device if optimizer.defaults.get("fused") else "cpu"
                state["step"] = torch.tensor(float(step), device=device)
        relink = getattr(self._optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if self.stage.zero_stage in (1, 2) and relink is not None:
            self._optimizer._hp_optimizer_states_linked = False
            relink()

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        """Returns a parameter's whole shape, also where ZeRO-3 holds only a part of it."""
        return getattr(parameter, "ds_shape", parameter.shape)

    @contextmanager
    def evaluating(self) -> Iterator[Any]:
        """Provide `evaluation_model` (a collective).

        Under ZeRO-3 it is a copy: the sharded model gathers its weights module by module, in step with the other
        ranks, which ranks that translate unlike sentences are not.
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
        # ZeRO-3 pads a weight to a multiple of the ranks before it cuts it.
        size = parameter.ds_tensor.numel()
        flat = value.reshape(-1).float()
        padded = torch.zeros(size * self.ranks.world, dtype=torch.float32, device=value.device)
        padded[: flat.numel()] = flat
        return padded[size * self.ranks.rank : size * (self.ranks.rank + 1)]
