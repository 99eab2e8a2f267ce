"""Figures as SVG text, drawn by hand so that they take the page's colours, light or dark, and need no library.

Every figure is an accessible picture (`role="img"` with a label) in a coordinate system of its own; the page scales
it. Text inside is escaped. Colours are the classes and variables of
templates/style.css.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sage_scale.untrusted.display import printable, redacted

Points = Sequence[tuple[float, float]]
TIMELINE = (960.0, 62.0, 10.0)
"""Width of a timeline, and of the margins left and right of its frames."""
PICTURE, PICTURE_MIN = 64.0, 26.0
"""Largest and least width of the pictures above a timeline."""
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
    """Index of a colour: variables --line0 to --line3."""
    marks: bool = False
    """Draw each point (few values, such as dev scores) instead of a smoothed curve over a faint raw one."""


def line_chart(title: str, lines: Sequence[Line], log: bool = False, unit: str = "") -> str:
    """Returns curves over steps, 360 x 224; empty without points. `log` draws values on a logarithmic axis."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    left, right, top, bottom, width, height = 46.0, 10.0, 10.0, 34.0, 360.0, 224.0
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if not log or y > 0]
    if not ys:
        return ""
    x0 = min(xs) if max(xs) > min(xs) > 0.2 * max(xs) else 0.0  # one point alone keeps its step
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
    for line in lines:
        visible = [(x, y) for x, y in line.points if not log or y > 0]
        colour = f"var(--line{line.colour})"
        if line.marks or len(visible) < 40:
            parts.append(_path([point(*p) for p in visible], colour, 2.0))
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>'
                for x, y in (point(*p) for p in visible)
                if line.marks or len(visible) == 1
            ]
        else:
            parts.append(_path([point(*p) for p in thin(visible, 400)], colour, 0.8, opacity=0.3))
            parts.append(_path([point(*p) for p in thin(smooth(visible), 300)], colour, 2.0))
    parts.append(f'<text class="axis" x="{width - right}" y="{height - 4}" text-anchor="end">step</text>')
    spoken = "; ".join(
        f"{line.name} from {short(line.points[0][1])} to {short(line.points[-1][1])}{unit}" for line in lines
    )
    return svg(width, height, f"{title}: {spoken}", parts)


def matrix(
    similarity_NM: Sequence[Sequence[float]],
    tokens: Sequence[str],
    segments: Sequence[Sequence[int]],
    fps: float,
) -> str:
    """Returns token similarities as in the paper's Figure 4: a row a text token (M of them), a column a segment (N).

    The segment that a text token is most similar to is framed. Columns carry the segment's number, and its time as
    a tooltip. Returns an empty string where the shapes do not fit.
    """
    N, M = len(similarity_NM), len(tokens)
    if not N or not M or any(len(row) != M for row in similarity_NM):
        return ""
    values = [value for row in similarity_NM for value in row]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    side = 22.0
    left = 16 + 7.4 * max(letters(clipped(token)) for token in tokens)
    width, height = left + N * side + 4, M * side + 42
    parts = [f'<rect class="ground" x="{left:.1f}" y="0" width="{N * side:.1f}" height="{M * side:.1f}"/>']
    for m, token in enumerate(tokens):
        column = [row[m] for row in similarity_NM]
        best = column.index(max(column))
        y = m * side
        parts.append(
            f'<text x="{left - 8:.1f}" y="{y + 15:.1f}" text-anchor="end" class="token">{escape(clipped(token))}'
            f"<title>{escape(token)}</title></text>"
        )
        for n, value in enumerate(column):
            when = _when(segments, n, fps)
            parts.append(
                f'<rect class="cell" x="{left + n * side + 0.5:.1f}" y="{y + 0.5:.1f}" width="{side - 1}" '
                f'height="{side - 1}" fill-opacity="{(value - low) / span:.3f}">'
                f"<title>{escape(token)} and segment {n + 1}{when}: {value:.2f}</title></rect>"
            )
        parts.append(
            f'<rect class="best" x="{left + best * side + 1.5:.1f}" y="{y + 1.5:.1f}" width="{side - 3}" '
            f'height="{side - 3}"/>'
        )
    for n in range(N):
        x = left + (n + 0.5) * side
        parts.append(f'<text x="{x:.1f}" y="{M * side + 15:.1f}" text-anchor="middle">{n + 1}</text>')
    parts.append(
        f'<text class="axis" x="{left:.1f}" y="{M * side + 33:.1f}">segments in order of time →</text>'
    )
    label = f"Similarity of {M} text tokens with {N} segments, from {low:.2f} to {high:.2f}"
    return svg(width, height, label, parts, natural=True)


def timeline(
    frames: int, fps: float, segments: Sequence[Sequence[int]], gold: Sequence[tuple[float, float, str]] = ()
) -> str:
    """Returns segments as coloured, numbered bars over seconds, above the gold signs with their glosses, if any."""
    if frames <= 0 or fps <= 0:
        return ""
    width, left, right = TIMELINE
    scale = (width - left - right) / frames
    height = 74.0 + (30 if gold else 0)
    parts = [f'<text x="{left - 8}" y="21" text-anchor="end">segments</text>']
    for n, (start, end) in enumerate(_pairs(segments)):
        x, w = left + start * scale, max((end - start) * scale - 1, 1)
        colour = f"var(--seg{n % SEGMENT_COLOURS})"
        when = f"{start / fps:.2f} to {end / fps:.2f} s"
        parts.append(
            f'<rect x="{x:.1f}" y="4" width="{w:.1f}" height="26" rx="3" fill="{colour}">'
            f"<title>segment {n + 1}: {when}</title></rect>"
        )
        if w > 14:
            parts.append(f'<text class="on" x="{x + w / 2:.1f}" y="21" text-anchor="middle">{n + 1}</text>')
    if gold:
        parts.append(f'<text x="{left - 8}" y="53" text-anchor="end">signs</text>')
        for begin, stop, gloss in gold:
            x, w = left + begin * scale, max((stop - begin) * scale - 1, 1)
            parts.append(
                f'<rect class="gold" x="{x:.1f}" y="36" width="{w:.1f}" height="26" rx="3">'
                f"<title>{escape(gloss)}: {begin / fps:.2f} to {stop / fps:.2f} s</title></rect>"
            )
            room = (w - 6) / 6.2
            if room >= 2:
                shown = clipped(gloss, room)
                parts.append(f'<text x="{x + w / 2:.1f}" y="53" text-anchor="middle">{escape(shown)}</text>')
    base = height - 34
    parts += seconds_axis(frames, fps, left, width - right, base)
    count = len(list(_pairs(segments)))
    label = f"{count} segments over {frames / fps:.1f} seconds" + (
        f", {len(gold)} gold signs" if gold else ""
    )
    return svg(width, height, label, parts)


def film_strip(frames: int, segments: Sequence[Sequence[int]], pictures: Mapping[int, str]) -> Markup:
    """Returns pictures above a timeline of the same width, as HTML; JPEGs in base64 by number of the segment.

    Each is centred above its segment and as wide as it, cut at its sides; `PICTURE_MIN` where the segment is narrower,
    and overlapping ones are left out.
    """
    width, left, right = TIMELINE
    scale = (width - left - right) / max(frames, 1)
    parts, free = [], 0.0
    for n, (start, end) in enumerate(_pairs(segments)):
        middle, w = (
            left + (start + end) / 2 * scale,
            min(max((end - start) * scale - 1, PICTURE_MIN), PICTURE),
        )
        if n in pictures and middle - w / 2 >= free:
            free = middle + w / 2
            parts.append(
                f'<img alt="segment {n + 1}" src="data:image/jpeg;base64,{pictures[n]}" style="left:'
                f"{100 * (middle - w / 2) / width:.3f}%;width:{100 * w / width:.3f}%;"
                f'border-color:var(--seg{n % SEGMENT_COLOURS})">'
            )
    return Markup(f'<div class="strip">{"".join(parts)}</div>' if parts else "")


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


def _path(points: Points, colour: str, width: float, opacity: float = 1.0) -> str:
    if len(points) < 2:
        return ""
    outline = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="{outline}" fill="none" stroke="{colour}" stroke-width="{width}" opacity="{opacity}"/>'


def _pairs(segments: Sequence[Sequence[int]]) -> Iterable[tuple[int, int]]:
    return ((int(segment[0]), int(segment[1])) for segment in segments if len(segment) == 2)


def _when(segments: Sequence[Sequence[int]], n: int, fps: float) -> str:
    if n >= len(segments) or fps <= 0 or len(segments[n]) != 2:
        return ""
    return f" ({segments[n][0] / fps:.2f} to {segments[n][1] / fps:.2f} s)"


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
