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
_LEAST_SIDE = 16
"""Side of the smallest part that is cut out, pixels."""


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

    @property
    def middle(self) -> tuple[slice, slice]:
        """The square's rows and columns in the scaled picture."""
        top, left = (self.height - self.size) // 2, (self.width - self.size) // 2
        return slice(top, top + self.size), slice(left, left + self.size)

    def cut(self, picture: np.ndarray) -> np.ndarray:
        """The (size, size, ...) middle of the scaled (height, width, ...) picture, upright."""
        square = picture[self.middle]
        return np.rot90(square, self.quarter_turns) if self.quarter_turns else square


@dataclass(frozen=True)
class Region:
    """A square part of an upright picture, as shares of its sides; what lies outside is pushed inside."""

    x: float
    """Middle, share of the width from the left."""
    y: float
    """Middle, share of the height from above."""
    width: float
    """Side of the square, share of the picture's width."""
    below: float = 0.0
    """How far the square's own middle lies below (x, y), share of its side."""


@dataclass(frozen=True)
class Box:
    """A part of a stored picture, pixels."""

    left: int
    top: int
    width: int
    height: int


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
    turns = quarter_turns(rotation)
    if stretch:
        return SquarePlan(size, size, size, turns)
    shown = width * _plausible(pixel_ratio)
    scale = size / min(shown, height)
    # An even margin, so that the cut is exactly the middle.
    margins = [round((side * scale - size) / 2) for side in (shown, height)]
    return SquarePlan(size + 2 * margins[0], size + 2 * margins[1], size, turns)


def plan_cut(width: int, height: int, region: Region | None, turns: int, pixel_ratio: float = 1.0) -> Box:
    """The part of a stored picture of `width` x `height` pixels that is shown as the square `region`, or its middle.

    `turns` are the counter-clockwise quarter turns that make it upright.
    """
    ratio = _plausible(pixel_ratio)
    shown_width, shown_height = width * ratio, float(height)
    side = min(shown_width, shown_height)
    x, y = 0.5, 0.5
    if region is not None:
        upright_width, upright_height = (
            (shown_height, shown_width) if turns % 2 else (shown_width, shown_height)
        )
        side = min(side, max(_LEAST_SIDE, region.width * upright_width))
        # Back from the upright picture to the stored one: each clockwise quarter turn takes (x, y) to (1 - y, x).
        x, y = region.x, region.y + region.below * side / upright_height
        for _ in range(turns):
            x, y = 1 - y, x
    left = min(max(x * shown_width - side / 2, 0.0), shown_width - side) / ratio
    top = min(max(y * shown_height - side / 2, 0.0), shown_height - side)
    columns, rows = max(1, round(side / ratio)), max(1, round(side))
    return Box(min(round(left), width - columns), min(round(top), height - rows), columns, rows)


def quarter_turns(rotation: int) -> int:
    """Counter-clockwise quarter turns of a display rotation in degrees; 0 where it is no multiple of 90."""
    return (rotation // 90) % 4 if rotation % 90 == 0 else 0


def _plausible(pixel_ratio: float) -> float:
    return pixel_ratio if 1 / LARGEST_RATIO <= pixel_ratio <= LARGEST_RATIO else 1.0
