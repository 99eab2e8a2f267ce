"""What a run needs before it is started: memory and arithmetic, from the formulas of docs/clcl.md.

`loss` counts the contrastive loss, `resnet` the frame encoder, `weights` what ZeRO leaves on a rank, `kept` measures
what a piece of a model keeps for its backward pass; the models' own stages are planned in their folders.
"""

from sage_scale.planning.gpus import GPUS, Gpu
from sage_scale.planning.loss import LossSize, loss_bytes, loss_operations
from sage_scale.planning.step import ClipSize, PlanRequest, StepSize
from sage_scale.planning.weights import WeightsMemory, weights_bytes

__all__ = [
    "GPUS",
    "ClipSize",
    "Gpu",
    "LossSize",
    "PlanRequest",
    "StepSize",
    "WeightsMemory",
    "loss_bytes",
    "loss_operations",
    "weights_bytes",
]
