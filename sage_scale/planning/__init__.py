"""What a run needs before it is started: memory and arithmetic, from the formulas of docs/clcl.md.

`loss` counts the contrastive loss, `encoder` what a clip costs on its way to tokens, `stage1` both with weights and
optimizer on one rank, and the largest batch that fits.
"""

from sage_scale.planning.encoder import ClipCost, ClipSize, clip_cost
from sage_scale.planning.gpus import GPUS, Gpu
from sage_scale.planning.loss import LossSize, loss_bytes, loss_operations
from sage_scale.planning.stage1 import Stage1, StagePlan

__all__ = [
    "GPUS",
    "ClipCost",
    "ClipSize",
    "Gpu",
    "LossSize",
    "Stage1",
    "StagePlan",
    "clip_cost",
    "loss_bytes",
    "loss_operations",
]
