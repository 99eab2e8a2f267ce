"""A trained run whose sentences have words and depend on the video, with its card and familiarity."""

from __future__ import annotations

from pathlib import Path

import torch
from factories.training import make_language_folder, make_shards, tiny_recipe

from sage_scale.models.sage.export import save_translator
from sage_scale.streaming import open_datasets
from sage_scale.training import evaluate_run
from sage_scale.training.export import load_translator
from sage_scale.training.model_card import write_card
from sage_scale.training.stage import run_stage

PLAN = [("train", 12), ("dev", 4), ("test", 6)]


def trained_run(root: Path, *changes: str) -> Path:
    """The folder of a run in `root`, on frames, evaluated; its weights are so large that sentences have words."""
    language = make_language_folder(root / "language")
    given = [f"model.language_model={language}", "finetune.init=none", "finetune.max_steps=2"]
    recipe = tiny_recipe("frames", *given, *changes)
    data = make_shards(root / "shards", recipe, PLAN)
    run_stage("finetune", recipe, root / "run", data)
    model, tokenizer, found = load_translator(root / "run")
    enlarge(model)
    save_translator(model, tokenizer, found, root / "run" / "model")
    write_card(root / "run" / "model", found, open_datasets(data))
    evaluate_run.run(root / "run", data)
    return root / "run"


def enlarge(model: torch.nn.Module) -> None:
    """Draw the weights of a model anew, large."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(3))
