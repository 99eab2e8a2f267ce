"""A measured ablation table for a terminal, as Markdown, as CSV and as one HTML page.

Measured and published figures stand in columns of their own: they come from other corpora, steps and machines.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from markupsafe import Markup

from sage_scale.errors import StorageError
from sage_scale.reporting.ablation_chart import (
    Measured,
    MeasuredCell,
    MeasuredTable,
    chart_file,
    charts,
    heading,
)
from sage_scale.reporting.page import document, html, write_page
from sage_scale.untrusted.display import printable, shortened
from sage_scale.untrusted.printer import console

NOT_RUN = "not run"
TEMPLATE = "reporting/templates/ablation.html"


def write_pages(table: MeasuredTable, folder: Path) -> list[Path]:
    """Writes TABLE.md, TABLE.csv, TABLE.html and, once a run has finished, TABLE.svg; returns their paths.

    Raises StorageError.
    """
    texts = {"md": as_markdown(table), "csv": as_csv(table), "html": as_page(table), "svg": chart_file(table)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} is no folder that can be written: {error.strerror or error}") from None
    return [write_page(text, folder / f"{table.name}.{ending}") for ending, text in texts.items() if text]


def head(table: MeasuredTable) -> list[str]:
    """Returns the headings of the columns."""
    names = ["cell", "runs"]
    for score in table.scores:
        names += [heading(score)] + (
            [f"{heading(score)}, against {table.reference}"] if is_tested(score) else []
        )
    return names + [f"published: {heading(score)}" for score in table.published]


def body(table: MeasuredTable, cell: MeasuredCell) -> list[str]:
    """Returns the values of a cell under `head`."""
    lacking = f"{NOT_RUN}: needs {cell.needs}" if cell.needs else NOT_RUN
    runs = f"{cell.runs} of {table.seeds}" if cell.runs else lacking
    values = [cell.name, runs + (f", {cell.failed} failed" if cell.failed else "")]
    for score in table.scores:
        measured = cell.scores.get(score)
        values.append(mean(measured, score) if cell.runs else NOT_RUN)
        if is_tested(score):
            missing = "reference" if measured and cell.name == table.reference else "–"
            values.append(difference(measured, score) or missing)
    return values + [f"{cell.published[s]:g}" if s in cell.published else "–" for s in table.published]


def is_tested(score: str) -> bool:
    """Returns whether cells are compared by a score; the ratio of tokens describes them."""
    return score != "token_ratio"


def mean(measured: Measured | None, score: str) -> str:
    """Returns `18.20 ± 0.61 [17.44, 18.96]`: mean, sample deviation and 95% interval over seeds."""
    if measured is None:
        return "–"
    spread, digits = measured.spread, _digits(score)
    if spread.deviation is None:
        return f"{spread.mean:.{digits}f}"
    ends = f"[{spread.low:.{digits}f}, {spread.high:.{digits}f}]"
    return f"{spread.mean:.{digits}f} ± {spread.deviation:.{digits}f} {ends}"


def difference(measured: Measured | None, score: str) -> str:
    """Returns `+1.20 [0.30, 2.10], p = 0.020` against the reference cell; empty without a test."""
    if measured is None or (test := measured.test) is None:
        return ""
    digits, p = _digits(score), "p < 0.001" if test.p < 0.001 else f"p = {test.p:.3f}"
    return f"{test.difference:+.{digits}f} [{test.low:.{digits}f}, {test.high:.{digits}f}], {p}"


def _digits(score: str) -> int:
    return 3 if score == "token_ratio" else 2  # the others are percent


def legend(table: MeasuredTable) -> list[str]:
    """Returns the lines that explain the columns."""
    lines = [
        "Measured: mean ± sample deviation over seeds, 95% interval of the mean (Student's t) in brackets.",
        f"Against {table.reference}: mean difference over the same seeds and clips, its 95% interval and p (variance "
        "over seeds and bootstrap variance over clips added; scores of stage 1: over seeds), each pair by itself.",
    ]
    if table.published:
        lines.append(
            f"Published: {table.source}; another corpus, other models and training, for their order alone."
        )
    return lines


def as_markdown(table: MeasuredTable) -> str:
    """Returns the table with its caption."""

    def escaped(value: str) -> str:
        return re.sub(r"<(?=[\w/!?])", "&lt;", printable(value))  # Markdown passes HTML on

    def row(values: Iterable[str]) -> str:
        return f"| {' | '.join(escaped(value).replace('|', chr(92) + '|') for value in values)} |"

    names = head(table)
    lines = [
        f"# {table.name}: {escaped(table.title)}",
        "",
        *(f"- {escaped(line)}" for line in table.caption),
        "",
    ]
    lines += [row(names), "|" + "---|" * len(names)]
    lines += [row(body(table, cell)) for cell in table.cells]
    lines += ["", *(f"{escaped(line)}\n" for line in legend(table))]
    return "\n".join(lines).rstrip() + "\n"


def as_csv(table: MeasuredTable) -> str:
    """Returns one line a cell and score, with a column a figure; empty where there is none."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    seeds = [f"seed_{seed}" for seed in range(table.seeds)]
    out.writerow(
        ["table", "cell", "score", "runs", "mean", "deviation", "low", "high", "difference", "difference_low",
         "difference_high", "p", "published", *table.axes, *seeds]
    )  # fmt: skip
    for cell in table.cells:
        for score in table.scores:
            measured = cell.scores.get(score)
            numbers: list[float | None] = [None] * 8
            if measured is not None:
                s, t = measured.spread, measured.test
                numbers = [s.mean, s.deviation, s.low, s.high]
                numbers += [t.difference, t.low, t.high, t.p] if t else [None] * 4
            values = [None if value is None else round(value, 4) for value in numbers]
            each = measured.values if measured else ()
            at = [cell.axes.get(axis) for axis in table.axes]
            out.writerow(
                [table.name, cell.name, score, cell.runs, *values, cell.published.get(score), *at, *each,
                 *[None] * (len(seeds) - len(each))]
            )  # fmt: skip
    return text.getvalue()


def as_page(table: MeasuredTable) -> str:
    """Returns the page: caption, table, figure."""
    shown = {
        "head": head(table),
        "rows": [(cell.name == table.reference, body(table, cell)) for cell in table.cells],
        "measured": len(head(table)) - 2 - len(table.published),
        "published": len(table.published),
        "source": table.source,
        "caption": table.caption,
        "legend": legend(table),
    }
    drawn: list[tuple[str, list[str], Markup]] = [(title, [], drawing) for title, drawing in charts(table)]
    parts = [
        ("table", "Measured beside published", html("ablation", shown, TEMPLATE)),
        ("figure", "Figure", html("ablation_figure", drawn, TEMPLATE)),
    ]
    return document(table.name, Markup.escape(printable(table.title)), Markup(), parts, [])


def show(table: MeasuredTable, stream: IO[str]) -> None:
    """Prints the table."""
    from rich.table import Table

    drawn = Table(title=f"{table.name}: {table.title}", title_justify="left", box=None, header_style="bold")
    for number, name in enumerate(head(table)):
        drawn.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for cell in table.cells:
        drawn.add_row(*(shortened(value, 100) for value in body(table, cell)))
    drawn.caption, drawn.caption_justify = "\n".join(table.caption), "left"
    console(stream, None if stream.isatty() else 200).print(drawn)
