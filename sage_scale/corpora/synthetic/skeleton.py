"""The joints of the signer: what render.py draws over, and the same signer as a keypoint track without pictures.

Coordinates are the picture's, x to the right and y up, -1 to 1 at the edges before the camera; z towards the viewer.
Left and right are the signer's: the signer's right hand is on the picture's left. T frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sage_scale.corpora.synthetic.animation import FPS, Motion
from sage_scale.corpora.synthetic.articulation import ANGLE, FLIP, LENGTH, SHAPE, U, Y, Z
from sage_scale.corpora.synthetic.signers import Signer
from sage_scale.keypoints.names import HAND_POINTS, HOLISTIC_75
from sage_scale.keypoints.track import KeypointTrack

SIZE = 128
"""Side of a frame, pixels."""
ZOOM, DROP = 1.12, -0.06
"""The camera: the signer fills the picture from the waist up."""
HAND = 1.2
"""Hands are a fifth too large, so that handshapes stay apart on frames of 64 pixels."""
NECK_Y = 0.30
_HIP_Y = -0.8
_WRIST = 0.115
"""From the palm's centre to the wrist, in lengths of the hand."""
KNUCKLES = (0.062, 0.021, -0.021, -0.060)
"""Places of the four fingers across the palm, from the index finger on."""
FINGERS = (0.168, 0.186, 0.172, 0.140)
"""Their lengths."""
DISTAL = 0.5
"""Where the distal joint lies between the middle joint and the tip, which the drawing joins by one straight part."""


@dataclass(frozen=True, eq=False)
class Hand:
    """The joints of one hand in the picture, each (T, 2)."""

    wrist: np.ndarray
    thumb: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Base, middle joint and tip."""
    fingers: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]
    """The same of index, middle, ring finger and pinky."""

    def points(self) -> Iterable[np.ndarray]:
        """Yields the 21 points in the order of HAND_POINTS."""
        yield self.wrist
        for base, middle, tip in (self.thumb, *self.fingers):
            yield base
            yield middle
            yield middle + DISTAL * (tip - middle)
            yield tip


def skeleton_track(motion: Motion, signer: Signer) -> KeypointTrack:
    """Returns the keypoints of a signed sentence at 25 frames a second: HOLISTIC_75 without legs, every point seen.

    The places are those at which `render` draws, in its pixels; z is minus the distance towards the viewer, scaled
    alike. Points inside the face stand at the places of the drawn features.
    """
    side = 1.0 if signer.left_handed else -1.0
    body = trunk_sway(motion, signer, side)
    flat = {f"body.{name}": point for name, point in _face(motion, head_place(motion, signer, body)).items()}
    places = {name: np.column_stack([point, np.zeros(len(point))]) for name, point in flat.items()}
    for motion_of_hand, hand_side in ((motion.strong, side), (motion.weak, -side)):
        name = "left" if hand_side > 0 else "right"
        turned = picture_hand(motion_of_hand, hand_side, signer)
        shoulder, elbow, wrist = arm_joints(turned, hand_side, body, signer)
        depth = turned[:, Z]
        points = [np.column_stack([at, depth]) for at in hand_joints(turned, hand_side, signer).points()]
        places |= {f"{name}_hand.{joint}": point for joint, point in zip(HAND_POINTS.split(), points)}
        hip = body + np.array([hand_side * 0.6 * signer.shoulders, _HIP_Y])
        places |= {
            f"body.{name}_shoulder": shoulder, f"body.{name}_elbow": elbow, f"body.{name}_wrist": wrist,
            f"body.{name}_hip": np.column_stack([hip, np.zeros(len(hip))]),
            f"body.{name}_thumb": points[2], f"body.{name}_index": points[5], f"body.{name}_pinky": points[17],
        }  # fmt: skip
    points_TKC = np.zeros((motion.frames, len(HOLISTIC_75), 3), np.float32)
    confidence_TK = np.zeros((motion.frames, len(HOLISTIC_75)), np.float32)
    for column, name in enumerate(HOLISTIC_75):
        if name in places:
            points_TKC[:, column] = to_camera(places[name])
            confidence_TK[:, column] = 1.0
    return KeypointTrack(
        names=HOLISTIC_75, points_TKC=points_TKC, confidence_TK=confidence_TK, fps=float(FPS), width=float(SIZE),
        height=float(SIZE), has_z=True,
    )  # fmt: skip


def to_camera(places: np.ndarray) -> np.ndarray:
    """Returns (T, 3) pixels of a picture of SIZE x SIZE, y down and z away from the viewer, of places (T, 3)."""
    x, y, z = places.T
    return np.column_stack([ZOOM * x + 1, 1 - ZOOM * y - DROP, -ZOOM * z]) * SIZE / 2


def trunk_sway(motion: Motion, signer: Signer, side: float) -> np.ndarray:
    """Returns (T, 2), the trunk's place: it follows the hands a little."""
    body = np.zeros((motion.frames, 2))
    body[:, 0] = signer.lean + 0.012 * side * (motion.strong[:, U] - motion.weak[:, U])
    return body


def head_place(motion: Motion, signer: Signer, body: np.ndarray) -> np.ndarray:
    """Returns (T, 5): centre of the head, its radii, and the turn."""
    scale = 1.12 * signer.head * (1 + 0.07 * motion.head[:, 2])
    centre = body + np.array([0.0, 0.575])
    centre[:, 0] += 0.05 * motion.head[:, 0]
    centre[:, 1] -= 0.05 * motion.head[:, 1] + 0.03 * motion.head[:, 2]
    return np.column_stack([centre, 0.165 * scale, 0.222 * scale, motion.head[:, 0]])


def on_face(head: np.ndarray, nod: np.ndarray, x: float | np.ndarray, y: float | np.ndarray) -> np.ndarray:
    """Returns a point of the face, (T, 2), given in radii; it moves as the head turns and nods."""
    centre, rx, ry, turn = head[:, :2], head[:, 2], head[:, 3], head[:, 4]
    return np.column_stack([centre[:, 0] + rx * (np.asarray(x) * (1 - 0.18 * np.abs(turn)) + 0.42 * turn),
                            centre[:, 1] + ry * (np.asarray(y) - 0.14 * nod)])  # fmt: skip


def picture_hand(hand: np.ndarray, side: float, signer: Signer) -> np.ndarray:
    """Returns a hand (T, 14) with u and angle in picture coordinates."""
    turned = hand.copy()
    across = side * hand[:, U] * (signer.shoulders / 0.34) ** 0.5 + signer.lean
    turned[:, U] = np.clip(across, -0.76, 0.76)  # hands stay in the picture
    turned[:, Y] = np.minimum(hand[:, Y], 0.68)
    turned[:, ANGLE] = hand[:, ANGLE] if side > 0 else 180.0 - hand[:, ANGLE]
    return turned


def arm_joints(
    hand: np.ndarray, side: float, body: np.ndarray, signer: Signer
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns shoulder, elbow and wrist of a hand in the picture, each (T, 3)."""
    frames = len(hand)
    shoulder = np.column_stack(
        [body[:, 0] + side * (signer.shoulders - 0.01), np.full(frames, NECK_Y - 0.16), np.zeros(frames)]
    )
    axis = np.deg2rad(hand[:, ANGLE])
    back = _WRIST * HAND * signer.hand * hand[:, LENGTH]
    wrist = np.column_stack([hand[:, U] - back * np.cos(axis), hand[:, Y] - back * np.sin(axis), hand[:, Z]])
    elbow, wrist = bent_arm(shoulder, wrist, signer.arm, 0.95 * signer.arm, side)
    return shoulder, elbow, wrist


def bent_arm(
    shoulder: np.ndarray, wrist: np.ndarray, upper: float, fore: float, side: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns elbow and wrist, (T, 3), by two-bone inverse kinematics: bent down and outwards, wrist in reach."""
    way = wrist - shoulder
    distance = np.linalg.norm(way, axis=1, keepdims=True)
    reach = np.clip(distance, 0.2, 0.995 * (upper + fore))
    direction = way / np.maximum(distance, 1e-6)
    wrist = shoulder + direction * np.where(distance > reach, reach, distance)
    along = (upper**2 - fore**2 + reach**2) / (2 * reach)
    height = np.sqrt(np.maximum(upper**2 - along**2, 0.0))
    pole = np.array([0.55 * side, -1.0, -0.35])
    across = pole - (direction @ pole)[:, None] * direction
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-6)
    return shoulder + direction * along + across * height, wrist


@dataclass(frozen=True, eq=False)
class Palm:
    """The plane of a hand in the picture: `point(a, b)` lies a along the fingers and b towards the thumb."""

    centre: np.ndarray
    forward: np.ndarray
    lateral: np.ndarray
    length: np.ndarray
    scale: np.ndarray

    def point(self, a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
        """Returns (T, 2)."""
        frames = len(self.centre)
        along = np.broadcast_to(np.asarray(a, dtype=float) * self.length, frames)[:, None]
        return self.centre + self.forward * along + self.lateral * np.broadcast_to(b, frames)[:, None]

    def finger(
        self, a: float, b: float, extent: np.ndarray, angle: np.ndarray, bend: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns base, middle joint and tip of a finger that begins at (a, b); angles in degrees."""
        first = np.deg2rad(angle)
        second = np.deg2rad(angle + bend)
        base = self.point(a, b)
        mid = self.point(a + 0.52 * extent * np.cos(first), b + 0.52 * extent * np.sin(first))
        tip = self.point(a + 0.52 * extent * np.cos(first) + 0.48 * extent * np.cos(second),
                         b + 0.52 * extent * np.sin(first) + 0.48 * extent * np.sin(second))  # fmt: skip
        return base, mid, tip


def palm_of(hand: np.ndarray, side: float, signer: Signer) -> Palm:
    """Returns the plane of a hand (T, 14) in the picture."""
    scale = HAND * signer.hand * (0.94 + 0.22 * hand[:, Z])
    axis = np.deg2rad(hand[:, ANGLE])
    forward = np.column_stack([np.cos(axis), np.sin(axis)]) * scale[:, None]
    # The thumb of a palm shown to the viewer points across the body: to the left of the fingers for the hand on
    # the right of the picture.
    flip = hand[:, FLIP]
    flip = np.where(np.abs(flip) < 0.35, np.where(flip < 0, -0.35, 0.35), flip)
    lateral = np.column_stack([-np.sin(axis), np.cos(axis)]) * (scale * flip * side)[:, None]
    return Palm(hand[:, [U, Y]], forward, lateral, hand[:, LENGTH], scale)


def hand_joints(hand: np.ndarray, side: float, signer: Signer) -> Hand:
    """Returns the joints of a hand (T, 14) in the picture."""
    palm = palm_of(hand, side, signer)
    thumb, *extents, spread, curl, thumb_angle = hand[:, SHAPE].T
    fingers = []
    for number, extent in enumerate(extents):
        reach = np.maximum(extent * FINGERS[number], 0.025)
        bend = curl * np.where(extent > 0.3, 1.0, 0.0)
        fingers.append(palm.finger(0.085, KNUCKLES[number], reach, spread * (1.5 - number), bend))
    reach = 0.15 * np.maximum(thumb, 0.3)
    thumb_joints = palm.finger(-0.035, 0.066, reach, thumb_angle, -0.35 * (thumb_angle - 20))
    return Hand(palm.point(-_WRIST, 0.0), thumb_joints, tuple(fingers))


def _face(motion: Motion, head: np.ndarray) -> dict[str, np.ndarray]:
    nod, (opening, width) = motion.head[:, 1], motion.mouth.T
    places: dict[str, tuple[float | np.ndarray, float | np.ndarray]] = {"nose": (0.06, -0.2)}
    for name, s in (("left", 1.0), ("right", -1.0)):
        for kind, x in (("eye_inner", 0.25), ("eye", 0.42), ("eye_outer", 0.6)):
            places[f"{name}_{kind}"] = (s * x, 0.1)
        places[f"mouth_{name}"] = (s * 0.36 * width, -0.5 - 0.05 * opening)
        places[f"{name}_ear"] = (s * 0.98, -0.05)
    return {name: on_face(head, nod, x, y) for name, (x, y) in places.items()}
