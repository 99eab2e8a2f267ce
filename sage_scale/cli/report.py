"""`sage-scale report`: one self-contained HTML page of a run, or of several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sage_scale.storage import on_this_machine
from sage_scale.untrusted.printer import echo


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folder of a run, finished or not; several: side by side."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="File to write; RUN/report.html unless given (of several: comparison.html)."
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML page: curves, scores, controls, examples, alignments, timelines, cost.

    Of several runs, one page that compares them: corpus, token budget, parameters, time, scores, the same clips.
    """
    if out is not None:
        on_this_machine(out, "a page")
    if len(runs) > 1:
        from sage_scale.reporting.comparison import write_comparison

        echo(write_comparison(runs, out))
    else:
        from sage_scale.reporting.page import write_report

        echo(write_report(runs[0], out))
