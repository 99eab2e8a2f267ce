"""A keypoint track: the points of one signer by name, in pixels, with confidence and frame rate.

Shape letters: T frames, K points, C coordinates (x, y, z). Names are those of `names.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sage_scale.errors import ClipRejected
from sage_scale.keypoints.names import BODY_25, BODY_33, HOLISTIC_75, LEFT_HAND, OPENPOSE_67, RIGHT_HAND
from sage_scale.untrusted.display import shortened

__all__ = [
    "BODY_25", "BODY_33", "HOLISTIC_75", "LEFT_HAND", "OPENPOSE_67", "RIGHT_HAND", "KeypointTrack", "track_of",
]  # fmt: skip

LARGEST_COORDINATE = 1e6
"""A frame with a coordinate beyond is damaged: no picture is so large, and squares of it would overflow."""
LEAST_FPS, MOST_FPS = 1.0, 1000.0


@dataclass(frozen=True, eq=False, kw_only=True)
class KeypointTrack:
    """The points of one signer over time. Frame i stands for the time i / fps seconds."""

    names: tuple[str, ...]
    """K names, each once."""
    points_TKC: np.ndarray
    """float32 (T, K, 3): x and y in pixels of the picture, z in the source's unit; 0 where not seen; always finite."""
    confidence_TK: np.ndarray
    """float32 (T, K), 0 or more; 0 is a point not seen."""
    fps: float
    """Frames per second, 1 to 1000."""
    width: float
    """The picture's width, pixels."""
    height: float
    """The picture's height, pixels."""
    has_z: bool
    """Whether the source gives z; without it z is 0."""

    def __post_init__(self) -> None:
        """Raises ValueError for arrays whose shape or type is not that of the names."""
        frames, points = len(self.points_TKC), len(self.names)
        if self.points_TKC.shape != (frames, points, 3) or self.points_TKC.dtype != np.float32:
            raise ValueError(f"points {self.points_TKC.shape} {self.points_TKC.dtype} for {points} names")
        if self.confidence_TK.shape != (frames, points) or self.confidence_TK.dtype != np.float32:
            raise ValueError(f"confidence {self.confidence_TK.shape} {self.confidence_TK.dtype}")
        if len(set(self.names)) != points:
            raise ValueError("a name occurs twice")

    def __len__(self) -> int:
        return len(self.points_TKC)

    @property
    def seen_TK(self) -> np.ndarray:
        """bool (T, K): whether the point was seen."""
        return self.confidence_TK > 0

    def part(self, start_s: float, end_s: float | None = None) -> KeypointTrack:
        """Returns the frames whose times lie in [start_s, end_s); without an end all from the start on."""
        first = _frame_at(start_s, self.fps, len(self))
        last = len(self) if end_s is None else max(first, _frame_at(end_s, self.fps, len(self)))
        return self.replace(
            points_TKC=self.points_TKC[first:last], confidence_TK=self.confidence_TK[first:last]
        )

    def select(self, names: Sequence[str]) -> KeypointTrack:
        """Returns these points in this order. A name that the track does not have is a point never seen."""
        places = {name: place for place, name in enumerate(self.names)}
        points_TKC = np.zeros((len(self), len(names), 3), np.float32)
        confidence_TK = np.zeros((len(self), len(names)), np.float32)
        known = [number for number, name in enumerate(names) if name in places]
        columns = [places[names[number]] for number in known]
        points_TKC[:, known] = self.points_TKC[:, columns]
        confidence_TK[:, known] = self.confidence_TK[:, columns]
        return self.replace(names=tuple(names), points_TKC=points_TKC, confidence_TK=confidence_TK)

    def replace(self, **changes: object) -> KeypointTrack:
        """Returns the track with some fields changed, as `dataclasses.replace`."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def track_of(
    names: Sequence[str],
    points_TKC: np.ndarray,
    confidence_TK: np.ndarray,
    *,
    fps: float,
    width: float,
    height: float,
) -> KeypointTrack:
    """Returns a track made of numbers from outside: points (T, K, 2) or (T, K, 3), confidence (T, K).

    A point whose x and y are both NaN, or whose confidence is not above 0, was not seen. Any other number that is not
    finite, or a coordinate beyond a million, rejects its frame: none of its points counts as seen. Raises ClipRejected
    `bad-keypoints` for no frames, names that repeat, a picture without sides or a frame rate outside 1 to 1000.
    """
    if not len(points_TKC) or not len(names):
        raise ClipRejected("bad-keypoints", "no frames" if len(names) else "no points")
    if not LEAST_FPS <= fps <= MOST_FPS:
        raise ClipRejected("bad-keypoints", f"{fps:g} frames a second, outside 1 to 1000")
    if not (0 < width <= LARGEST_COORDINATE and 0 < height <= LARGEST_COORDINATE):
        raise ClipRejected("bad-keypoints", f"a picture of {width:g} x {height:g} pixels")
    if len(set(names)) != len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ClipRejected("bad-keypoints", f"two points are named {shortened(twice, 80)}")
    with np.errstate(invalid="ignore"):  # comparing NaN
        given_TK = ~np.isnan(points_TKC[..., :2]).all(-1) & ~(confidence_TK <= 0)
        sound_TK = (np.abs(points_TKC) <= LARGEST_COORDINATE).all(-1) & np.isfinite(confidence_TK)
    seen_TK = given_TK & (sound_TK | ~given_TK).all(-1)[:, None]
    points = np.zeros((len(points_TKC), len(names), 3), np.float32)
    depth = points_TKC.shape[-1]
    points[..., :depth] = np.where(seen_TK[..., None], points_TKC, 0)
    return KeypointTrack(
        names=tuple(names),
        points_TKC=points,
        confidence_TK=np.where(seen_TK, confidence_TK, 0).astype(np.float32),
        fps=float(fps),
        width=float(width),
        height=float(height),
        has_z=depth == 3,
    )


def _frame_at(time_s: float, fps: float, frames: int) -> int:
    """Returns the first of the frames whose time is not before `time_s`, up to a millionth of a frame."""
    return min(frames, max(0, math.ceil(min(time_s * fps, frames) - 1e-6)))
