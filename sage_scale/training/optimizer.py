"""Optimizer, parameter groups and learning-rate schedule of a stage, as the recipe says."""

from __future__ import annotations

import math
import os
import shutil

import torch
from torch import nn

from sage_scale.config import Stage

VISUAL_PARTS = ("visual.", "mapper.", "context.", "spatial.", "sign_encoder.")


def parameter_groups(model: nn.Module, stage: Stage, prefix: str = "") -> list[dict]:
    """Trainable parameters in four groups: visual side or language model, with or without weight decay.

    Biases, norms and logit scales (fewer than two dimensions) are not decayed. Each group carries `lr_scale`.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            visual = name.removeprefix(prefix).startswith(VISUAL_PARTS)
            groups.setdefault((visual, parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": stage.lr * (stage.visual_lr_scale if visual else 1.0),
            "lr_scale": stage.visual_lr_scale if visual else 1.0,
            "weight_decay": stage.weight_decay if decayed else 0.0,
        }
        for (visual, decayed), parameters in sorted(groups.items(), reverse=True)
    ]


def make_optimizer(groups: list[dict], stage: Stage, device: torch.device) -> torch.optim.Optimizer:
    """SGD with momentum (SAGE, section 4.2) or AdamW: one fused kernel a group on a GPU, and where it is offloaded,
    DeepSpeed's vectorised AdamW if this machine can compile it, else torch's own."""
    # Offloaded weights are stepped on the CPU, whatever the device.
    fused = (device.type == "cuda" and stage.offload == "none") or None
    if stage.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=stage.lr, momentum=stage.momentum, nesterov=stage.nesterov, fused=fused
        )
    beta1, beta2 = stage.betas
    if stage.offload != "none" and can_compile("CPUAdamBuilder"):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, lr=stage.lr, betas=(beta1, beta2), adamw_mode=True)
    return torch.optim.AdamW(groups, lr=stage.lr, betas=(beta1, beta2), fused=fused)


def can_compile(builder: str) -> bool:
    """Whether DeepSpeed's extension of this name can be compiled here (a C++ compiler, ninja, its libraries)."""
    from deepspeed.ops import op_builder

    found = getattr(op_builder, builder, None)
    tools = shutil.which("ninja") and (shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++"))
    return bool(found is not None and tools and found().is_compatible(verbose=False))


def rate(stage: Stage, progress: float) -> float:
    """Learning rate over the stage's initial one at `progress` (0 at the first step, 1 at the end)."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < stage.warmup:
        # Not from zero: the first step should move.
        return max(progress / stage.warmup, 0.01)
    if stage.schedule == "constant":
        return 1.0
    after = (progress - stage.warmup) / max(1 - stage.warmup, 1e-9)
    return stage.final_lr + (1 - stage.final_lr) * 0.5 * (1 + math.cos(math.pi * after))


def state_names(stage: Stage) -> tuple[str, ...]:
    """Names of the per-parameter tensors that the optimizer keeps."""
    if stage.optimizer == "sgd":
        return ("momentum_buffer",) if stage.momentum else ()
    return ("exp_avg", "exp_avg_sq")
