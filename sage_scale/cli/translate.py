"""`sage-scale translate`: a video in, a sentence out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def translate(
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO", help="One or more video files.")],
    model: Annotated[Path, typer.Option("--model", help="Folder of a run, or its exported model/ folder.")],
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="Timeline to write, .png, .svg or .pdf; a folder for several videos."),
    ] = None,
    language: Annotated[
        str, typer.Option("--language", help="Spoken language, BCP 47; else the model's own.")
    ] = "",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1; else the best there is.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a video, with segment times.")
    ] = False,
) -> None:
    """Print the sentence of each signing video; with several videos each line starts with the file's name."""
    from sage_scale.translation import translate as translation

    translation.run(videos, model, figure=figure, language=language, device=device, as_json=as_json)
