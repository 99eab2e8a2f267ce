"""`sage-scale translate`: a video in, a sentence out; of a long video captions.

sage-scale translate weather.mp4 --model runs/demo --figure weather.png
sage-scale translate talk.mp4 --model runs/demo --captions talk.vtt
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sage_scale.errors import ClipRejected, SageError, UsageError
from sage_scale.storage import on_this_machine
from sage_scale.training.run_place import model_folder
from sage_scale.untrusted.printer import echo, echo_json, tell

if TYPE_CHECKING:
    from sage_scale.translation.translate import Translator

SHOWN_WARNINGS = 3
"""Warnings of captions that are printed; the others are counted."""


def translate(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO", help="One or more video files.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="Folder of a run or of an export; s3://bucket/runs/NAME, with or without /model; hf://OWNER/NAME.",
        ),
    ],
    figure: Annotated[
        Path | None, typer.Option("--figure", help="Timeline to write, .png, .svg or .pdf; for one video.")
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            help="Caption file to write, .vtt, .srt, .json or .eaf: a long video, cut at its pauses.",
        ),
    ] = None,
    start: Annotated[
        str, typer.Option("--start", metavar="TIME", help="Begin here: seconds or hh:mm:ss.")
    ] = "0",
    end: Annotated[str, typer.Option("--end", metavar="TIME", help="End here: seconds or hh:mm:ss.")] = "",
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
    if captions and len(videos) > 1:
        raise UsageError("--captions is the file of one video: translate them one by one")
    if captions and figure:
        raise UsageError("--figure shows one sentence: leave out --captions, or --figure")

    from transformers.utils import logging

    from sage_scale.translation import caption_files
    from sage_scale.translation.timeline import check_target, write_timeline
    from sage_scale.translation.translate import Translator

    if figure:
        check_target(figure)
    if captions:
        caption_files.check_target(captions)
    start_s = caption_files.seconds_of(start, "--start")
    end_s = caption_files.seconds_of(end, "--end") if end else None
    if end_s is not None and end_s <= start_s:
        raise UsageError(f"--end {end} is not after --start {start}")
    logging.disable_progress_bar()  # stderr is for errors
    translator = Translator(model_folder(model), device, changes or [])
    translator.check(language, candidates)
    for line in (translator.trained_on, *translator.warnings):
        tell(f"sage-scale: {line}")
    if captions:
        _write_captions(translator, videos[0], captions, language, start_s, end_s, candidates, as_json)
        return
    failed = 0
    for video in videos:
        try:
            translation = translator.translate(video, language, start_s, end_s, candidates)
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


def _write_captions(
    translator: Translator,
    video: Path,
    target: Path,
    language: str,
    start_s: float,
    end_s: float | None,
    candidates: int,
    as_json: bool,
) -> None:
    """Write the captions of one video while it is read, and print each of them."""
    from sage_scale.translation.caption_files import clock, open_captions
    from sage_scale.untrusted.progress import Progress

    file = open_captions(target, str(video), translator.trained_on)
    count, warned, written_s = 0, 0, start_s
    unreadable: list[str] = []
    with Progress(video.name, "s") as progress:

        def note(line: str) -> None:
            if " cannot be " in line:
                unreadable.append(line)
            progress.say(f"sage-scale: {video}: {line}")

        def read(time_s: float, last_s: float | None) -> None:
            if last_s:
                progress(int(time_s - start_s), max(1, int(last_s - start_s)))

        try:
            for caption in translator.captions(
                video, language, start_s, end_s, candidates, on_read=read, on_note=note
            ):
                file.add(caption)
                count, written_s = count + 1, caption.end_s
                found = caption.translation
                for line in found.warnings[len(translator.warnings) :]:
                    warned += 1
                    if warned <= SHOWN_WARNINGS:
                        progress.say(f"sage-scale: warning: {clock(caption.start_s)}: {line}")
                if as_json:
                    echo_json(caption.as_mapping())
                else:
                    echo(f"{clock(caption.start_s)} --> {clock(caption.end_s)}  {found.sentence}")
        except ClipRejected as reason:
            if not count:
                target.unlink(missing_ok=True)
            raise SageError(f"{video} cannot be translated: {reason}") from None
        except KeyboardInterrupt:
            captions = "1 caption" if count == 1 else f"{count} captions"
            progress.say(
                f"sage-scale: interrupted; {target} has {captions}, up to {clock(written_s)}: "
                f"--start {clock(written_s)} with another file goes on from there"
            )
            raise SystemExit(130) from None
        finally:
            if target.exists():
                file.close()
    if warned > SHOWN_WARNINGS:
        tell(f"sage-scale: {warned - SHOWN_WARNINGS} more warnings: a .json file or --json has them all")
    told = f"{count} captions" if count != 1 else "1 caption"
    tell(f"sage-scale: {target}: {told}" + ("" if count else ", since no signing was found"))
    if unreadable:
        parts = "a part" if len(unreadable) == 1 else f"{len(unreadable)} parts"
        raise SageError(f"{target} has no captions of {parts} of {video}, which could not be read")
