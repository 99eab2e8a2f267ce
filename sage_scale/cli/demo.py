"""`sage-scale demo`: the whole main job on a made corpus, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    run: Annotated[Path, typer.Option("--run", help="Folder of the run.")] = Path("runs/demo"),
    control: Annotated[
        bool, typer.Option("--control", help="The same budget without stage 1, to compare.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe `demo`.")
    ] = None,
) -> None:
    """Make a corpus, precompute, pretrain, finetune, evaluate and report, with the recipe `demo`."""
    from sage_scale.experiments import demo as experiment

    experiment.run(run, overrides=overrides or [], control=control)
