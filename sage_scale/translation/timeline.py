"""The figure of one translation: frames above, sign segments as coloured bars below, the sentence as title."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sage_scale.errors import UsageError
from sage_scale.reporting.figures import letters
from sage_scale.segmentation.segment_figure import COLOURS, installed_fonts
from sage_scale.shards import Sample
from sage_scale.translation.translate import Translation

WIDTH, MARGIN, LEAST = 12.0, 0.3, 0.35
"""Of the figure, of its sides, and of the narrowest picture, inches."""
SUFFIXES = (".png", ".svg", ".pdf", ".jpg")


def write_timeline(translation: Translation, path: Path) -> None:
    """Write the figure to `path`, in the format of its suffix, with a frame above each segment if there is room.

    Raises UsageError for an unknown suffix or a missing folder.
    """
    check_target(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["font.family"] = installed_fonts()
    segments, fps = translation.segments, translation.fps
    pictures = segment_pictures(translation.sample)
    # 84 letters are the width of the figure; East Asian ones are twice as wide.
    sentence = translation.sentence or "(no words)"
    title = textwrap.fill(sentence, max(int(84 * len(sentence) / letters(sentence)), 20))
    strip = 1.2 if pictures else 0.0
    height = strip + 1.2 + 0.32 * (title.count("\n") + 1)
    figure = plt.figure(figsize=(WIDTH, height))
    across = [MARGIN / WIDTH, 1 - 2 * MARGIN / WIDTH]
    bars = figure.add_axes((across[0], 0.5 / height, across[1], 0.6 / height))
    if pictures:
        above = figure.add_axes((across[0], 1.15 / height, across[1], strip / height), sharex=bars)
        _draw_pictures(above, translation, pictures, strip)
    for number, (start, end) in enumerate(segments):
        bars.barh(0, (end - start) / fps, left=start / fps, height=0.8, color=COLOURS[number % len(COLOURS)],
                  edgecolor="white", linewidth=1)  # fmt: skip
        if (end - start) * 60 >= translation.frames or len(segments) <= 24:
            bars.text(
                (start + end) / 2 / fps,
                0,
                str(number + 1),
                ha="center",
                va="center",
                color="white",
                fontsize=7,
            )
    bars.set(xlim=(0, translation.frames / fps), ylim=(-0.5, 0.5), yticks=[], xlabel="time, seconds")
    for side in ("left", "right", "top"):
        bars.spines[side].set_visible(False)
    figure.suptitle(title, y=1 - 0.08 / height, va="top", fontsize=13, parse_math=False)
    try:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    finally:
        plt.close(figure)


def _draw_pictures(
    axes: Any, translation: Translation, pictures: Sequence[np.ndarray], height: float
) -> None:
    """Draw each picture above the middle of its segment, cropped to the segment's width or to LEAST inches.

    A picture that would overlap the one before is omitted. `height` is the height of the axes, inches.
    """
    seconds = translation.frames / translation.fps
    scale = (WIDTH - 2 * MARGIN) / seconds  # inches a second
    free = -1.0
    for number, (start, end) in enumerate(translation.segments / translation.fps):
        picture = pictures[number]
        rows, columns = picture.shape[:2]
        width = min(max((end - start) * scale - 0.03, LEAST), height * columns / rows) / scale
        left = (start + end) / 2 - width / 2
        if left < free:
            continue
        free = left + width
        shown = min(columns, max(1, round(width * scale / height * rows)))
        first = (columns - shown) // 2
        image = axes.imshow(
            picture[:, first : first + shown], extent=(left, left + width, 0, 1), aspect="auto", clip_on=False
        )
        image.set_gid(f"segment {number + 1}")
        axes.plot([left, left + width], [-0.02] * 2, color=COLOURS[number % len(COLOURS)], linewidth=3,
                  solid_capstyle="butt", clip_on=False)  # fmt: skip
    axes.set(xlim=(0, seconds), ylim=(0, 1))
    axes.set_axis_off()


def check_target(path: Path) -> None:
    """Raise UsageError if no figure can be written to `path`; call it before any work."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: a figure ends in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")


def segment_pictures(sample: Sample) -> list[np.ndarray]:
    """Returns per segment the stored frame nearest its middle, uint8 (H, W, 3); empty for features."""
    if not sample.frames:
        return []
    numbers = np.array(sorted(sample.frames))
    middles = sample.segments.mean(axis=1)
    nearest = [int(numbers[np.abs(numbers - middle).argmin()]) for middle in middles]
    return [np.asarray(Image.open(io.BytesIO(sample.frames[number])).convert("RGB")) for number in nearest]
