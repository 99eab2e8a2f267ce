"""The tagger `motion`: where signs begin, from the movement of the hands, without training.

Before a sign the hand travels and changes its shape; when the sign begins both are nearly done. So a sign's
onset is a *fall* of change: much change just before, little just after. On real DGS the fingers' change peaks
two to three frames (25 fps) before the annotated start and is lowest one after it, and the hand is highest at
the start. The evidence is

    keypoints:  per hand, by its share of the movement,  fall(fingers) + 0.3 fall(wrist) + 0.6 height
    pictures:   fall(change of the small grey picture above its noise)

each normalised over the clip. Onsets are its peaks; frames before the first and after the last movement are O. The
constants were chosen on 272 clips of real DGS; docs/results/segmentation.md has their scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sage_scale.segmentation.rules import B, I, O
from sage_scale.vision.keypoints import (
    LEFT_HAND,
    LEFT_SHOULDER,
    LEFT_WRIST,
    NECK,
    RIGHT_HAND,
    RIGHT_SHOULDER,
    RIGHT_WRIST,
)

SMOOTH_S = 0.04
"""Standard deviation of the smoothing of each signal, seconds."""
WRIST_WEIGHT = 0.3
"""Weight of the fall of the wrist's speed, against 1 for the fingers'."""
HEIGHT_WEIGHT = 0.6
"""Weight of the wrist's height above the clip's mean."""
LEAST_EVIDENCE = 0.25
"""A peak below this many standard deviations of the clip's evidence is no onset."""
LEAST_GAP_S = 0.16
"""Least time between onsets, seconds (real DGS, 10th percentile: 0.2)."""
REST = 0.1
"""Hands rest while they move less than this share of the clip's typical (75th percentile) speed."""
LEAST_REST_S = 0.2
"""A shorter standstill at the clip's start or end is part of a sign, seconds."""

LEAST_PAUSE_S = 0.3
"""A shorter standstill between two signs is no pause between sentences, seconds."""


@dataclass(frozen=True)
class Movement:
    """Movement of the hands in each of T frames."""

    speed_T: np.ndarray
    """Amount of movement, in any unit, from the frame before (frame 0: as frame 1)."""
    evidence_T: np.ndarray
    """Evidence that a sign begins here."""


def motion_labels(movement: Movement, fps: float) -> np.ndarray:
    """Returns labels int8 (T,), O = 0, I = 1, B = 2, at `fps` frames per second; all O where nothing moves."""
    total = len(movement.speed_T)
    labels_T = np.full(total, O, np.int8)
    span = signed_span(movement.speed_T, fps)
    if span is None:
        return labels_T
    first, last = span
    gap = max(1, round(LEAST_GAP_S * fps))
    deviation = float(movement.evidence_T[first:last].std())
    onsets = peaks(movement.evidence_T, LEAST_EVIDENCE * deviation, gap)
    labels_T[first:last] = I
    labels_T[onsets[(onsets >= first + gap) & (onsets < last)]] = B
    labels_T[first] = B
    return labels_T


def resting(movement: Movement, fps: float) -> np.ndarray:
    """Returns bool (T,): frames of rests of at least LEAST_PAUSE_S within the clip and at its ends.

    `motion_labels` marks the rests at the ends only, since a short standstill is often part of a sign.
    """
    level = smooth(movement.speed_T, SMOOTH_S * fps)
    typical = float(np.percentile(level, 75)) if len(level) else 0.0
    still_T = np.concatenate([[False], level <= REST * typical, [False]])
    edges = np.flatnonzero(still_T[1:] != still_T[:-1]).reshape(-1, 2)
    rest_T = np.zeros(len(level), bool)
    for first, after in edges[np.diff(edges)[:, 0] >= LEAST_PAUSE_S * fps].tolist():
        rest_T[first:after] = True
    return rest_T


def keypoint_movement(keypoints_TKC: np.ndarray, fps: float) -> Movement:
    """Returns the movement of both hands from keypoints (T, 67, 2); speeds in shoulder widths a second."""
    points = keypoints_TKC.astype(np.float64)
    scale = fps / _shoulder_width(points)
    fingers, wrists, heights = [], [], []
    for hand, wrist in ((LEFT_HAND, LEFT_WRIST), (RIGHT_HAND, RIGHT_WRIST)):
        seen_TK = (points[:, hand] != 0).any(-1)
        shape = points[:, hand] - points[:, hand.start : hand.start + 1]  # from the hand's own wrist
        seen_shape_TK = seen_TK & seen_TK[:, :1]
        fingers.append(_change(shape[:, 1:], seen_shape_TK[:, 1:]) * scale)
        body_wrist = points[:, wrist : wrist + 1]
        wrists.append(_change(body_wrist, (body_wrist != 0).any(-1)) * scale)
        heights.append(_bridged(points[:, NECK, 1] - points[:, wrist, 1], (body_wrist != 0).any(-1)[:, 0]))
    total = sum(wrist.mean() for wrist in wrists) + 1e-9
    evidence_T = np.zeros(len(points))
    for finger_T, wrist_T, height_T in zip(fingers, wrists, heights):
        share = wrist_T.mean() / total  # the other hand of a one-handed sign only adds noise
        falling_T = fall(finger_T, fps) + WRIST_WEIGHT * fall(wrist_T, fps)
        evidence_T += share * (falling_T + HEIGHT_WEIGHT * standardised(height_T))
    return Movement(np.hypot(*wrists) + np.hypot(*fingers), evidence_T)


def grey_movement(grey_THW: np.ndarray, fps: float) -> Movement:
    """Returns the movement from small grey pictures uint8 (T, H, W) of a still camera."""
    if len(grey_THW) < 2:
        return Movement(np.zeros(len(grey_THW)), np.zeros(len(grey_THW)))
    change = np.abs(np.diff(grey_THW.astype(np.int16), axis=0)).astype(np.float32)
    noise = max(2.0, 3.0 * float(np.median(change)))  # most of the picture is still
    moving = np.maximum(change - noise, 0).mean((1, 2)).astype(np.float64) * fps
    speed_T = np.concatenate([moving[:1], moving])
    return Movement(speed_T, fall(speed_T, fps))


def fall(speed_T: np.ndarray, fps: float) -> np.ndarray:
    """Returns (T,): the smoothed, standardised change one frame (at 25 fps) before each frame, less the one after.

    `speed_T[t]` is the change from frame t - 1 to frame t.
    """
    step = max(1, round(0.04 * fps))
    level = smooth(standardised(speed_T), SMOOTH_S * fps)
    padded = np.pad(level, step, mode="edge")
    return padded[: len(level)] - padded[2 * step :]


def peaks(values_T: np.ndarray, least: float, gap: int) -> np.ndarray:
    """Returns frames, int64, of local maxima of at least `least`; of two nearer than `gap` frames the higher one."""
    inner = values_T[1:-1]
    top = np.flatnonzero((inner >= values_T[:-2]) & (inner > values_T[2:]) & (inner >= least)) + 1
    kept: list[int] = []
    for frame in top[np.argsort(-values_T[top], kind="stable")].tolist():
        if all(abs(frame - other) >= gap for other in kept):
            kept.append(frame)
    return np.array(sorted(kept), dtype=np.int64)


def signed_span(speed_T: np.ndarray, fps: float) -> tuple[int, int] | None:
    """Returns [first, last): the clip without the rests at its ends; None where nothing moves."""
    level = smooth(speed_T, SMOOTH_S * fps)
    typical = float(np.percentile(level, 75)) if len(level) else 0.0
    if typical <= 0:
        return None
    moving = np.flatnonzero(level > REST * typical)
    least = LEAST_REST_S * fps
    first = int(moving[0]) if moving[0] >= least else 0
    last = int(moving[-1]) + 1 if len(level) - 1 - moving[-1] >= least else len(level)
    return first, last


def smooth(values_T: np.ndarray, sigma: float) -> np.ndarray:
    """Returns (T,) smoothed by a Gaussian with mirrored ends; `sigma` in frames."""
    radius = int(np.ceil(3 * sigma))
    if radius < 1 or len(values_T) < 2:
        return np.asarray(values_T, np.float64)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    padded = np.pad(np.asarray(values_T, np.float64), radius, mode="symmetric")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")


def standardised(values_T: np.ndarray) -> np.ndarray:
    """Returns (T,) with mean 0 and deviation 1; zeros where nothing varies."""
    deviation = float(values_T.std())
    return (values_T - values_T.mean()) / deviation if deviation > 1e-9 else np.zeros(len(values_T))


def _change(points_TKC: np.ndarray, seen_TK: np.ndarray) -> np.ndarray:
    """Returns the mean movement (T,) of the points from the frame before, over those seen in both frames."""
    both = seen_TK[1:] & seen_TK[:-1]
    step = np.linalg.norm(np.diff(points_TKC, axis=0), axis=-1)
    number = both.sum(1)
    moved = _bridged((step * both).sum(1) / np.maximum(number, 1), number > 0)
    return np.concatenate([moved[:1], moved]) if len(moved) else np.zeros(len(points_TKC))


def _bridged(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns the values with gaps interpolated linearly; zeros where nothing is known."""
    where = np.flatnonzero(known)
    return np.interp(np.arange(len(values)), where, values[where]) if len(where) else np.zeros(len(values))


def _shoulder_width(points: np.ndarray) -> float:
    pair = points[:, [LEFT_SHOULDER, RIGHT_SHOULDER]]
    seen = (pair != 0).any(-1).all(-1)
    width = float(np.median(np.linalg.norm(pair[seen, 0] - pair[seen, 1], axis=1))) if seen.any() else 0.0
    return width if width > 0 else 1.0
