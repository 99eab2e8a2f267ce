"""Stage 1. SAGE aligns visual tokens with pseudo-glosses; Sign2GPT detects pseudo-glosses by prototypes.

sage-scale pretrain --run runs/NAME --data URL --recipe NAME
deepspeed --num_gpus 8 launch/pretrain.py --run-dir runs/NAME --data URL --recipe NAME
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sage_scale.config import Recipe
from sage_scale.registry import model_spec
from sage_scale.streaming import Data
from sage_scale.training.stage import STAGE1, run_stage

__all__ = ["STAGE1", "run"]


def run(recipe: Recipe, run_folder: str | Path, data: Data) -> dict[str, Any]:
    """Train or resume stage 1 in `run_folder` on the datasets at the URLs `data`.

    Writes `pretrain/log.jsonl`, checkpoints, `pretrain/visual.safetensors` and data for the report, and returns the
    dev scores of the best weights. Called by every rank.
    """
    return run_stage("pretrain", model_spec(recipe.model.kind).part("pretrain"), recipe, run_folder, data)
