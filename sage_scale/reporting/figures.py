"""Figures as SVG text, drawn by hand so that they take the page's colours, light or dark, and need no library.

Every figure is an accessible picture (`role="img"` with a label) in a coordinate system of its own; the page scales
it. Text inside is escaped. Colours are the classes and variables of
templates/style.css.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from sage_scale.untrusted.display import printable, redacted

Points = Sequence[tuple[float, float]]
CHART = (360.0, 224.0)
"""Width and height of a chart."""
LINE_COLOURS = 8
"""Colours through which lines cycle: variables --line0 to --line7."""
DASHES = ("", "6 3", "2 3", "9 3 2 3")
"""Strokes of lines that share a colour."""
LETTER = 9.0
"""Least distance of two lines' letters."""
LONGEST_NAME = 24
"""Letters of a name beside a figure; of a longer one its beginning, and the whole in the tooltip."""
SEGMENT_COLOURS = 6
"""Colours through which segments cycle: variables --seg0 to --seg5."""


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    name: str
    points: Points
    """(step, value), sorted by step."""
    colour: int = 0
    """Number of the line's look: variables --line0 to --line7, from the eighth on dashed."""
    marks: bool = False
    """Draw each point (few values, such as dev scores) instead of a smoothed curve over a faint raw one."""
    band: Sequence[tuple[float, float, float]] = ()
    """(step, lowest, highest) around a mean of several runs; such a line is drawn as it is."""
    letter: str = ""
    """Stands at the end of the line."""


def line_chart(title: str, lines: Sequence[Line], log: bool = False, unit: str = "") -> str:
    """Returns curves over steps, 360 x 224; empty without points. `log` draws values on a logarithmic axis."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    width, height = CHART
    left, right, top, bottom = 46.0, 24.0 if any(line.letter for line in lines) else 10.0, 10.0, 34.0
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for y in _heights(line) if not log or y > 0]
    if not ys:
        return ""
    drawn = any(len(line.points) > 1 for line in lines)
    x0 = min(xs) if drawn and max(xs) > min(xs) > 0.2 * max(xs) else 0.0  # points alone keep their steps
    x1 = max(max(xs), x0 + 1)
    y_ticks = log_ticks(min(ys), max(ys)) if log else ticks(min(ys), max(ys))
    y0, y1 = (min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))) if log else (y_ticks[0], y_ticks[-1])

    def point(x: float, y: float) -> tuple[float, float]:
        share = math.log(y / y0) / math.log(y1 / y0) if log else (y - y0) / (y1 - y0)
        return left + (x - x0) / (x1 - x0) * (width - left - right), height - bottom - share * (
            height - top - bottom
        )

    parts = []
    for tick, words in zip(y_ticks, tick_labels(y_ticks), strict=True):
        _, y = point(x0, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{words}</text>')
    for tick in ticks(x0, x1, 4, whole=True):
        if x0 <= tick <= x1:
            x, _ = point(tick, y0)
            anchor = "end" if x > width - right - 12 else "middle"
            parts.append(f'<text x="{x:.1f}" y="{height - 17}" text-anchor="{anchor}">{short(tick)}</text>')
    seen = [
        replace(line, points=[(x, y) for x, y in line.points if not log or y > 0],
                band=[row for row in line.band if not log or row[1] > 0])
        for line in lines
    ]  # fmt: skip
    parts += [
        _band([(point(x, low), point(x, high)) for x, low, high in line.band], line.colour) for line in seen
    ]
    for line in seen:
        parts += _curve(line, point)
    ends = [(point(*line.points[-1]), line) for line in seen if line.letter and line.points]
    parts += _letters(ends, height - bottom)
    parts.append(f'<text class="axis" x="{width - right}" y="{height - 4}" text-anchor="end">step</text>')
    spoken = "; ".join(
        f"{line.name} from {short(line.points[0][1])} to {short(line.points[-1][1])}{unit}" for line in lines
    )
    return svg(width, height, f"{title}: {spoken}", parts)


def _heights(line: Line) -> list[float]:
    return [y for _, y in line.points] + [y for _, low, high in line.band for y in (low, high)]


def _curve(line: Line, point: Callable[[float, float], tuple[float, float]]) -> list[str]:
    """Returns a line's path and its points, or where it is long and noisy its trend over the faint raw values."""
    visible, colour, dash = (
        line.points,
        f"var(--line{line.colour % LINE_COLOURS})",
        line.colour // LINE_COLOURS,
    )
    if line.band or line.marks or len(visible) < 40:
        parts = [_path([point(*p) for p in thin(visible, 400)], colour, 2.0, dash=dash)]
        return parts + [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>'
            for x, y in (point(*p) for p in visible)
            if line.marks or len(visible) == 1
        ]
    faint = _path([point(*p) for p in thin(visible, 400)], colour, 0.8, opacity=0.3)
    return [faint, _path([point(*p) for p in thin(smooth(visible), 300)], colour, 2.0, dash=dash)]


def _band(edges: Sequence[tuple[tuple[float, float], tuple[float, float]]], colour: int) -> str:
    """Returns the area between the lowest and highest values, as (lower point, upper point) in order; of one step a
    line."""
    if len(edges) < 2:
        return "".join(_path(pair, f"var(--line{colour % LINE_COLOURS})", 1.5, opacity=0.5) for pair in edges)
    step = math.ceil(len(edges) / 300)
    kept = [*edges[:-1:step], edges[-1]]
    outline = [low for low, _ in kept] + [high for _, high in reversed(kept)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in outline) + "Z"
    return f'<path class="band" d="{path}" fill="var(--line{colour % LINE_COLOURS})"/>'


def _letters(ends: Sequence[tuple[tuple[float, float], Line]], lowest: float) -> list[str]:
    """Returns the letter of each line beside its end, moved where it would lie on another or below `lowest`."""
    parts, column = [], list[tuple[tuple[float, float], Line]]()
    for end in (*sorted(ends, key=lambda end: end[0][0]), None):
        if column and (end is None or end[0][0] - column[-1][0][0] >= 2 * LETTER):
            parts += _column(column, lowest)
            column = []
        if end is not None:
            column.append(end)
    return parts


def _column(ends: Sequence[tuple[tuple[float, float], Line]], lowest: float) -> list[str]:
    """Returns the letters of lines that end at about the same step."""
    ends = sorted(ends, key=lambda end: end[0][1])
    heights: list[float] = []
    for (_, y), _ in ends:
        heights.append(max(y, heights[-1] + LETTER) if heights else y)
    for at in range(len(heights) - 1, -1, -1):
        heights[at] = min(heights[at], lowest - LETTER * (len(heights) - 1 - at))
    return [
        f'<text class="letter" x="{x + 5:.1f}" y="{y + 3.5:.1f}" '
        f'style="fill:var(--line{line.colour % LINE_COLOURS})">{escape(line.letter)}</text>'
        for ((x, _), line), y in zip(ends, heights, strict=True)
    ]


def share(value: float, most: float) -> float:
    """Returns the part of a bar that is filled, 0 to 1, where `most` fills it."""
    return 0.0 if most <= 0 else max(0.0, min(1.0, value / most))


def svg(width: float, height: float, label: str, parts: Iterable[str], natural: bool = False) -> Markup:
    """Returns an accessible drawing. `natural` keeps its size in pixels instead of filling the width."""
    size = f' width="{width:.0f}" height="{height:.0f}"' if natural else ""
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"{size}'
    return Markup(f'<svg role="img" aria-label="{escape(label)}" {box}>{"".join(parts)}</svg>')


def seconds_axis(frames: int, fps: float, left: float, right: float, base: float) -> list[str]:
    """Returns a rule at the height `base` with ticks in seconds, for `frames` between `left` and `right`."""
    parts = [f'<line class="rule" x1="{left:.1f}" x2="{right:.1f}" y1="{base}" y2="{base}"/>']
    for tick in ticks(0, frames / fps, 8):
        if tick <= frames / fps + 1e-9:
            x = left + tick * fps * (right - left) / frames
            parts.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>')
            parts.append(f'<text x="{x:.1f}" y="{base + 17}" text-anchor="middle">{short(tick)} s</text>')
    return parts


def ticks(low: float, high: float, about: int = 5, whole: bool = False) -> list[float]:
    """Returns round numbers, at least two, that span low to high: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    step = 10.0 ** math.floor(math.log10((high - low) / about))
    step *= next((factor for factor in (1, 2, 5) if (high - low) / (step * factor) <= about), 10)
    if whole:
        step = max(step, 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns powers of ten, over a short range 1, 2 and 5 times them, that span `low` to `high`; both positive."""
    high = max(high, low * 1.5)
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    if last - first > 2:
        return [10.0**n for n in range(first, last + 1)]
    dense = [factor * 10.0**n for n in range(first, last + 1) for factor in (1, 2, 5)]
    start = max(tick for tick in dense if tick <= low * (1 + 1e-6))
    end = min(tick for tick in dense if tick >= high * (1 - 1e-6))
    return [tick for tick in dense if start <= tick <= end]


def smooth(points: Points, share: float = 0.03) -> list[tuple[float, float]]:
    """Returns the centred moving mean over `share` of the points on either side, cut off at the ends."""
    radius = max(1, int(len(points) * share))
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    result = []
    for i, (x, _) in enumerate(points):
        first, last = max(i - radius, 0), min(i + radius + 1, len(points))
        result.append((x, (sums[last] - sums[first]) / (last - first)))
    return result


def jumps(points: Points) -> bool:
    """Returns whether a curve is too noisy to be told by its last point."""
    values = [y for _, y in points]
    return bool(values) and abs(smooth(points)[-1][1] - values[-1]) > 0.02 * (max(values) - min(values))


def thin(points: Points, most: int) -> list[tuple[float, float]]:
    """Returns at most about `most` points: the lowest and highest of each run, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    run = math.ceil(len(points) / (most / 2))
    kept = []
    for start in range(0, len(points), run):
        some = points[start : start + run]
        pair = {min(some, key=lambda p: p[1]), max(some, key=lambda p: p[1])}
        kept += sorted(pair)
    return kept


def tick_labels(values: Sequence[float]) -> list[str]:
    """Returns the numbers along an axis: short, with as many digits as tell neighbours apart (14.28, 14.29)."""
    labels = [short(value) for value in values]
    for digits in range(4, 10):
        if len(set(labels)) == len(values):
            break
        labels = [f"{value:.{digits}g}" for value in values]
    return labels


def short(value: float) -> str:
    """Returns a number in few letters: 0.03, 12.5, 3,400, 16k, 1e-05."""
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:.4g}k" if size < 1e6 else f"{value / 1e6:.3g}M"
    if size >= 1000:
        return f"{value:,.0f}"
    if size and size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.3g}"


def _path(points: Points, colour: str, width: float, opacity: float = 1.0, dash: int = 0) -> str:
    if len(points) < 2:
        return ""
    outline = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{DASHES[dash % len(DASHES)]}"' if dash else ""
    look = f'stroke="{colour}" stroke-width="{width}" opacity="{opacity}"{dashes}'
    return f'<path d="{outline}" fill="none" {look}/>'


def letters(text: str) -> float:
    """Returns the width of a text in letters; East Asian ones are twice as wide."""
    return sum(2.0 if ord(letter) > 0x2E80 else 1.0 for letter in text)


def clipped(text: str, room: float = LONGEST_NAME) -> str:
    """Returns the beginning of a text that is no wider than `room` letters, with an ellipsis where it was cut."""
    if letters(text) <= room:
        return text
    count = 0
    while letters(text[: count + 1]) <= room - 1:
        count += 1
    return text[:count] + "…"


def escape(text: object) -> Markup:
    """Returns text for HTML and SVG: markup and hidden characters escaped, URLs without their secrets."""
    return Markup.escape(redacted(printable(text)))


def is_jpeg(text: Any) -> bool:
    """Returns whether a value of a run's JSON is a JPEG in base64, safe in the page."""
    try:
        return isinstance(text, str) and base64.b64decode(text, validate=True)[:2] == b"\xff\xd8"
    except (binascii.Error, ValueError):
        return False


def brief(seconds: float) -> str:
    """Returns seconds as 59 s, 9.8 min, 2.1 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
