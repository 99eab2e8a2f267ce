"""Stage 1. SAGE: visual tokens are aligned with pseudo-glosses; Sign2GPT: pseudo-glosses are found by prototypes.

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
    """Train stage 1 to its end (or go on with it) in `run_folder`, from the dataset, or several, of `data`.

    Writes `pretrain/log.jsonl`, checkpoints, `pretrain/visual.safetensors` and what the report draws, and returns the
    dev figures of the weights kept. Called by every rank.
    """
    return run_stage("pretrain", model_spec(recipe.model.kind).part("pretrain"), recipe, run_folder, data)
