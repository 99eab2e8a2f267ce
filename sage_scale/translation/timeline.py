"""A picture of one translation: frames above, sign segments as coloured bars below, the sentence as its title."""

from __future__ import annotations

import io
import math
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image

from sage_scale.errors import UsageError
from sage_scale.shards import Sample
from sage_scale.translation.translate import Translation

MOST_PICTURES = 24
"""More would be too small to see; of a longer video, evenly chosen segments are shown."""
SUFFIXES = (".png", ".svg", ".pdf", ".jpg")
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


def write_timeline(translation: Translation, path: Path) -> None:
    """Write the figure to `path`; its suffix says the kind. One thumbnail a segment, up to MOST_PICTURES.

    Raises UsageError for an unknown suffix or a folder that is not there.
    """
    check_target(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager
    from matplotlib import pyplot as plt

    installed = {font.name for font in font_manager.fontManager.ttflist}
    plt.rcParams["font.family"] = [name for name in FONTS if name in installed] or ["sans-serif"]
    segments, fps = translation.segments, translation.fps
    pictures = segment_pictures(translation.sample)
    most = min(len(segments), MOST_PICTURES) if pictures else 0
    shown = sorted({round(place) for place in np.linspace(0, len(segments) - 1, most)})
    rows = math.ceil(len(shown) / 12)
    columns = math.ceil(len(shown) / rows) if rows else 1
    title = textwrap.fill(translation.sentence or "(no words)", 84)
    heights = [1.0] * rows + [0.75]
    figure = plt.figure(
        figsize=(12, 1.15 * rows + 1.1 + 0.32 * (title.count("\n") + 1)), layout="constrained"
    )
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=heights)
    for place, number in enumerate(shown):
        axes = figure.add_subplot(grid[divmod(place, columns)])
        axes.imshow(pictures[number])
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=COLOURS[number % len(COLOURS)], linewidth=2.5)
        axes.set_xlabel(f"{number + 1}", fontsize=8, color=COLOURS[number % len(COLOURS)], labelpad=2)
    bars = figure.add_subplot(grid[rows, :])
    for number, (start, end) in enumerate(segments):
        bars.barh(0, (end - start) / fps, left=start / fps, height=0.8, color=COLOURS[number % len(COLOURS)],
                  edgecolor="white", linewidth=1)  # fmt: skip
        if (end - start) * 60 >= translation.frames or len(segments) <= MOST_PICTURES:
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
    figure.suptitle(title, fontsize=13, parse_math=False)
    try:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    finally:
        plt.close(figure)


def check_target(path: Path) -> None:
    """Raise UsageError, before any work is done, where no figure could be written to `path`."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: a figure ends in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}")


def segment_pictures(sample: Sample) -> list[np.ndarray]:
    """A uint8 (H, W, 3) picture for each segment, the stored frame nearest its middle; none from features."""
    if not sample.frames:
        return []
    numbers = np.array(sorted(sample.frames))
    middles = sample.segments.mean(axis=1)
    nearest = [int(numbers[np.abs(numbers - middle).argmin()]) for middle in middles]
    return [np.asarray(Image.open(io.BytesIO(sample.frames[number])).convert("RGB")) for number in nearest]
