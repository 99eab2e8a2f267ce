"""Rows of the backbone `keypoints`: a signer's points around the middle of the shoulders, in shoulder widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sage_scale.errors import ClipRejected
from sage_scale.keypoints.cleaning import completed
from sage_scale.keypoints.names import LAYOUTS
from sage_scale.keypoints.people import SHOULDERS
from sage_scale.keypoints.track import KeypointTrack

FEATURES_VERSION = "2 (true aspect of the picture)"
"""Version of these numbers, recorded with a dataset. 1, of sage-scale 0.1.0, took x and y of `.pose` files as shares of
the picture's sides, without its aspect; rows from `.npz` files of shares are the same in both."""
FARTHEST = 10.0
"""Largest number of a row: a point far outside (a wrong detection) would dominate the others."""


def keypoint_features(
    track: KeypointTrack,
    *,
    layout: str = "openpose",
    velocities: bool = False,
    z: bool = False,
) -> np.ndarray:
    """Returns float16 (T, W), W of `names.row_width`: x, y, with `z` also z, of each point of LAYOUTS[layout]; 0 where
    it was not seen.

    Each frame is centred between the shoulders and scaled by the track's median shoulder width, so that position and
    distance of the camera cancel; a frame without shoulders takes the nearest one's centre. z counts as a share of the
    picture's width, as MediaPipe gives it, from the shoulders for the body and from its wrist for a hand. `velocities`
    adds to a row the differences to the row before, 0 for a point that was not seen in both. Raises ClipRejected
    `bad-keypoints` for a track without any point of the layout.
    """
    names = LAYOUTS[layout]
    chosen = completed(track, names)
    if not set(names) & set(track.names):
        raise ClipRejected("bad-keypoints", f"none of its points is one of the layout {layout}")
    points_TKC = chosen.points_TKC[..., : 3 if z else 2].astype(np.float64)
    if z:
        points_TKC[..., 2] *= track.width
    left, right = (names.index(name) for name in SHOULDERS)
    centre_TC, width = _shoulder_frame(points_TKC, chosen.seen_TK, left, right, track.height)
    centres_TKC = np.repeat(centre_TC[:, None], len(names), axis=1)
    if z:
        centres_TKC[:, [name.split(".")[0] != "body" for name in names], 2] = 0
    places = np.where(chosen.seen_TK[..., None], (points_TKC - centres_TKC) / width, 0)
    parts = [places.reshape(len(places), -1)]
    if velocities:
        steps = np.zeros_like(places)
        both = chosen.seen_TK[1:] & chosen.seen_TK[:-1]
        steps[1:] = np.where(both[..., None], places[1:] - places[:-1], 0)
        parts.append(steps.reshape(len(places), -1))
    return np.clip(np.concatenate(parts, axis=1), -FARTHEST, FARTHEST).astype(np.float16)


def _shoulder_frame(
    points_TKC: np.ndarray, seen_TK: np.ndarray, left: int, right: int, height: float
) -> tuple[np.ndarray, float]:
    """Returns the centre (T, C) between the shoulders, and the track's median shoulder width in the picture.

    Without shoulders: the mean of all points seen, and the picture's height.
    """
    known = np.flatnonzero(seen_TK[:, left] & seen_TK[:, right])
    if not len(known):
        middle = points_TKC[seen_TK].mean(0) if seen_TK.any() else np.zeros(points_TKC.shape[-1])
        return np.broadcast_to(middle, (len(points_TKC), len(middle))), height
    lefts, rights = points_TKC[known, left], points_TKC[known, right]
    width = float(np.median(np.linalg.norm((lefts - rights)[:, :2], axis=1)))
    nearest = known[np.abs(np.arange(len(points_TKC))[:, None] - known[None]).argmin(1)]
    centre_TC = (points_TKC[nearest, left] + points_TKC[nearest, right]) / 2
    return centre_TC, max(width, 1e-3 * height)


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """What the numbers of a row of `keypoint_features` are."""

    names: tuple[str, ...]
    """K points."""
    axes: int
    """2 for x and y, 3 with z."""
    velocities: bool

    @classmethod
    def recorded(cls, vision: Mapping[str, Any], width: int) -> RowLayout | None:
        """Returns the layout that a dataset's recorded recipe section `vision` states.

        None for features of another backbone, and where a row has not the `width` that follows from it.
        """
        names = LAYOUTS.get(str(vision.get("keypoint_layout", "openpose")))
        if vision.get("backbone") != "keypoints" or names is None:
            return None
        axes = 3 if vision.get("keypoint_z") else 2
        velocities = bool(vision.get("keypoint_velocities"))
        found = cls(names=names, axes=axes, velocities=velocities)
        return found if width == len(names) * axes * (1 + velocities) else None

    def parts(self, rows_TW: np.ndarray) -> list[np.ndarray]:
        """Returns the points (T, K, C) of rows, and with velocities these, too. Raises ValueError for another width."""
        shape = (1 + self.velocities, len(self.names), self.axes)
        return list(rows_TW.reshape(len(rows_TW), *shape).swapaxes(0, 1))
