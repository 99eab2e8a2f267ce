"""Optimizer, parameter groups and learning-rate schedule of a stage."""

from __future__ import annotations

import math
import os
import shutil
from typing import Any

import torch
from torch import nn

from sage_scale.config import Stage

VISUAL_PARTS = ("visual.", "mapper.", "context.", "spatial.", "sign_encoder.")
Bounds = tuple[float, float]
"""Least and greatest value of a parameter."""
UNBOUNDED: Bounds = (-math.inf, math.inf)


def bounds_of(model: nn.Module) -> dict[nn.Parameter, Bounds]:
    """Returns the (lower, upper) bounds of parameters, from the attribute `bounds` of the modules of `model`."""
    return {
        getattr(module, name): bounds
        for module in model.modules()
        for name, bounds in getattr(module, "bounds", {}).items()
    }


def own_lr_scales(model: nn.Module) -> dict[nn.Parameter, float]:
    """Returns the factors on the learning rate of modules that have an attribute `lr_scale`, by parameter."""
    return {
        parameter: vars(module)["lr_scale"]
        for module in model.modules()
        if "lr_scale" in vars(module)
        for parameter in module.parameters(recurse=False)
    }


def parameter_groups(model: nn.Module, stage: Stage, prefix: str = "") -> list[dict]:
    """Returns the trainable parameters in groups: visual side or language model, with or without weight decay.

    Biases, norms and logit scales (fewer than two dimensions) are not decayed. Parameters with bounds have groups of
    their own, as have those of modules with an attribute `lr_scale`. Each group carries `lr_scale` and `bounds`.
    """
    groups: dict[tuple[bool, bool, Bounds, float], list[nn.Parameter]] = {}
    bounds, scales = bounds_of(model), own_lr_scales(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            visual = name.removeprefix(prefix).startswith(VISUAL_PARTS)
            scale = stage.visual_lr_scale if visual else scales.get(parameter, 1.0)
            key = (visual, parameter.ndim >= 2, bounds.get(parameter, UNBOUNDED), scale)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": stage.lr * scale,
            "lr_scale": scale,
            "weight_decay": stage.weight_decay if decayed else 0.0,
            "bounds": within,
        }
        for (_, decayed, within, scale), parameters in sorted(groups.items(), reverse=True)
    ]


def make_optimizer(groups: list[dict], stage: Stage, device: torch.device) -> torch.optim.Optimizer:
    """Returns SGD with momentum (SAGE, section 4.2) or AdamW, which clamps each group to its `bounds` after a step.

    On a GPU AdamW is fused. With offload it is DeepSpeed's CPU AdamW if this machine can compile it, else torch's.
    """
    # Offloaded weights are stepped on the CPU, whatever the device.
    fused = (device.type == "cuda" and stage.offload == "none") or None
    beta1, beta2 = stage.betas
    optimizer: torch.optim.Optimizer
    if stage.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            groups, lr=stage.lr, momentum=stage.momentum, nesterov=stage.nesterov, fused=fused
        )
    elif stage.offload != "none" and can_compile("CPUAdamBuilder"):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer = DeepSpeedCPUAdam(groups, lr=stage.lr, betas=(beta1, beta2), adamw_mode=True)
    else:
        optimizer = torch.optim.AdamW(groups, lr=stage.lr, betas=(beta1, beta2), fused=fused)
    optimizer.register_step_post_hook(_clamp)
    return optimizer


def _clamp(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    # The data, after the step: a clamp in the forward pass has no gradient beyond the bound, so a parameter that passed
    # it would stay there. Here `params` are the tensors that the optimizer itself moves: the parameters, or under ZeRO
    # a rank's float32 part of all parameters of the group, which DeepSpeed then hands to every rank.
    for group in optimizer.param_groups:
        if group["bounds"] != UNBOUNDED:
            for values in group["params"]:
                values.data.clamp_(*group["bounds"])


def can_compile(builder: str) -> bool:
    """Returns whether a DeepSpeed extension can be compiled here (a C++ compiler, ninja, its libraries)."""
    from deepspeed.ops import op_builder

    found = getattr(op_builder, builder, None)
    tools = shutil.which("ninja") and (shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++"))
    return bool(found is not None and tools and found().is_compatible(verbose=False))


def learning_rate_factor(stage: Stage, progress: float) -> float:
    """Returns the factor on the learning rate at `progress` (0 at the first step, 1 at the end)."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < stage.warmup:
        # Not from zero: the first step should move.
        return max(progress / stage.warmup, 0.01)
    if stage.schedule == "constant":
        return 1.0
    after = (progress - stage.warmup) / max(1 - stage.warmup, 1e-9)
    return stage.final_lr + (1 - stage.final_lr) * 0.5 * (1 + math.cos(math.pi * after))


def state_names(stage: Stage) -> tuple[str, ...]:
    """Returns the names of the per-parameter tensors that the optimizer keeps."""
    if stage.optimizer == "sgd":
        return ("momentum_buffer",) if stage.momentum else ()
    return ("exp_avg", "exp_avg_sq")
