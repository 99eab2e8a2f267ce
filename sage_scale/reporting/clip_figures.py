"""Figures of one clip as SVG: token similarities, segments over time, and pictures above them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

from sage_scale.reporting.figures import SEGMENT_COLOURS, clipped, escape, letters, seconds_axis, svg

TIMELINE = (960.0, 62.0, 10.0)
"""Width of a timeline, and of the margins left and right of its frames."""
PICTURE, PICTURE_MIN = 64.0, 26.0
"""Largest and least width of the pictures above a timeline."""


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


def _pairs(segments: Sequence[Sequence[int]]) -> Iterable[tuple[int, int]]:
    return ((int(segment[0]), int(segment[1])) for segment in segments if len(segment) == 2)


def _when(segments: Sequence[Sequence[int]], n: int, fps: float) -> str:
    if n >= len(segments) or fps <= 0 or len(segments[n]) != 2:
        return ""
    return f" ({segments[n][0] / fps:.2f} to {segments[n][1] / fps:.2f} s)"
