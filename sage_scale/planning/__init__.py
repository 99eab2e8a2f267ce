"""Memory and arithmetic of a run, before it is started.

Memory and the frame encoder's operations are measured (`measure`), other operations are counted by formulas, since
training needs them at each step (`step`, and the models' own); `loss` has both of the contrastive loss. A model's plan
is in its folder.
"""

from sage_scale.planning.loss import LossSize, loss_bytes, loss_operations
from sage_scale.planning.step import (
    GPUS,
    ClipSize,
    Gpu,
    PlanRequest,
    StagePlans,
    StepSize,
    WeightsMemory,
    weights_bytes,
)

__all__ = [
    "GPUS", "ClipSize", "Gpu", "LossSize", "PlanRequest", "StagePlans", "StepSize", "WeightsMemory", "loss_bytes",
    "loss_operations", "weights_bytes",
]  # fmt: skip
