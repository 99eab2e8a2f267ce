"""What a run needs before it is started: memory and arithmetic, from the formulas of docs/clcl.md.

`loss` counts the contrastive loss, `encoder` what a clip costs on its way to tokens, `weights` what ZeRO leaves on a
rank; `stage1` is all three with the largest batch that fits, `stage2` the translator; `sign2gpt` counts the
other model's stages.
"""

from sage_scale.planning.encoder import ClipCost, ClipSize, clip_cost
from sage_scale.planning.gpus import GPUS, Gpu
from sage_scale.planning.loss import LossSize, loss_bytes, loss_operations
from sage_scale.planning.sign2gpt import Sign2GptPlan, Sign2GptStep
from sage_scale.planning.stage1 import Stage1, StagePlan
from sage_scale.planning.stage2 import Stage2, Stage2Plan
from sage_scale.planning.weights import WeightsMemory, weights_bytes

__all__ = [
    "GPUS",
    "ClipCost",
    "ClipSize",
    "Gpu",
    "LossSize",
    "Sign2GptPlan",
    "Sign2GptStep",
    "Stage1",
    "Stage2",
    "Stage2Plan",
    "StagePlan",
    "WeightsMemory",
    "clip_cost",
    "loss_bytes",
    "loss_operations",
    "weights_bytes",
]
