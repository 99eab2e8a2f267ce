"""`sage-scale bench calibrate`: the rates of this machine, for `sage-scale plan --calibration`.

sage-scale bench calibrate --out machine.yaml
sage-scale bench calibrate --out machine.yaml --videos my_videos                      (JPEG and decoding of your videos)
sage-scale bench calibrate --out machine.yaml --data data/shards --recipe demo        (also training steps of a recipe)
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sage_scale.cli import Overrides
from sage_scale.errors import UsageError
from sage_scale.untrusted.display import redacted, shortened
from sage_scale.untrusted.files import expanded, is_folder
from sage_scale.untrusted.printer import echo, tell

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure this machine.")


@app.callback()
def bench() -> None:
    """Measure this machine."""


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option("--out", help="File to write, YAML.")],
    recipe: Annotated[str, typer.Option("--recipe", help="Recipe name or YAML file.")] = "demo",
    videos: Annotated[
        str,
        typer.Option("--videos", help="Folder of videos: decoding, and size and time of JPEG, of up to 8."),
    ] = "",
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Dataset of the recipe: also times its training steps. May be repeated."),
    ] = None,
    store: Annotated[
        str, typer.Option("--store", help="s3://bucket/prefix or folder: also times 64 MB to and from it.")
    ] = "",
    seconds: Annotated[float, typer.Option(min=0.01, help="CPU seconds of a measurement, at least.")] = 1.0,
    overrides: Overrides = None,
) -> None:
    """Time this machine: decoding, JPEG, segments, text, backbones, shards, Ray's start, matrices, disk, all-reduce.

    One measurement after the other, each on one thread; about a minute without --data, on an idle machine.
    """
    import torch

    from sage_scale.config import load_recipe
    from sage_scale.experiments import calibration
    from sage_scale.experiments.calibration_pieces import pieces
    from sage_scale.experiments.calibration_steps import calibrate_steps

    chosen = load_recipe(recipe, overrides or ())
    if videos and not is_folder(videos):
        raise UsageError(f"--videos {shortened(videos)} is no folder")
    if not out.parent.is_dir():
        raise UsageError(f"--out: there is no folder {shortened(out.parent)}")
    found = calibration.Calibration(_command())
    chosen_videos = calibration.videos_of(expanded(videos)) if videos else ()
    settings = calibration.Settings(recipe=chosen, seconds=seconds, videos=chosen_videos, store=store)
    torch.set_num_threads(1)
    work = [*pieces(settings)]
    if data:
        steps = f"training steps of {chosen.name}"
        work.append((steps, lambda found: calibrate_steps(found, recipe, overrides or (), data)))
    for number, (name, measure) in enumerate(work, start=1):
        tell(f"{number} of {len(work)}: {name}")
        known = set(found.constants)
        measure(found)
        for constant in found.constants.values():
            if constant.name not in known:
                echo(f"{constant.name}: {constant.shown} {constant.unit}")
    out.write_text(found.to_yaml(), encoding="utf-8")
    echo(
        f"{len(found.constants)} constants are in {out}: sage-scale plan {shlex.quote(recipe)} --calibration {out}"
    )


def _command() -> str:
    return redacted(shlex.join(["sage-scale", *sys.argv[1:]]))
