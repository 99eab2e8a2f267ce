"""Stage 2: a language model translates what the visual side gives. SAGE: mBART; Sign2GPT: a frozen XGLM with adapters.

sage-scale finetune --run runs/NAME --data URL --recipe NAME
deepspeed --num_gpus 8 launch/finetune.py --run-dir runs/NAME --data URL --recipe NAME
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
    """Train stage 2 to its end (or go on with it) in `run_folder`, from the dataset, or several, of `data`.

    Takes over what `finetune.init` says from stage 1 of the same run, writes `finetune/log.jsonl`, checkpoints and
    the export `model/`, and returns the dev scores of the weights kept. Called by every rank.
    """
    return run_stage("finetune", model_spec(recipe.model.kind).part("finetune"), recipe, run_folder, data)
