"""The table of `segment evaluate`, for a terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import IO, Any

from sage_scale.segmentation.evaluation import Evaluation
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.printer import console

Scores = Mapping[str, Mapping[str, Any]]

COLUMNS = {
    "frame macro F1": "frame_macro_f1",
    "segment F1, overlap .25": "segment_f1_25",
    ".5": "segment_f1_50",
    ".75": "segment_f1_75",
    "predicted/gold": "ratio",
    "onset F1 within 1": "onset_f1_1",
    "2": "onset_f1_2",
    "3 frames": "onset_f1_3",
    "boundaries off by, ms": "boundary_error_ms",
}
"""Heading -> score."""
LEGEND = (
    "(evenly spaced: as many onsets at equal distances) and, in brackets, 95% intervals over resampled clips. Frames "
    "are inside or outside a sign; segments and onsets match one to one; an onset at frame 0 counts on no side."
)


def as_markdown(found: Evaluation, about: Mapping[str, str]) -> str:
    """Returns the tables of all clips and of each group, with what was scored (`about`: name -> value)."""
    rows = found.table()
    lines = [f"- {name}: {shortened(value, 300)}" for name, value in about.items()]
    lines += [
        f"- {len(found.clips):,} clips, {found.frames:,} frames at {found.fps:g} a second, {found.signs:,} signs"
    ]
    lines += [
        f"- threshold and gap for {shortened(group)}: {t:g}, {g:g} s"
        for group, (t, g) in found.chosen.items()
    ]
    lines += [
        f"- left out: {count:,} clips, {reason}" for reason, count in found.left_out_by_reason().items()
    ]
    if found.unread:
        lines += [f"- signs of the annotation left out or cut: {len(found.unread):,}"]
    lines += [
        "",
        *_table([row for row in rows if not row["group"]], ["name"], _markdown_cell),
        "",
        f"Values {LEGEND}",
    ]
    if any(row["group"] for row in rows):
        lines += ["", *_table([row for row in rows if row["group"]], ["name", "group", "clips"], _plain_cell)]
    return "\n".join(lines) + "\n"


def as_json(found: Evaluation, about: Mapping[str, str]) -> str:
    """Returns all values and intervals, and the clips and annotated signs that were left out."""
    document = {
        **about,
        "fps": found.fps,
        "clips": len(found.clips),
        "frames": found.frames,
        "signs": found.signs,
        "chosen": {group: {"threshold": t, "gap_s": g} for group, (t, g) in found.chosen.items()},
        "left_out": [vars(row) for row in found.left_out],
        "unread": list(found.unread),
        "rows": found.table(),
    }
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def show(found: Evaluation, stream: IO[str]) -> None:
    """Prints the table of all clips."""
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    table.add_column("")
    for heading in COLUMNS:
        table.add_column(heading, justify="right", overflow="fold")
    for row in found.table():
        if not row["group"]:
            cells = [_plain_cell(name, row["scores"]) for name in COLUMNS.values()]
            table.add_row(shortened(row["name"], 60), *cells)
    console(stream, None if stream.isatty() else 170).print(table)


def _table(rows: list[dict[str, Any]], names: list[str], cell: Callable[[str, Scores], str]) -> list[str]:
    headings = [name.replace("name", "tagger") for name in names]
    lines = [f"| {' | '.join([*headings, *COLUMNS])} |", "|" + "---|" * (len(names) + len(COLUMNS))]
    for row in rows:
        own = [shortened(row[name], 100).replace("|", "\\|") for name in names]
        lines.append(f"| {' | '.join([*own, *(cell(name, row['scores']) for name in COLUMNS.values())])} |")
    return lines


def _plain_cell(name: str, scores: Scores) -> str:
    even = scores.get(f"even_{name}")
    return _number(name, scores[name]["value"]) + (f" ({_number(name, even['value'])})" if even else "")


def _markdown_cell(name: str, scores: Scores) -> str:
    low, high = scores[name]["interval"]
    return f"{_plain_cell(name, scores)} [{_number(name, low)}, {_number(name, high)}]"


def _number(name: str, value: float) -> str:
    if name == "boundary_error_ms":
        return f"{value:.0f}"
    return f"{value:.2f}" if name == "ratio" else f"{value:.3f}".replace("0.", ".", 1)
