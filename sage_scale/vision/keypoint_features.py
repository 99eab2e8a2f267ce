"""Keypoints as features: where the hands and the upper body are, in the signer's own measure."""

from __future__ import annotations

import numpy as np

from sage_scale.vision.keypoint_files import LEFT_SHOULDER, POINTS, RIGHT_SHOULDER


def keypoint_features(keypoints_TKC: np.ndarray, *, velocities: bool = False) -> np.ndarray:
    """float16 (T, 134), or (T, 268) with velocities, from keypoints (T, 67, 2); (0, 0) is a point not seen.

    Each frame is centred between the shoulders and scaled by the clip's median shoulder width, so that place
    and distance of the camera vanish. What was not seen stays 0; a frame without shoulders takes the nearest
    one's centre. Velocities are differences to the row before, 0 where the point was not seen in both.
    """
    points = keypoints_TKC.astype(np.float64)
    seen_TK = (points != 0).any(-1)
    centre_TC, width = _shoulders(points, seen_TK)
    places = np.where(seen_TK[..., None], (points - centre_TC[:, None]) / width, 0)
    parts = [places.reshape(len(points), 2 * POINTS)]
    if velocities:
        steps = np.zeros_like(places)
        both = seen_TK[1:] & seen_TK[:-1]
        steps[1:] = np.where(both[..., None], places[1:] - places[:-1], 0)
        parts.append(steps.reshape(len(points), 2 * POINTS))
    # A point far outside (a wrong detection) would overflow nothing but drown the rest.
    return np.clip(np.concatenate(parts, axis=1), -10, 10).astype(np.float16)


def _shoulders(points: np.ndarray, seen_TK: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre (T, 2) between the shoulders, and the clip's median shoulder width."""
    known = np.flatnonzero(seen_TK[:, LEFT_SHOULDER] & seen_TK[:, RIGHT_SHOULDER])
    if not len(known):
        middle = points[seen_TK].mean(0) if seen_TK.any() else np.zeros(2)
        return np.broadcast_to(middle, (len(points), 2)), 1.0
    left, right = points[known, LEFT_SHOULDER], points[known, RIGHT_SHOULDER]
    width = float(np.median(np.linalg.norm(left - right, axis=1)))
    nearest = known[np.abs(np.arange(len(points))[:, None] - known[None]).argmin(1)]
    centre_TC = (points[nearest, LEFT_SHOULDER] + points[nearest, RIGHT_SHOULDER]) / 2
    return centre_TC, max(width, 1e-3)
