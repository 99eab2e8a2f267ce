"""`sage-scale keypoints`: videos in, a keypoint file for each out; killed, it goes on where it was.

sage-scale keypoints --setup
sage-scale keypoints --root data/videos --out data/videos
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from sage_scale.untrusted.printer import echo, tell


def keypoints(
    root: Annotated[str, typer.Option("--root", help="Folder of the videos, or one video.")] = "",
    out: Annotated[
        str,
        typer.Option("--out", help="Where the .pose files go: a folder (also --root) or s3://bucket/prefix."),
    ] = "",
    recipe: Annotated[str, typer.Option("--recipe", help="Recipe by name or YAML file.")] = "demo",
    give_up: Annotated[
        list[str] | None,
        typer.Option("--give-up", metavar="VIDEO", help="Reject a video by hand; may be repeated."),
    ] = None,
    events: Annotated[
        Path | None, typer.Option("--events", help="File to which progress is appended as JSON Lines.")
    ] = None,
    setup: Annotated[
        bool, typer.Option("--setup", help="Install MediaPipe into an environment of its own, and end.")
    ] = False,
    python: Annotated[
        str,
        typer.Option(
            "--python", metavar="PATH", help="Python 3.11 or 3.12 for --setup, if this one is newer."
        ),
    ] = "",
    models: Annotated[
        Path | None,
        typer.Option(
            "--models", metavar="FOLDER", help="For --setup: pose_landmark_lite.tflite and _heavy.tflite."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, section.key=value."),
    ] = None,
) -> None:
    """Extract keypoints of all videos below a folder on Ray. Repeat the command to go on after whatever stopped it."""
    from sage_scale.errors import UsageError

    if setup:
        from sage_scale.extraction.mediapipe_environment import set_up

        if root or out:
            raise UsageError("--setup installs MediaPipe and takes neither --root nor --out: run it first")
        echo(f"MediaPipe is ready: {set_up(python, models, tell)}")
        return
    for option, value in (("--root", root), ("--out", out)):
        if not value:
            raise UsageError(f"{option} is missing (see sage-scale keypoints --help)")
    from sage_scale.config import load_recipe
    from sage_scale.precompute.keypoint_job import extract_keypoints

    chosen = load_recipe(recipe, overrides or [])
    if chosen.vision.extractor == "none":
        chosen = dataclasses.replace(chosen, vision=dataclasses.replace(chosen.vision, extractor="mediapipe"))
    summary = extract_keypoints(root, out, chosen, give_up=give_up or [], events=events)
    for line in summary.first_rejects():
        tell(line)
    echo(summary.line())
