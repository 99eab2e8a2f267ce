"""One figure of a dataset of shards: lengths of clips, segments, hours, languages, signers, and some clips' segments.

An SVG file of its own, in the colours of the report, light or dark by the reader's setting.
"""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sage_scale.errors import DatasetError
from sage_scale.reporting.figures import SEGMENT_COLOURS, clipped, escape, seconds_axis, short, ticks
from sage_scale.reporting.page import CSS
from sage_scale.reporting.sections import PAPER_TOKEN_RATIO
from sage_scale.shards import Dataset, Sample
from sage_scale.shards.statistics import SplitStatistics

WIDTH, PANEL, GAP, MARGIN = 960.0, 284.0, 30.0, 24.0
PLOT_HEIGHT, TOP, ROW = 150.0, 92.0, 228.0
STRIP, STRIP_HEIGHT, PICTURE = 134.0, 56.0, 56
"""Height of a clip's row, of its pictures, and of a stored picture, pixels."""
CLIPS = 3
"""Clips whose segments are drawn."""
BARS = 7
"""Languages or signers drawn; the others are one bar."""
STYLE = """
svg { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif; }
text { fill: var(--muted); font-variant-numeric: tabular-nums; }
text.name { fill: var(--ink); }
text.title { fill: var(--ink); font-weight: 600; font-size: 13px; }
text.head { fill: var(--ink); font-weight: 650; font-size: 19px; }
.grid { stroke: var(--line); } .rule { stroke: var(--muted); }
.base { stroke: var(--muted); } .mark { stroke: var(--ink); stroke-dasharray: 3 3; }
"""


def dataset_figure(dataset: Dataset, parts: Sequence[SplitStatistics]) -> str:
    """Returns the figure as SVG text. `parts` are the dataset's statistics, a split each (`shards.statistics`)."""
    names = [part.split for part in parts]
    tables = [dataset.samples(part.split) for part in parts]
    frames = [table.frames.astype(float) for table in tables]
    segments = [table.segments.astype(float) for table in tables]
    ratios = [s / np.maximum(f, 1) for s, f in zip(segments, frames)]
    panels = [
        _histogram("Frames a clip, share of clips", frames, names),
        _histogram("Segments a clip, share of clips", segments, names),
        _histogram("Token ratio (segments per frame)", ratios, names, mark=True),
        _bars("Hours of video", [(p.split, p.hours, f"{p.hours:.2f} h") for p in parts], coloured=True),
        _bars("Clips by language", _top([part.languages for part in parts])),
        _bars("Clips by signer", _top([part.signers for part in parts])),
    ]
    clips = _some_clips(dataset)
    height = TOP + 2 * ROW + 8 + STRIP * len(clips)
    body = [_head(dataset, parts)]
    for number, panel in enumerate(panels):
        x, y = MARGIN + number % 3 * (PANEL + GAP), TOP + number // 3 * ROW
        body.append(f'<g transform="translate({x:.0f} {y:.0f})">{panel}</g>')
    for number, sample in enumerate(clips):
        y = TOP + 2 * ROW + 8 + STRIP * number
        body.append(f'<g class="clip" transform="translate({MARGIN:.0f} {y:.0f})">{_clip(sample)}</g>')
    label = f"{sum(part.clips for part in parts):,} clips in {len(parts)} splits: lengths, segments, token ratio, "
    label += "hours, languages and signers"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" '
        f'viewBox="0 0 {WIDTH:.0f} {height:.0f}" width="{WIDTH:.0f}" height="{height:.0f}">'
        f"<style>{colours()}{STYLE}</style>"
        f'<rect width="100%" height="100%" fill="var(--card)"/>{"".join(body)}</svg>\n'
    )


def colours() -> str:
    """Returns the report's colours, as its style sheet defines them for light and dark."""
    light = re.search(r":root \{[^}]*\}", CSS)
    dark = re.search(r"@media \(prefers-color-scheme: dark\) \{\s*:root \{[^}]*\}\s*\}", CSS)
    assert light is not None and dark is not None
    return f"{light.group(0)}\n{dark.group(0)}"


def _head(dataset: Dataset, parts: Sequence[SplitStatistics]) -> str:
    clips = sum(part.clips for part in parts)
    hours = sum(part.hours for part in parts)
    frames = sum(part.frames["total"] for part in parts)
    ratio = sum(part.segments["total"] for part in parts) / max(1.0, frames)
    name = clipped(dataset.url.rstrip("/").rpartition("/")[2])
    about = f"{clips:,} clips, {hours:.2f} hours, {frames:,.0f} frames, token ratio {ratio:.3f}"
    about += f"; kind: {dataset.info.kind}"
    out = [
        f'<text class="head" x="{MARGIN:.0f}" y="34">{escape(name)}</text>',
        f'<text x="{WIDTH - MARGIN:.0f}" y="34" text-anchor="end">{escape(about)}</text>',
    ]
    x = MARGIN
    for number, part in enumerate(parts):
        text = f"{clipped(part.split)} {part.clips:,}"
        out.append(f'<rect x="{x:.0f}" y="50" width="11" height="11" rx="2" fill="{_colour(number)}"/>')
        out.append(f'<text class="name" x="{x + 17:.0f}" y="60">{escape(text)}</text>')
        x += 17 + 7.2 * len(text) + 18
    return "".join(out)


def _histogram(
    title: str, values: Sequence[NDArray[np.float64]], names: Sequence[str], mark: bool = False
) -> str:
    """Returns the share of each split's clips over round bins, the last open; `mark` shows SAGE's token ratio."""
    drawn = [f'<text class="title" x="0" y="0">{escape(title)}</text>']
    every = np.concatenate([np.zeros(0), *values])
    if not len(every):
        return "".join(drawn)
    high = float(np.percentile(every, 99.5)) or 1.0
    low = float(every.min()) if every.min() > 0.4 * high else 0.0
    if mark:
        low, high = min(low, PAPER_TOKEN_RATIO), max(high, PAPER_TOKEN_RATIO)
    edges = np.array(ticks(low, high, 24, whole=bool((every == np.round(every)).all())))
    first, reach = float(edges[0]), float(edges[-1] - edges[0])
    shares = [np.histogram(np.minimum(v, edges[-1]), edges)[0] / max(1, len(v)) for v in values]
    most = max(float(share.max()) for share in shares)
    y_ticks = ticks(0, most, 3)
    left, bottom = 34.0, PLOT_HEIGHT + 14
    span = PANEL - left

    def point(x: float, y: float) -> str:
        return f"{left + (x - first) / reach * span:.1f} {bottom - y / y_ticks[-1] * PLOT_HEIGHT:.1f}"

    for tick in y_ticks:
        y = bottom - tick / y_ticks[-1] * PLOT_HEIGHT
        drawn.append(f'<line class="grid" x1="{left}" x2="{PANEL}" y1="{y:.1f}" y2="{y:.1f}"/>')
        drawn.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.0%}</text>')
    for number, (name, share) in enumerate(zip(names, shares)):
        steps = [point(float(edges[0]), 0)]
        for begin, end, height in zip(edges[:-1], edges[1:], share):
            steps += [point(float(begin), float(height)), point(float(end), float(height))]
        outline = "L".join([*steps, point(float(edges[-1]), 0)])
        median = float(np.median(values[number])) if len(values[number]) else 0.0
        drawn.append(
            f'<path d="M{outline}Z" fill="{_colour(number)}" fill-opacity="0.16" stroke="{_colour(number)}" '
            f'stroke-width="1.6" stroke-linejoin="round"><title>{escape(name)}: median {short(median)}</title></path>'
        )
    for tick in ticks(first, float(edges[-1]), 5):
        if first <= tick <= edges[-1]:
            x = left + (tick - first) / reach * span
            anchor = "end" if x > PANEL - 10 else "middle"
            drawn.append(
                f'<text x="{x:.1f}" y="{bottom + 16:.0f}" text-anchor="{anchor}">{short(tick)}</text>'
            )
    drawn.append(f'<line class="base" x1="{left}" x2="{PANEL}" y1="{bottom}" y2="{bottom}"/>')
    if mark:
        x = left + (PAPER_TOKEN_RATIO - first) / reach * span
        right = x < PANEL * 0.7
        drawn.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="14" y2="{bottom}"/>')
        at, anchor = (x + 5, "start") if right else (x - 5, "end")
        drawn.append(f'<text x="{at:.1f}" y="24" text-anchor="{anchor}">SAGE .129</text>')
    return "".join(drawn)


def _bars(title: str, rows: Sequence[tuple[str, float, str]], coloured: bool = False) -> str:
    """Returns horizontal bars: name, value, and the value in words."""
    drawn = [f'<text class="title" x="0" y="0">{escape(title)}</text>']
    most = max((value for _, value, _ in rows), default=0.0) or 1.0
    left, room = 92.0, PANEL - 92 - 62
    for number, (name, value, words) in enumerate(rows):
        y = 16 + number * 22
        width = max(1.5, value / most * room)
        shown = clipped(name, 13)
        colour = _colour(number) if coloured else "var(--accent)"
        drawn.append(
            f'<text class="name" x="{left - 8}" y="{y + 11}" text-anchor="end">{escape(shown)}'
            f"<title>{escape(name)}</title></text>"
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="14" rx="3" fill="{colour}"/>'
            f'<text x="{left + width + 7:.1f}" y="{y + 11}">{escape(words)}</text>'
        )
    return "".join(drawn)


def _some_clips(dataset: Dataset) -> list[Sample]:
    """Returns clips at even distances in the dataset; damaged ones are passed over."""
    table = dataset.samples()
    found = []
    for number in range(min(CLIPS, len(table))):
        try:
            sample = dataset.read(table, (2 * number + 1) * len(table) // (2 * min(CLIPS, len(table))))
        except DatasetError:
            continue
        if sample.meta["frames"] > 0 and sample.meta["fps"] > 0:
            found.append(sample)
    return found


def _clip(sample: Sample) -> str:
    """A clip's segments over time, each with its middle frame above it where frames are stored and there is room."""
    frames, fps = int(sample.meta["frames"]), float(sample.meta["fps"])
    scale, width = (WIDTH - 2 * MARGIN) / frames, WIDTH - 2 * MARGIN
    title = f"{clipped(str(sample.meta['id']), 40)}: {clipped(str(sample.meta['sentence']), 90)}"
    drawn = [f'<text class="title" x="0" y="0">{escape(title)}</text>']
    stored, free = sorted(sample.frames or ()), 0.0
    bars = 8 + (STRIP_HEIGHT + 4 if stored else 0)
    for number, (start, end) in enumerate(sample.segments.tolist()):
        x, w = start * scale, max((end - start) * scale, 1.0)
        drawn.append(
            f'<rect x="{x:.1f}" y="{bars}" width="{max(w - 1, 1):.1f}" height="16" rx="2" fill="{_colour(number)}">'
            f"<title>segment {number + 1}: {start / fps:.2f} to {end / fps:.2f} s</title></rect>"
            f'<line class="base" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{bars + 16}" opacity="0.5"/>'
        )
        shown = min(max(w - 2, 24.0), STRIP_HEIGHT)
        left = min(max(x + w / 2 - shown / 2, 0.0), width - shown)
        if stored and left >= free:
            free = left + shown
            nearest = min(stored, key=lambda frame: abs(frame - (start + end) / 2))
            drawn.append(_picture(sample.frames[nearest], left, shown))  # type: ignore[index]
    return "".join([*drawn, *seconds_axis(frames, fps, 0.0, width, bars + 20)])


def _picture(jpeg: bytes, left: float, width: float) -> str:
    """A stored frame, STRIP_HEIGHT high, cut at its sides to `width`."""
    with Image.open(io.BytesIO(jpeg)) as picture:
        small = ImageOps.fit(picture.convert("RGB"), (max(1, round(PICTURE * width / STRIP_HEIGHT)), PICTURE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<image x="{left:.1f}" y="8" width="{width:.1f}" height="{STRIP_HEIGHT:.0f}" preserveAspectRatio="none" '
        f'href="data:image/jpeg;base64,{data}"/>'
    )


def _top(counts: Sequence[dict[str, int]]) -> list[tuple[str, float, str]]:
    """Returns the most frequent names over all splits, and the others as one."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    rows = [(name or "unknown", float(n), f"{n:,}") for name, n in total.most_common(BARS)]
    others = total.most_common()[BARS:]
    if len(others) == 1:
        rows.append((others[0][0] or "unknown", float(others[0][1]), f"{others[0][1]:,}"))
    elif others:
        rest = sum(n for _, n in others)
        rows.append((f"{len(others)} others", float(rest), f"{rest:,}"))
    return rows


def _colour(number: int) -> str:
    return f"var(--seg{number % SEGMENT_COLOURS})"
