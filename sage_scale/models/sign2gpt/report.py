"""How well stage 1 of Sign2GPT finds pseudo-glosses, and where: the paper's Table 8 and its Figures 4 to 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from sage_scale.reporting import figures
from sage_scale.reporting.figures import escape
from sage_scale.reporting.page import html
from sage_scale.reporting.runlog import RunRecord, fixed, number
from sage_scale.reporting.sections import BROKEN

WIDTH, ROW, PICTURE, RIGHT = 960.0, 22.0, 64.0, 12.0
TEMPLATE = "models/sign2gpt/report.html"
COLUMNS = ("precision", "recall", "f1", "macro_precision", "macro_recall", "macro_f1")
VECTORS = {
    "fasttext": "fastText vectors",
    "cooccurrence": "vectors of the corpus' own co-occurrences, in place of fastText's",
    "random": "directions at random, in place of fastText's vectors",
}


def prototype_scores(record: RunRecord) -> Markup:
    """Returns precision, recall and F1 of each split, micro and macro, above what guessing by frequency gives."""
    said = record.own.get("prototypes.json", {})
    splits, rows = said.get("splits"), []
    for split, values in splits.items() if isinstance(splits, Mapping) else ():
        if isinstance(values, Mapping) and number(values.get("f1")):
            rows.append((str(split), True, _figures(values)))
            if isinstance(values.get("control"), Mapping):
                rows.append((f"{split}: guessed by frequency", False, _figures(values["control"])))
    vectors = VECTORS.get(str(said.get("vectors")), "unknown vectors")
    shown = {"threshold": said.get("threshold"), "prototypes": said.get("prototypes"), "vectors": vectors}
    return html("prototypes", rows and shown | {"rows": rows}, TEMPLATE)


def _figures(values: Mapping[str, Any]) -> list[str]:
    return [*(fixed(values.get(key), 1) for key in COLUMNS), fixed(values.get("clips"), 0)]


def localisation_maps(record: RunRecord) -> Markup:
    """Returns a map for each clip, with frames beneath it."""
    found = []
    for clip in record.own.get("localisation.json", []):
        try:
            drawing = localisation_map(clip)
        except BROKEN:
            continue
        if drawing:
            found.append((clip.get("sentence", ""), drawing))
    return html("localisation", found, TEMPLATE)


def localisation_map(clip: Mapping[str, Any]) -> str:
    """Returns rows of cells over time, 960 wide: opacity is the localisation over the clip's largest; frames
    beneath."""
    rows, times = clip["rows"], [float(time) for time in clip["times"]]
    frames, fps, threshold = int(clip["frames"]), float(clip["fps"]), float(clip["threshold"])
    if not rows or not times or frames <= 0 or fps <= 0:
        return ""
    left = 20 + 7.0 * max(figures.letters(figures.clipped(str(row["gloss"]))) for row in rows)
    right = WIDTH - RIGHT - 44
    scale = (right - left) / frames
    most = max(max(map(float, row["values"])) for row in rows) or 1.0
    parts = []
    for line, row in enumerate(rows):
        parts += _cells(row, line * ROW, left, right, scale, times, frames, most, threshold)
    base = len(rows) * ROW + 6
    parts += figures.seconds_axis(frames, fps, left, right, base)
    pictures = [p for p in clip.get("pictures") or [] if figures.is_jpeg(p.get("jpeg"))]
    top = base + 24
    for picture, x in _apart(pictures, left, right, scale):
        when = f"{int(picture['frame']) / fps:.2f} s"
        parts.append(
            f'<image x="{x:.1f}" y="{top}" width="{PICTURE}" height="{PICTURE}" '
            f'href="data:image/jpeg;base64,{picture["jpeg"]}"><title>{when}</title></image>'
        )
    height = top + (PICTURE + 4 if pictures else 0)
    found = sum(float(row["presence"]) > threshold and bool(row["there"]) for row in rows)
    there = sum(bool(row["there"]) for row in rows)
    label = f"{found} of {there} pseudo-glosses found over {frames / fps:.1f} seconds"
    return figures.svg(WIDTH, height, label, parts)


def _cells(
    row: Mapping[str, Any], y: float, left: float, right: float, scale: float, times: Sequence[float], frames: int,
    most: float, threshold: float,
) -> list[str]:  # fmt: skip
    gloss, presence, there = str(row["gloss"]), float(row["presence"]), bool(row["there"])
    values = [float(value) for value in row["values"]]
    if len(values) != len(times):
        raise ValueError("a value for each token is needed")
    found = presence > threshold
    kind = "token" if found and there else "missed" if there else "extra"
    edges = [*times, float(frames)]
    parts = [
        f'<text x="{left - 8:.1f}" y="{y + 15:.1f}" text-anchor="end" class="{kind}">{escape(figures.clipped(gloss))}'
        f"<title>{escape(gloss)}</title></text>",
        f'<rect class="ground" x="{left:.1f}" y="{y + 1:.1f}" width="{right - left:.1f}" height="{ROW - 2}"/>',
    ]
    for start, end, value in zip(edges, edges[1:], values):
        if value / most < 0.02:
            continue
        # Between segments, frames were left out: a token is no longer than a few frames.
        width = min(end - start, 3 * _typical(times)) * scale
        parts.append(
            f'<rect class="cell {kind}" x="{left + start * scale:.1f}" y="{y + 1:.1f}" width="{width:.1f}" '
            f'height="{ROW - 2}" fill-opacity="{min(value / most, 1):.3f}"><title>{escape(gloss)}: {value:.3f}'
            "</title></rect>"
        )
    parts.append(f'<text x="{right + 8:.1f}" y="{y + 15:.1f}">{presence:.2f}</text>')
    return parts


def _typical(times: Sequence[float]) -> float:
    steps = sorted(after - before for before, after in pairwise(times))
    return steps[len(steps) // 2] if steps else 1.0


def _apart(
    pictures: Sequence[Mapping[str, Any]], left: float, right: float, scale: float
) -> list[tuple[Mapping[str, Any], float]]:
    """Returns pictures with their positions, centred on their frames; those that would overlap are left out."""
    placed: list[tuple[Mapping[str, Any], float]] = []
    for picture in pictures:
        x = left + float(picture["frame"]) * scale - PICTURE / 2
        x = min(max(x, left), right - PICTURE)
        if not placed or x >= placed[-1][1] + PICTURE + 2:
            placed.append((picture, x))
    return placed
