"""Stage 2: trains the translator. SAGE trains mBART on visual tokens; Sign2GPT trains adapters of a frozen XGLM.

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
    """Train or resume stage 2 in `run_folder` on the datasets at the URLs `data`.

    Initial weights come from stage 1 of the same run, as `finetune.init` says. Writes `finetune/log.jsonl`,
    checkpoints and the export `model/`, and returns the dev scores of the best weights. Called by every rank.
    """
    return run_stage("finetune", model_spec(recipe.model.kind).part("finetune"), recipe, run_folder, data)
