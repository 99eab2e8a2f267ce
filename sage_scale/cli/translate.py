"""`sage-scale translate`: a video in, a sentence out.

sage-scale translate weather.mp4 --model runs/demo --figure weather.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sage_scale.errors import ClipRejected, SageError, UsageError
from sage_scale.storage import on_this_machine
from sage_scale.training.run_place import is_export, is_model, run_place
from sage_scale.untrusted.printer import echo, echo_json, tell


def translate(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO", help="One or more video files.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="Folder of a run or its exported model/ folder; or s3://bucket/runs/NAME, with or without /model.",
        ),
    ],
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Timeline to write, .png, .svg or .pdf; for one video.")
    ] = None,
    language: Annotated[str, typer.Option("--language", help="Spoken language, one of the model's.")] = "",
    candidates: Annotated[
        int,
        typer.Option(
            "--candidates", help="Number of sentences to print, best first; at most evaluation.beams."
        ),
    ] = 1,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1; else the best there is.")] = "",
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change to the model's recipe.")
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a video: candidates, warnings, segments, rests, model."),
    ] = False,
) -> None:
    """Print the sentence of each signing video; with several videos each line starts with the file's name."""
    missing = [video for video in videos if not on_this_machine(video, "a video to translate").exists()]
    if missing:
        raise UsageError(f"there is no video {missing[0]}")
    if figure and len(videos) > 1:
        raise UsageError("--figure shows one video: translate them one by one")

    from transformers.utils import logging

    from sage_scale.translation.timeline import check_target, write_timeline
    from sage_scale.translation.translate import Translator

    if figure:
        check_target(figure)
    logging.disable_progress_bar()  # stderr is for errors
    folder = run_place(model).fetch_to_read(is_model, is_export)
    translator = Translator(folder, device, changes or [])
    translator.check(language, candidates)
    for line in (translator.trained_on, *translator.warnings):
        tell(f"sage-scale: {line}")
    failed = 0
    for video in videos:
        try:
            translation = translator.translate(video, language, candidates=candidates)
        except ClipRejected as reason:
            tell(f"sage-scale: {video} cannot be translated: {reason}")
            failed += 1
            continue
        for line in translation.warnings[len(translator.warnings) :]:
            tell(f"sage-scale: warning: {video}: {line}")
        if score := translation.score_line():
            tell(f"sage-scale: {video}: {score}")
        if as_json:
            echo_json(translation.as_mapping())
        else:
            echo(f"{video.name}: {translation.sentence}" if len(videos) > 1 else translation.sentence)
            for number, other in enumerate(translation.candidates[1:], start=2):
                scored = "" if other.score is None else f" (score {other.score:.2f})"
                echo(f"  {number}. {other.sentence}{scored}")
        if figure:
            write_timeline(translation, figure)
    if failed and len(videos) > 1:
        raise SageError(f"{failed} of {len(videos)} videos could not be translated")
    if failed:
        raise typer.Exit(1)
