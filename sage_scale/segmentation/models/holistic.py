"""Input of the published segmenters: the 75 points of MediaPipe Holistic, centred and scaled by the shoulders.

A track of OpenPose (BODY_25) has no eye corners, mouth corners, or fingers of the body. They are filled in: the fingers
from the hand, else beside the wrist; the others at a fixed distance in shoulder widths from the nearest point.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sage_scale.keypoints.names import BODY_33, HOLISTIC_75, LEFT_HAND, RIGHT_HAND
from sage_scale.keypoints.track import KeypointTrack

SHOULDERS = (BODY_33.index("body.left_shoulder"), BODY_33.index("body.right_shoulder"))
_PICTURE = {
    "left_eye_inner": ("left_eye", -0.04324, -0.00299),
    "left_eye_outer": ("left_eye", 0.03942, 0.00363),
    "right_eye_inner": ("right_eye", 0.03863, -0.00252),
    "right_eye_outer": ("right_eye", -0.03705, 0.00306),
    "mouth_left": ("nose", 0.07921, 0.10891),
    "mouth_right": ("nose", -0.06872, 0.10617),
    "left_pinky": ("left_wrist", -0.03942, 0.11312),
    "left_index": ("left_wrist", -0.08496, 0.04398),
    "left_thumb": ("left_wrist", -0.09627, 0.00781),
    "right_pinky": ("right_wrist", 0.03942, 0.11312),
    "right_index": ("right_wrist", 0.08496, 0.04398),
    "right_thumb": ("right_wrist", 0.09627, 0.00781),
    "left_foot_index": ("left_big_toe", 0.0, 0.0),
    "right_foot_index": ("right_big_toe", 0.0, 0.0),
}
"""Point of the body -> point that it is filled in from, and its distance to the right and down, shoulder widths."""
_FINGERS = {"pinky": 17, "index": 5, "thumb": 3}
"""Fingers of the body -> point of the hand: the knuckles of two fingers, the thumb's joint."""


def holistic_75(track: KeypointTrack) -> KeypointTrack:
    """Returns the track's 33 body points and both hands, in MediaPipe's order; points that the source does not have
    are filled in."""
    chosen = track.select(HOLISTIC_75)
    lacking = {name for name in BODY_33 if name not in track.names}
    points, confidence = chosen.points_TKC.copy(), chosen.confidence_TK.copy()
    _, width = shoulder_frame(chosen)
    for name, (source, right, down) in _PICTURE.items():
        if f"body.{name}" not in lacking:
            continue
        target = HOLISTIC_75.index(f"body.{name}")
        place = track.select([f"body.{source}"])
        points[:, target] = place.points_TKC[:, 0] + np.array([right, down, 0]) * width
        confidence[:, target] = place.confidence_TK[:, 0]
        side, _, finger = name.partition("_")
        if finger in _FINGERS:
            hand = LEFT_HAND if side == "left" else RIGHT_HAND
            knuckle = HOLISTIC_75.index(hand[_FINGERS[finger]])
            seen_T = chosen.confidence_TK[:, knuckle] > 0
            points[seen_T, target] = chosen.points_TKC[seen_T, knuckle]
            confidence[seen_T, target] = chosen.confidence_TK[seen_T, knuckle]
    points[confidence <= 0] = 0
    return dataclasses.replace(chosen, points_TKC=points, confidence_TK=confidence)


def shoulder_frame(track: KeypointTrack) -> tuple[np.ndarray, float]:
    """Returns the middle of the shoulders, float64 (3,), and their distance, means over the frames with both.

    The distance is 0 where no frame has both. The first 33 points are MediaPipe's.
    """
    seen_T = (track.confidence_TK[:, SHOULDERS] > 0).all(1)
    pair_T23 = track.points_TKC[seen_T][:, SHOULDERS].astype(np.float64)
    if not len(pair_T23):
        return np.zeros(3), 0.0
    return pair_T23.mean((0, 1)), float(np.linalg.norm(pair_T23[:, 0] - pair_T23[:, 1], axis=1).mean())


def by_shoulders(track: KeypointTrack) -> tuple[np.ndarray, np.ndarray]:
    """Returns the 75 points, float64 (T, 75, 3), with the shoulders' middle at 0 and one shoulder width as 1, and which
    were seen, bool (T, 75). Without shoulders no point counts as seen.
    """
    track = holistic_75(track)
    centre, width = shoulder_frame(track)
    seen_TK = track.confidence_TK > 0
    if width <= 0:
        seen_TK = np.zeros_like(seen_TK)
    return (track.points_TKC.astype(np.float64) - centre) / (width or 1.0), seen_TK
