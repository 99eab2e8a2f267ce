"""`sage-scale demo`: the whole main job on a synthetic corpus, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    recipe: Annotated[str, typer.Option("--recipe", help="Recipe to follow.")] = "demo",
    run: Annotated[
        Path | None, typer.Option("--run", help="Folder of the run; runs/RECIPE unless given.")
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="The same budget without stage 1, to compare.")
    ] = False,
    ranks: Annotated[
        int, typer.Option("--ranks", min=0, help="Training processes; 0: one a core, at most two.")
    ] = 0,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe.")
    ] = None,
) -> None:
    """Make a corpus, precompute, pretrain, finetune, evaluate, translate and report. Repeat it to go on."""
    from sage_scale.experiments import demo as experiment

    experiment.run(recipe, run, control=control, overrides=overrides or [], ranks=ranks)
