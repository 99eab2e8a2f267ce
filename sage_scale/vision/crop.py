"""Geometry of the stored square: scale a picture's short side and cut the middle, cut a region, or stretch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sage_scale.errors import ClipRejected

LARGEST_PIXELS = 8192 * 4320
"""Larger pictures (above 8K) are refused before they are decoded: a header can claim any size."""
LARGEST_RATIO = 8.0
"""Largest ratio of a picture's sides: scaling the short side of longer ones would take too much memory."""
_LEAST_SIDE = 16
"""Smallest side of a region, pixels."""
_SLANT = 0.01
"""Largest deviation of a display matrix from a multiple of 90 degrees, as a tangent."""


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to turn and mirror a stored picture before it is shown."""

    turns: int = 0
    """Counter-clockwise quarter turns."""
    mirrored: bool = False
    """Whether left and right are exchanged after the turns."""

    @classmethod
    def of_matrix(cls, matrix: Sequence[int]) -> Orientation:
        """Returns the orientation of an ISO 14496-12 display matrix of nine numbers, row by row.

        Other angles and shears give the stored orientation.
        """
        # A stored point (x, y), y downwards, is shown at (a x + c y, b x + d y).
        a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
        straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
        if max(abs(b), abs(c)) <= _SLANT * straight:
            mirrored = (a > 0) != (d > 0)
            return cls(2 if d < 0 else 0, mirrored)
        if max(abs(a), abs(d)) <= _SLANT * crossed:
            mirrored = (b > 0) == (c > 0)
            return cls(3 if b > 0 else 1, mirrored)
        return cls()

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """Returns the shown picture, a view of the stored one (H, W, ...)."""
        if self.turns:
            picture = np.rot90(picture, self.turns)
        return picture[:, ::-1] if self.mirrored else picture

    def stored(self, x: float, y: float) -> tuple[float, float]:
        """Returns the position in the stored picture of a point of the shown one, as shares of their sides."""
        if self.mirrored:
            x = 1 - x
        for _ in range(self.turns):  # each clockwise quarter turn takes (x, y) to (1 - y, x)
            x, y = 1 - y, x
        return x, y


UPRIGHT = Orientation()


@dataclass(frozen=True)
class SquarePlan:
    """The scaling of a stored picture and the `size` x `size` square in its middle."""

    width: int
    """Width to scale to, pixels, in the stored orientation."""
    height: int
    """Height to scale to, pixels, in the stored orientation."""
    size: int
    """Side of the square."""

    @property
    def middle(self) -> tuple[slice, slice]:
        """The square's rows and columns in the scaled picture."""
        top, left = (self.height - self.size) // 2, (self.width - self.size) // 2
        return slice(top, top + self.size), slice(left, left + self.size)


@dataclass(frozen=True)
class Region:
    """A square part of an upright picture, as shares of its sides; it is moved inside where it lies outside."""

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
    """Raises ClipRejected for pictures too large to decode safely, empty ones and slivers."""
    if width < 1 or height < 1:
        raise ClipRejected("unreadable", f"a picture of {width} x {height}")
    if width * height > LARGEST_PIXELS:
        raise ClipRejected("too-large", f"pictures of {width} x {height}")
    if max(width, height) > LARGEST_RATIO * min(width, height):
        raise ClipRejected("bad-shape", f"pictures of {width} x {height}")


def plan_square(width: int, height: int, size: int, *, stretch: bool, pixel_ratio: float = 1.0) -> SquarePlan:
    """Returns the plan for stored pictures of `width` x `height` pixels, each `pixel_ratio` times as wide as high."""
    check_picture(width, height)
    if stretch:
        return SquarePlan(size, size, size)
    shown = width * plausible(pixel_ratio)
    scale = size / min(shown, height)
    # An even margin, so that the cut is exactly the middle.
    margins = [round((side * scale - size) / 2) for side in (shown, height)]
    return SquarePlan(size + 2 * margins[0], size + 2 * margins[1], size)


def plan_cut(
    width: int,
    height: int,
    region: Region | None,
    orientation: Orientation = UPRIGHT,
    pixel_ratio: float = 1.0,
) -> Box:
    """Returns the part of a stored picture of `width` x `height` pixels that is shown as the square `region`, or its
    middle."""
    ratio = plausible(pixel_ratio)
    wide, high = width * ratio, float(height)
    side = min(wide, high)
    x, y = 0.5, 0.5
    if region is not None:
        upright_width, upright_height = (high, wide) if orientation.turns % 2 else (wide, high)
        side = min(side, max(_LEAST_SIDE, region.width * upright_width))
        x, y = orientation.stored(region.x, region.y + region.below * side / upright_height)
    left = min(max(x * wide - side / 2, 0.0), wide - side) / ratio
    top = min(max(y * high - side / 2, 0.0), high - side)
    columns, rows = max(1, round(side / ratio)), max(1, round(side))
    return Box(min(round(left), width - columns), min(round(top), height - rows), columns, rows)


def plausible(pixel_ratio: float) -> float:
    """Returns a pixel's ratio of width to height, 1 where a header claims an absurd one."""
    return pixel_ratio if 1 / LARGEST_RATIO <= pixel_ratio <= LARGEST_RATIO else 1.0
