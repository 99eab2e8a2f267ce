"""The figure of one translation: frames above, sign segments as coloured bars below, rests hatched; as title the
sentence, its score, the warnings and the model."""

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
from sage_scale.translation.result import Translation
from sage_scale.untrusted.display import shortened

WIDTH, MARGIN, LEAST = 12.0, 0.3, 0.35
"""Of the figure, of its sides, and of the narrowest picture, inches."""
LINE = 0.19
"""Height of a line below the sentence, inches."""
WARNING, INK, REST = "#b3261e", "#4a5560", "#8a929b"
SUFFIXES = (".png", ".svg", ".pdf", ".jpg")


def write_timeline(translation: Translation, path: Path, note: str = "") -> None:
    """Write the figure to `path`, in the format of its suffix, with a frame above each segment if there is room.

    `note` is a line below the sentence.

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
    notes = _notes(translation, note)
    strip = 1.2 if pictures else 0.0
    above = (
        0.32 * (title.count("\n") + 1)
        + LINE * sum(text.count("\n") + 1 for text, _ in notes)
        + 0.12 * bool(notes)
    )
    height = strip + 1.2 + above
    figure = plt.figure(figsize=(WIDTH, height))
    across = [MARGIN / WIDTH, 1 - 2 * MARGIN / WIDTH]
    bars = figure.add_axes((across[0], 0.5 / height, across[1], 0.6 / height))
    if pictures:
        pictured = figure.add_axes((across[0], 1.15 / height, across[1], strip / height), sharex=bars)
        _draw_pictures(pictured, translation, pictures, strip)
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
    for start, end in translation.rests:
        bars.barh(0, (end - start) / fps, left=start / fps, height=0.86, color=(1, 1, 1, 0.8), edgecolor=REST,
                  hatch="////", linewidth=0).patches[0].set_gid("rest")  # fmt: skip
        if end - start >= 0.04 * translation.frames:
            bars.text((start + end) / 2 / fps, 0, "rest", ha="center", va="center", color=INK, fontsize=8,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    bars.set(xlim=(0, translation.frames / fps), ylim=(-0.5, 0.5), yticks=[], xlabel="time, seconds")
    for side in ("left", "right", "top"):
        bars.spines[side].set_visible(False)
    figure.suptitle(title, y=1 - 0.08 / height, va="top", fontsize=13, parse_math=False)
    top = 0.12 + 0.32 * (title.count("\n") + 1)
    for text, colour in notes:
        figure.text(
            0.5, 1 - top / height, text, ha="center", va="top", fontsize=9, color=colour, parse_math=False
        )
        top += LINE * (text.count("\n") + 1)
    try:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    finally:
        plt.close(figure)


def _notes(translation: Translation, note: str) -> list[tuple[str, str]]:
    """Returns lines below the sentence with their colours: warnings, score, model."""
    lines = [(f"Warning: {line}", WARNING) for line in translation.warnings]
    lines += [(line, INK) for line in (note, translation.score_line(), translation.trained_on) if line]
    return [(textwrap.fill(shortened(line, 600), 150), colour) for line, colour in lines]


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
