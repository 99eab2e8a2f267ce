"""From a picture of any shape to the square that is stored: scale the short side, cut the middle; or
stretch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sage_scale.errors import ClipRejected

LARGEST_PIXELS = 8192 * 4320
"""Pictures above this (8K) are refused before a byte of them is decoded: a header can claim any size."""
LARGEST_RATIO = 8.0
"""Pictures longer than this many times their width are refused: scaling the short side would blow them up."""


@dataclass(frozen=True)
class SquarePlan:
    """How a stored picture (`width` x `height` before rotation) becomes a `size` x `size` square."""

    width: int
    """Width to scale to, pixels, in the stored orientation."""
    height: int
    """Height to scale to, pixels, in the stored orientation."""
    size: int
    """Side of the square."""
    quarter_turns: int
    """Counter-clockwise quarter turns after scaling."""

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """The (size, size, ...) middle of the scaled (height, width, ...) picture, upright."""
        top, left = (self.height - self.size) // 2, (self.width - self.size) // 2
        square = picture[top : top + self.size, left : left + self.size]
        return np.rot90(square, self.quarter_turns) if self.quarter_turns else square


def check_picture(width: int, height: int) -> None:
    """Refuse pictures too large to decode safely, empty ones and slivers."""
    if width < 1 or height < 1:
        raise ClipRejected("unreadable", f"a picture of {width} x {height}")
    if width * height > LARGEST_PIXELS:
        raise ClipRejected("too-large", f"pictures of {width} x {height}")
    if max(width, height) > LARGEST_RATIO * min(width, height):
        raise ClipRejected("bad-shape", f"pictures of {width} x {height}")


def plan_square(
    width: int, height: int, size: int, *, stretch: bool, rotation: int = 0, pixel_ratio: float = 1.0
) -> SquarePlan:
    """The plan for pictures of `width` x `height` pixels whose pixels are `pixel_ratio` times as wide as
    high.

    `rotation` is the display rotation in degrees, counter-clockwise, a multiple of 90 (else it is ignored).
    """
    check_picture(width, height)
    turns = (rotation // 90) % 4 if rotation % 90 == 0 else 0
    if stretch:
        return SquarePlan(size, size, size, turns)
    if not 1 / LARGEST_RATIO <= pixel_ratio <= LARGEST_RATIO:
        pixel_ratio = 1.0
    shown = width * pixel_ratio
    scale = size / min(shown, height)
    # An even margin, so that the cut is exactly the middle.
    margins = [round((side * scale - size) / 2) for side in (shown, height)]
    return SquarePlan(size + 2 * margins[0], size + 2 * margins[1], size, turns)
