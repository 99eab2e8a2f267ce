"""`sage-scale report`: one self-contained HTML page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or not.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; RUN/report.html unless given.")
    ] = None,
) -> None:
    """Write one self-contained HTML page: curves, scores, controls, examples, alignments, timelines, cost."""
    from sage_scale.reporting.page import write_report

    typer.echo(write_report(run, out))
