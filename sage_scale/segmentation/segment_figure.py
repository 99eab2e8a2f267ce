"""The figure of a video's segments: probabilities, predicted and true segments, pictures over their segments."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sage_scale.config import Vision
from sage_scale.corpora.manifest import Clip
from sage_scale.segmentation.intervals import Interval
from sage_scale.segmentation.rules import B, I, O
from sage_scale.untrusted.display import printable
from sage_scale.vision.decode import decode_clip

WIDTH, MARGIN, LEAST = 12.0, 0.8, 0.35
"""Of the figure, of its sides, and of the narrowest picture, inches."""
EXCERPT_S = 10.0
"""Seconds of a longer video that are drawn."""
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
)
"""Tried in this order for each letter, so that a Chinese title is drawn where such a font is installed."""
COLOURS = ("#3b6fd4", "#d9822b", "#2e9e83", "#a94fb8", "#c8453c", "#7a8b2f")
"""Told apart by neighbours also without red and green; adjacent segments never share one."""
_CURVES = ((O, "P(O)", "#9aa3ad"), (I, "P(I)", "#2e9e83"), (B, "P(B)", "#c8453c"))


def segment_figure(
    signs: Sequence[Interval],
    end_s: float,
    *,
    start_s: float = 0.0,
    gold: Sequence[Interval] | None = None,
    probabilities_T3: np.ndarray | None = None,
    first_s: float = 0.0,
    fps: float = 25.0,
    pictures: Mapping[int, np.ndarray] | None = None,
    title: str = "",
    kind: str = "png",
) -> bytes:
    """Returns the figure of the time from `start_s` to `end_s` as a file of the format `kind` (png, svg, pdf).

    `gold` are true signs; `probabilities_T3` are P(O), P(I), P(B) at `fps` from `first_s` on;
    `pictures` maps the number of a sign to a picture, uint8 (H, W, 3), which stands over it
    (`segment_pictures`). A picture without room beside the one before is omitted.
    """
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    pictures = pictures or {}
    heights = [1.2 * bool(pictures), 0.35, 0.35 * (gold is not None), 1.3 * (probabilities_T3 is not None)]
    gap, below, above = 0.1, 0.55, 0.4 if title else 0.12
    rows = [height for height in heights if height]
    height = above + sum(rows) + gap * (len(rows) - 1) + below
    figure = Figure(figsize=(WIDTH, height))
    tops = iter(height - above - sum(rows[:n]) - gap * n for n in range(len(rows)))

    def axes(size: float) -> Any:
        frame = (MARGIN / WIDTH, (next(tops) - size) / height, 1 - 2 * MARGIN / WIDTH, size / height)
        made = figure.add_axes(frame)
        made.set_xlim(start_s, end_s)
        for side in ("left", "right", "top", "bottom"):
            made.spines[side].set_visible(False)
        made.tick_params(bottom=False, labelbottom=False, labelsize=8)
        return made

    shown = [(n, sign) for n, sign in enumerate(signs) if sign.end_s > start_s and sign.start_s < end_s]
    if pictures:
        _draw_pictures(axes(heights[0]), shown, pictures, (WIDTH - 2 * MARGIN) / (end_s - start_s))
    _draw_bars(lowest := axes(0.35), shown, "predicted" if gold is not None else "signs")
    if gold is not None:
        true = [(n, sign) for n, sign in enumerate(gold) if sign.end_s > start_s and sign.start_s < end_s]
        _draw_bars(lowest := axes(0.35), true, "annotated")
    if probabilities_T3 is not None:
        lowest = axes(heights[3])
        times_T = first_s + (np.arange(len(probabilities_T3)) + 0.5) / fps
        within_T = (times_T >= start_s - 1 / fps) & (times_T <= end_s + 1 / fps)
        marker = "o" if within_T.sum() == 1 else ""  # a line through one point is not seen
        for column, name, colour in _CURVES:
            values_T = probabilities_T3[within_T, column]
            lowest.plot(times_T[within_T], values_T, color=colour, lw=1.4, marker=marker, label=name)
        lowest.set(ylim=(-0.02, 1.02), yticks=(0, 0.5, 1))
        lowest.grid(axis="y", color="#e3e6ea")
        lowest.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8, handlelength=1)
        for _, sign in shown:
            lowest.axvline(sign.start_s, color="#c5cad1", lw=0.7, zorder=0)
    lowest.spines["bottom"].set_visible(True)
    lowest.tick_params(bottom=True, labelbottom=True)
    lowest.set_xlabel("time, seconds")
    if title:
        figure.suptitle(printable(title), y=1 - 0.08 / height, va="top", fontsize=12, parse_math=False)
    for text in figure.findobj(Text):
        text.set_fontfamily(installed_fonts())  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def segment_pictures(
    video: str, signs: Sequence[Interval], start_s: float, end_s: float, size: int = 160
) -> dict[int, np.ndarray]:
    """Returns for each sign within the time a picture from its middle, uint8 (size, size, 3), by the sign's number;
    empty for keypoint files. Raises ClipRejected for a video that cannot be read."""
    vision = Vision(size=size, frame_stride=1, max_frames=10**9, min_frames=1)
    decoded = decode_clip(Clip(id="figure", video=video, start_s=start_s, end_s=end_s), vision, grey=False)
    last = len(decoded.frames) - 1
    if last < 0:
        return {}
    inside = [(n, sign) for n, sign in enumerate(signs) if sign.end_s > start_s and sign.start_s < end_s]
    middles = {n: (max(sign.start_s, start_s) + min(sign.end_s, end_s)) / 2 - start_s for n, sign in inside}
    return {n: decoded.frames[min(last, int(middle * vision.fps))] for n, middle in middles.items()}


def excerpt(signs: Sequence[Interval], start_s: float, end_s: float) -> tuple[float, float]:
    """Returns start and end of what is drawn: all of a short time, else EXCERPT_S from before its first sign on."""
    if end_s - start_s <= EXCERPT_S:
        return start_s, end_s
    first = max(start_s, min((sign.start_s for sign in signs), default=start_s) - 0.5)
    begin = min(first, end_s - EXCERPT_S)
    return begin, begin + EXCERPT_S


def installed_fonts() -> list[str]:
    """Returns the families of FONTS that are installed."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in FONTS if name in installed] or ["sans-serif"]


def _draw_bars(axes: Any, signs: Sequence[tuple[int, Interval]], name: str) -> None:
    begin, end = axes.get_xlim()
    per_s = (WIDTH - 2 * MARGIN) / (end - begin)
    for number, sign in signs:
        left, right = max(sign.start_s, begin), min(sign.end_s, end)
        colour = COLOURS[number % len(COLOURS)]
        axes.barh(0, right - left, left=left, height=0.9, color=colour, edgecolor="white", linewidth=1)
        words, room = printable(sign.text) or str(number + 1), (right - left) * per_s / 0.075
        if len(words) > room:
            words = words[: int(room) - 1] + "…" if room >= 3 else ""
        middle = (left + right) / 2
        axes.text(middle, 0, words, ha="center", va="center", color="white", fontsize=7, parse_math=False)
    axes.set(ylim=(-0.5, 0.5), yticks=[0], yticklabels=[name])
    axes.tick_params(left=False)


def _draw_pictures(
    axes: Any, signs: Sequence[tuple[int, Interval]], pictures: Mapping[int, np.ndarray], per_s: float
) -> None:
    """Draw each picture centred over its sign, cropped to its width or to LEAST inches; `per_s`: inches a second."""
    begin, end = axes.get_xlim()
    height, free = 1.2, -np.inf
    for number, sign in signs:
        if number not in pictures:
            continue
        picture = pictures[number]
        rows, columns = picture.shape[:2]
        left, right = max(sign.start_s, begin), min(sign.end_s, end)
        width = min(max((right - left) * per_s - 0.03, LEAST), height * columns / rows) / per_s
        left = (left + right) / 2 - width / 2
        if left < free - 1e-6:
            continue
        free = left + width
        kept = min(columns, max(1, round(width * per_s / height * rows)))
        first = (columns - kept) // 2
        image = axes.imshow(
            picture[:, first : first + kept], extent=(left, free, 0, 1), aspect="auto", clip_on=False
        )
        image.set_gid(f"segment {number + 1}")
        colour = COLOURS[number % len(COLOURS)]
        axes.plot([left, free], [-0.02] * 2, color=colour, linewidth=3, solid_capstyle="butt", clip_on=False)
    axes.set(xlim=(begin, end), ylim=(0, 1))
    axes.set_axis_off()
