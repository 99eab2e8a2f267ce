"""`sage-scale pretrain` and `sage-scale finetune`: one rank here, several through DeepSpeed's launcher.

    sage-scale pretrain --run runs/mine --data data/shards --recipe sage-phoenix14t
    sage-scale finetune --run runs/mine --data data/shards --ranks 2 finetune.lr=0.002

Several machines: give `launch/pretrain.py` to `deepspeed`, `torchrun` or Slurm, with the same options.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sage_scale import config
from sage_scale.errors import UsageError
from sage_scale.training import launcher

Run = Annotated[Path, typer.Option("--run", help="Folder of the run (runs/mine); the same folder resumes.")]
Data = Annotated[
    list[str],
    typer.Option(
        "--data", help="Dataset: a folder, file:// or s3://bucket/prefix. Several: repeat it; see stream.mix."
    ),
]
Name = Annotated[
    str, typer.Option("--recipe", help="Recipe name or YAML file; else the run's own recipe.yaml.")
]
Ranks = Annotated[int, typer.Option("--ranks", min=1, help="Processes on this machine.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, section.key=value."),
]


def pretrain(run: Run, data: Data, recipe: Name = "", ranks: Ranks = 1, overrides: Overrides = None) -> None:
    """Stage 1: align visual tokens with text. Repeat the command to resume; Ctrl-C saves and stops."""
    _train("pretrain", run, data, recipe, ranks, overrides or [])


def finetune(run: Run, data: Data, recipe: Name = "", ranks: Ranks = 1, overrides: Overrides = None) -> None:
    """Stage 2: train the translator. Repeat the command to resume; Ctrl-C saves and stops."""
    _train("finetune", run, data, recipe, ranks, overrides or [])


def recipe_of_run(run: Path, recipe: str) -> str:
    """The recipe to load: the named one, else the one stored with the run; UsageError without either."""
    stored = run / "recipe.yaml"
    if recipe:
        return recipe
    if stored.is_file():
        return str(stored)
    known = ", ".join(config.recipe_names())
    raise UsageError(f"{run} has no recipe.yaml yet: name a recipe with --recipe ({known})")


def _train(
    stage: str, run: Path, data: Sequence[str], recipe: str, ranks: int, overrides: Sequence[str]
) -> None:
    name = recipe_of_run(run, recipe)
    chosen = config.load_recipe(name, overrides)  # a wrong key is refused before any process starts
    if ranks > chosen.stream.lanes:
        raise UsageError(f"--ranks {ranks} is more than stream.lanes={chosen.stream.lanes}")
    if ranks > 1:
        given = [part for url in data for part in ("--data", url)]
        arguments = ["--run", run, *given, "--recipe", name, *overrides]
        launcher.launch(launcher.command(stage, ranks, arguments), stage)
    elif stage == "pretrain":
        from sage_scale.training import pretrain as stage_1

        stage_1.run(chosen, run, data)
    else:
        from sage_scale.training import finetune as stage_2

        stage_2.run(chosen, run, data)
