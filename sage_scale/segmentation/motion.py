"""The tagger `motion`: sign boundaries from the movement of the hands, without training.

A sign begins where the hands arrive: between signs they travel fast, and at a sign's start and end they slow
down or turn. So the boundaries are minima of the hands' speed, prominent against the clip's own typical
speed; the clip's start and end are O while the hands rest. Scored against human boundaries in
docs/results/segmentation.md.
"""

from __future__ import annotations

import numpy as np

from sage_scale.segmentation.rules import B, I, O
from sage_scale.vision.keypoint_files import (
    LEFT_HAND,
    LEFT_SHOULDER,
    LEFT_WRIST,
    RIGHT_HAND,
    RIGHT_SHOULDER,
    RIGHT_WRIST,
)

SMOOTH_S = 0.045
"""Standard deviation of the smoothing of the speed, seconds."""
PROMINENCE = 0.12
"""A minimum counts when speed rises by this share of the clip's typical speed on both sides."""
LEAST_GAP_S = 0.16
"""Boundaries stand at least this far apart, seconds (the shortest signs of real DGS, 10th percentile:
0.2)."""
REST = 0.12
"""Hands rest while their speed is below this share of the clip's typical speed."""
LEAST_REST_S = 0.2
"""A shorter standstill at the clip's start or end is part of a sign, seconds."""


def motion_labels(speed_T: np.ndarray, fps: float) -> np.ndarray:
    """Labels int8 (T,) from the hands' speed (T,), in any unit, at `fps` frames per second."""
    total = len(speed_T)
    labels_T = np.full(total, I, np.int8)
    smooth_T = smooth(speed_T, SMOOTH_S * fps)
    typical = float(np.percentile(smooth_T, 75)) if total else 0.0
    if typical <= 0:
        return np.zeros(total, np.int8)
    first, last = _signed_span(smooth_T / typical, fps)
    cuts = minima(smooth_T[first:last] / typical, PROMINENCE, max(1, round(LEAST_GAP_S * fps))) + first
    labels_T[:first] = O
    labels_T[last:] = O
    labels_T[first] = B
    labels_T[cuts] = B
    return labels_T


def keypoint_speed(keypoints_TKC: np.ndarray, fps: float) -> np.ndarray:
    """The hands' speed (T,) in shoulder widths per second, from keypoints (T, 67, 2)."""
    left = _hand_speed(keypoints_TKC, LEFT_HAND, LEFT_WRIST)
    right = _hand_speed(keypoints_TKC, RIGHT_HAND, RIGHT_WRIST)
    shoulders_TC = keypoints_TKC[:, LEFT_SHOULDER] - keypoints_TKC[:, RIGHT_SHOULDER]
    width_T = np.linalg.norm(shoulders_TC, axis=1)
    seen = (keypoints_TKC[:, [LEFT_SHOULDER, RIGHT_SHOULDER]] != 0).any(-1).all(-1) & (width_T > 0)
    width = float(np.median(width_T[seen])) if seen.any() else 1.0
    return np.hypot(left, right) * fps / width


def grey_speed(grey_THW: np.ndarray, fps: float) -> np.ndarray:
    """How much of the picture moves, (T,): the mean change between frames above the clip's own noise, a
    second."""
    if len(grey_THW) < 2:
        return np.zeros(len(grey_THW))
    values = grey_THW.astype(np.float32)
    change = np.abs(np.diff(values, axis=0))
    noise = max(2.0, 3.0 * float(np.median(change)))  # most of the picture is still
    moving = np.maximum(change - noise, 0).mean((1, 2)) * fps
    return _between_frames(moving)


def smooth(values_T: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing of (T,) with mirrored ends; `sigma` in frames."""
    radius = int(np.ceil(3 * sigma))
    if radius < 1 or len(values_T) < 2:
        return np.asarray(values_T, np.float64)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    padded = np.pad(values_T.astype(np.float64), radius, mode="symmetric")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


def minima(values_T: np.ndarray, prominence: float, gap: int) -> np.ndarray:
    """Frames (sorted) of the minima that are `prominence` below the maxima on both sides, deepest first kept
    when two are nearer than `gap` frames; the middle of a flat one."""
    total = len(values_T)
    found: list[tuple[float, int]] = []
    t = 1
    while t < total - 1:
        end = t
        while end < total - 1 and values_T[end + 1] == values_T[t]:
            end += 1
        if values_T[t - 1] > values_T[t] and end < total - 1 and values_T[end + 1] > values_T[t]:
            middle = (t + end) // 2
            depth = min(_rise(values_T, t, -1), _rise(values_T, end, 1))
            if depth >= prominence:
                found.append((depth, middle))
        t = end + 1
    kept: list[int] = []
    for _, frame in sorted(found, key=lambda pair: (-pair[0], pair[1])):
        if all(abs(frame - other) >= gap for other in kept):
            kept.append(frame)
    return np.array(sorted(kept), dtype=np.int64)


def _rise(values_T: np.ndarray, frame: int, step: int) -> float:
    """How far the values climb from a minimum in one direction before they fall below it."""
    level = values_T[frame]
    top = level
    t = frame + step
    while 0 <= t < len(values_T) and values_T[t] >= level:
        top = max(top, values_T[t])
        t += step
    return float(top - level)


def _signed_span(relative_T: np.ndarray, fps: float) -> tuple[int, int]:
    """[first, last) frames between the rests at either end."""
    moving = np.flatnonzero(relative_T > REST)
    if not len(moving):
        return 0, len(relative_T)
    least = LEAST_REST_S * fps
    first = int(moving[0]) if moving[0] >= least else 0
    last = int(moving[-1]) + 1 if len(relative_T) - 1 - moving[-1] >= least else len(relative_T)
    return first, last


def _hand_speed(keypoints_TKC: np.ndarray, hand: slice, wrist: int) -> np.ndarray:
    """Mean movement (T,) of the hand's points a frame; frames where it is not seen are bridged."""
    points = np.concatenate([keypoints_TKC[:, hand], keypoints_TKC[:, wrist : wrist + 1]], axis=1)
    seen_TK = (points != 0).any(-1)
    both = seen_TK[1:] & seen_TK[:-1]
    step = np.linalg.norm(np.diff(points.astype(np.float64), axis=0), axis=-1)
    count = both.sum(1)
    moved = np.where(count > 0, (step * both).sum(1) / np.maximum(count, 1), np.nan)
    known = np.flatnonzero(~np.isnan(moved))
    if not len(known):
        return np.zeros(len(points))
    return _between_frames(np.interp(np.arange(len(moved)), known, moved[known]))


def _between_frames(change: np.ndarray) -> np.ndarray:
    """(T,) at the frames from (T - 1,) between them: the mean of before and after."""
    padded = np.concatenate([change[:1], change, change[-1:]])
    return (padded[1:] + padded[:-1]) / 2
