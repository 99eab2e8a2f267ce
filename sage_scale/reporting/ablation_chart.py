"""A measured ablation table and its figure: a bar a cell, or a curve over a recipe key or a figure of the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from sage_scale.evaluation.significance import PairedTest, Spread
from sage_scale.reporting.dataset_figure import STYLE, colours
from sage_scale.reporting.figures import clipped, escape, short, svg, tick_labels, ticks

LEFT, WIDTH, ROW, TOP = 236.0, 720.0, 34.0, 40.0
LABEL = 34.0
"""Longest name beside a bar, letters."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One score of one cell."""

    values: tuple[float, ...]
    """By seed."""
    spread: Spread
    test: PairedTest | None = None
    """Against the reference cell, over the same seeds and clips; None of the reference itself, or without one."""
    seeds_tested: int = 0


@dataclass(frozen=True, kw_only=True)
class MeasuredCell:
    """One row of a measured table."""

    name: str
    published: Mapping[str, float]
    needs: str = ""
    """Weights or corpora without which the cell is not run."""
    scores: Mapping[str, Measured] = field(default_factory=dict)
    runs: int = 0
    failed: int = 0
    axes: Mapping[str, float] = field(default_factory=dict)
    """Positions on the table's axes."""


@dataclass(frozen=True, kw_only=True)
class MeasuredTable:
    """A table with all that its pages show."""

    name: str
    title: str
    source: str
    scores: tuple[str, ...]
    reference: str
    seeds: int
    cells: tuple[MeasuredCell, ...]
    axes: tuple[str, ...] = ()
    caption: tuple[str, ...] = ()
    """Lines: corpus, clips, tokeniser, seeds, steps, split, device, versions, command."""

    @property
    def published(self) -> tuple[str, ...]:
        """Returns the scores that any cell has a published figure of."""
        return tuple(score for score in self.scores if any(score in cell.published for cell in self.cells))


NAMES = {
    "token_ratio": "token ratio",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    **{f"bleu{order}": f"BLEU-{order}" for order in range(1, 5)},
}


def heading(score: str) -> str:
    """Returns a score's name as a heading: BLEU-4, `prototypes.f1`."""
    start, _, last = score.rpartition(".")
    return f"{start} {NAMES.get(last, last)}".strip()


def charts(table: MeasuredTable) -> list[tuple[str, Markup]]:
    """Returns (title, drawing) of the first score: by cell, or over each axis; none before a run has finished."""
    score = table.scores[0]
    shown = [cell for cell in table.cells if score in cell.scores]
    if not shown:
        return []
    if not table.axes:
        return [(f"{heading(score)} by cell", _bars(table, score, shown))]
    return [
        (f"{heading(score)} over {axis}", _curve(score, axis, [cell for cell in shown if axis in cell.axes]))
        for axis in table.axes
        if any(axis in cell.axes for cell in shown)
    ]


def chart_file(table: MeasuredTable) -> str:
    """Returns the charts as an SVG file of its own, in the report's colours; empty before a run has finished."""
    drawn = charts(table)
    if not drawn:
        return ""
    parts, y = [], 16.0
    for title, drawing in drawn:
        height = _height(drawing)
        parts.append(f'<text class="title" x="16" y="{y + 14:.0f}">{escape(f"{table.name}: {title}")}</text>')
        place = f'<svg x="16" y="{y + 22:.0f}" width="{WIDTH:.0f}" height="{height:.0f}" '
        parts.append(str(drawing).replace("<svg ", place, 1))
        y += height + 40
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(table.title)}" '
        f'viewBox="0 0 {WIDTH + 32:.0f} {y:.0f}" width="{WIDTH + 32:.0f}" height="{y:.0f}">'
        f"<style>{colours()}{STYLE}</style>"
        f'<rect width="100%" height="100%" fill="var(--card)"/>{"".join(parts)}</svg>\n'
    )


def _height(drawing: Markup) -> float:
    return float(str(drawing).partition('viewBox="')[2].partition('"')[0].split()[3])


def _reach(cells: Sequence[MeasuredCell], score: str) -> list[float]:
    """Returns all values that a chart must show: each seed's, and the ends of the intervals where they are narrow."""
    return [value for cell in cells for value in (*cell.scores[score].values, *_ends(cell.scores[score]))]


def _ends(measured: Measured) -> tuple[float, ...]:
    spread = measured.spread
    return () if spread.low is None or spread.high is None else (spread.low, spread.high)


def _whisker(start: tuple[float, float], end: tuple[float, float], colour: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return (
        f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" stroke-width="2" opacity="0.7"/>'
    )


def _bars(table: MeasuredTable, score: str, cells: Sequence[MeasuredCell]) -> Markup:
    """Returns a bar a cell, its 95% interval, and a dot a seed."""
    marks = ticks(0.0, max(0.0, *_reach(cells, score)))
    low, high = min(0.0, *(max(value, marks[0]) for value in _reach(cells, score))), marks[-1]

    def x(value: float) -> float:
        return LEFT + (min(max(value, low), high) - low) / (high - low) * (WIDTH - LEFT - 56)

    height = TOP + ROW * len(cells)
    parts = []
    for mark, words in zip(marks, tick_labels(marks), strict=True):
        parts.append(
            f'<line class="grid" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{TOP - 12}" y2="{height}"/>'
        )
        parts.append(f'<text x="{x(mark):.1f}" y="{TOP - 18}" text-anchor="middle">{words}</text>')
    for number, cell in enumerate(cells):
        y, measured = TOP + ROW * number + ROW / 2 - 4, cell.scores[score]
        colour = "var(--line1)" if cell.name == table.reference else "var(--line0)"
        name = escape(clipped(cell.name, LABEL))
        parts.append(f'<text class="name" x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
        parts.append(
            f'<rect x="{LEFT}" y="{y - 8:.1f}" width="{x(measured.spread.mean) - LEFT:.1f}" height="16" rx="2" '
            f'fill="{colour}" opacity="0.35"/>'
        )
        ends = [x(end) for end in _ends(measured)]
        if ends:
            parts.append(_whisker((ends[0], y), (ends[1], y), colour))
        parts += [
            f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="2.8" fill="{colour}"/>' for value in measured.values
        ]
        right = max(x(measured.spread.mean), *ends, *(x(value) for value in measured.values))
        parts.append(f'<text x="{right + 8:.1f}" y="{y + 4:.1f}">{measured.spread.mean:.1f}</text>')
    spoken = "; ".join(f"{cell.name} {cell.scores[score].spread.mean:.2f}" for cell in cells)
    return svg(WIDTH, height + 4, f"{heading(score)}: {spoken}", parts)


def _curve(score: str, axis: str, cells: Sequence[MeasuredCell]) -> Markup:
    """Returns the means over an axis, each with its 95% interval and a dot a seed: joined over a recipe key, with
    their names over a figure of the runs, where neighbours may be of different kinds."""
    cells = sorted(cells, key=lambda cell: cell.axes[axis])
    left, right, top, bottom, height = 52.0, 24.0, 12.0, 44.0, 300.0
    reach, at = _reach(cells, score), [cell.axes[axis] for cell in cells]
    marks, steps = ticks(min(reach), max(reach)), ticks(0.0, max(at), 6)
    low, high, last = min(marks[0], *reach), max(marks[-1], *reach), max(steps[-1], *at)

    def point(where: float, value: float) -> tuple[float, float]:
        return (
            left + where / last * (WIDTH - left - right),
            height - bottom - (value - low) / (high - low) * (height - top - bottom),
        )

    parts = []
    for mark, words in zip(marks, tick_labels(marks), strict=True):
        _, y = point(0, mark)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{words}</text>')
    for step in steps:
        x, _ = point(step, low)
        parts.append(
            f'<text x="{x:.1f}" y="{height - bottom + 18:.1f}" text-anchor="middle">{short(step)}</text>'
        )
    parts.append(
        f'<text class="axis" x="{WIDTH - right}" y="{height - 6}" text-anchor="end">{escape(axis)}</text>'
    )
    means = [point(cell.axes[axis], cell.scores[score].spread.mean) for cell in cells]
    if "." in axis:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in means)
        parts.append(f'<path d="{path}" fill="none" stroke="var(--line0)" stroke-width="2"/>')
    for cell, (x, y) in zip(cells, means, strict=True):
        if "." not in axis:
            label_x, anchor = (x - 8, "end") if x > 0.6 * WIDTH else (x + 8, "start")
            name = escape(clipped(cell.name, LABEL))
            parts.append(
                f'<text class="name" x="{label_x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{name}</text>'
            )
        measured = cell.scores[score]
        ends = [point(cell.axes[axis], end) for end in _ends(measured)]
        if ends:
            parts.append(_whisker(ends[0], ends[1], "var(--line0)"))
        for value in measured.values:
            x, y = point(cell.axes[axis], value)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="var(--line0)"/>')
    spoken = "; ".join(f"{short(cell.axes[axis])}: {cell.scores[score].spread.mean:.2f}" for cell in cells)
    return svg(WIDTH, height, f"{heading(score)} over {axis}: {spoken}", parts)
