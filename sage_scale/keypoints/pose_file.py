"""`.pose` files of pose-format, versions 0.1 and 0.2 (https://github.com/sign-language-processing/pose, docs/specs).

A header names components of points, a body holds float32 arrays: coordinates (T, people, K, D), then confidence
(T, people, K), all little-endian. Read here instead of through pose-format, which needs PyAV and tqdm, raises a dozen
kinds of errors for damaged files and keeps a header for the process; a test compares both. Every count of the header is
compared with the file's bytes before anything is allocated.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Sequence

import numpy as np

from sage_scale.errors import ClipRejected
from sage_scale.keypoints.names import BODY_25, BODY_33, FACE_70, LEFT_HAND, RIGHT_HAND
from sage_scale.keypoints.people import main_person
from sage_scale.keypoints.track import KeypointTrack, track_of

MOST_POINTS = 4096
WORLD = "POSE_WORLD_LANDMARKS"
"""Metres around the hips: no points of the picture, left out."""
_BY_POSITION = {
    "pose_keypoints_2d": BODY_25,
    "face_keypoints_2d": FACE_70,
    "hand_left_keypoints_2d": LEFT_HAND,
    "hand_right_keypoints_2d": RIGHT_HAND,
    "LEFT_HAND_LANDMARKS": LEFT_HAND,
    "RIGHT_HAND_LANDMARKS": RIGHT_HAND,
    "LEFT_HAND": LEFT_HAND,
    "RIGHT_HAND": RIGHT_HAND,
    "FACE": FACE_70[:68],
}
"""Components whose points are known by their order, if there are as many."""
_BY_NAME: dict[str, Callable[[str], str]] = {
    "POSE_LANDMARKS": lambda point: f"body.{point.lower()}",
    "BODY": lambda point: f"body.{point.lower()}",
    "FACE_LANDMARKS": lambda point: f"face.{point}",
    "LEFT_HAND_LANDMARKS": lambda point: f"left_hand.{point.lower()}",
    "RIGHT_HAND_LANDMARKS": lambda point: f"right_hand.{point.lower()}",
    "LEFT_HAND": lambda point: f"left_hand.{point.lower()}",
    "RIGHT_HAND": lambda point: f"right_hand.{point.lower()}",
}
_LIMBS = {
    f"body.{first}": f"body.{second}"
    for first, second in (
        ("left_shoulder", "right_shoulder"), ("left_elbow", "left_shoulder"), ("left_wrist", "left_elbow"),
        ("right_elbow", "right_shoulder"), ("right_wrist", "right_elbow"), ("left_hip", "left_shoulder"),
        ("right_hip", "right_shoulder"), ("left_knee", "left_hip"), ("right_knee", "right_hip"),
    )
}  # fmt: skip
for _hand in (LEFT_HAND, RIGHT_HAND):
    _LIMBS |= {_hand[i]: _hand[0 if i % 4 == 1 else i - 1] for i in range(1, 21)}
"""Each point with the one that it hangs on, for viewers that draw limbs."""


def read_pose(data: bytes) -> KeypointTrack:
    """Returns the track of a `.pose` file; of several people the one of `main_person`, frame by frame.

    A picture without sides counts as 1 x 1. Raises ClipRejected `bad-keypoints` for bytes that are no such file.
    """
    try:
        return _read(data)
    except (struct.error, UnicodeDecodeError):
        raise ClipRejected("bad-keypoints", "its header is cut off or damaged") from None


def _read(data: bytes) -> KeypointTrack:
    at = 0

    def take(form: str) -> tuple:
        nonlocal at
        values = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(f"<{form}")
        return values

    def text() -> str:
        (length,) = take("H")
        return take(f"{length}s")[0].decode()

    version, width, height, _depth, components = take("fHHHH")
    version = round(version, 3)
    if version not in (0.1, 0.2):
        raise ClipRejected("bad-keypoints", f".pose version {version:g}; 0.1 and 0.2 are read")
    names: list[str | None] = []
    axes = 0
    for _ in range(components):
        component, form = text(), text()
        points, limbs, colours = take("HHH")
        if len(names) + points > MOST_POINTS:
            raise ClipRejected("bad-keypoints", f"more than {MOST_POINTS} points")
        names += _point_names(component, [text() for _ in range(points)])
        axes = max(axes, len(form) - 1)
        at += 4 * limbs + 6 * colours
    if axes < 2:
        raise ClipRejected("bad-keypoints", "points without x and y")
    fps, frames, people = take("HHH" if version == 0.1 else "fIH")
    numbers = people * len(names) * (axes + 1)
    left = len(data) - at
    if version == 0.1 and numbers:  # its 16 bits are too few for the frames of a long video
        frames = left // (4 * numbers)
    if not numbers or not frames:
        raise ClipRejected("bad-keypoints", "no frames, people or points")
    if left < 4 * frames * numbers:
        raise ClipRejected(
            "bad-keypoints", f"cut off: {left:,} bytes for {frames:,} frames of {4 * numbers:,}"
        )
    shape = (frames, people, len(names))
    points_TPKC = np.frombuffer(data, "<f4", math.prod(shape) * axes, at).reshape(*shape, axes)
    confidence_TPK = np.frombuffer(data, "<f4", math.prod(shape), at + 4 * math.prod(shape) * axes).reshape(
        shape
    )
    kept = [place for place, name in enumerate(names) if name is not None]
    found = [name for name in names if name is not None]
    points_TKC, confidence_TK = main_person(
        found, points_TPKC[:, :, kept, : min(axes, 3)], confidence_TPK[:, :, kept]
    )
    return track_of(found, points_TKC, confidence_TK, fps=fps, width=width or 1, height=height or 1)


def _point_names(component: str, points: Sequence[str]) -> list[str | None]:
    if component == WORLD:
        return [None] * len(points)
    ordered = _BY_POSITION.get(component, ())
    if len(ordered) == len(points):
        return list(ordered)
    name = _BY_NAME.get(component, lambda point: f"{component.lower()}.{point.lower()}")
    return [name(point) for point in points]


def pose_bytes(track: KeypointTrack) -> bytes:
    """Returns the track as a `.pose` file of version 0.2: one person, sides of the picture in whole pixels.

    Points of MediaPipe have pose-format's names of them, so its own tools open the file. Raises ValueError for a track
    without frames or with more than 65,535 points or pixels a side.
    """
    if not len(track) or max(len(track.names), track.width, track.height) > 65535:
        raise ValueError(
            "a track without frames, or with more than 65,535 points or pixels, is no .pose file"
        )
    axes = 3 if track.has_z else 2
    parts = [
        (part, list(names))
        for part, names in itertools.groupby(track.names, lambda name: name.split(".", 1)[0])
    ]
    out = [struct.pack("<fHHHH", 0.2, math.ceil(track.width), math.ceil(track.height), 0, len(parts))]
    for part, names in parts:
        component, points = _component(part, names)
        limbs = [
            (names.index(_LIMBS[name]), place)
            for place, name in enumerate(names)
            if _LIMBS.get(name) in names
        ]
        out += [_text(component), _text("XYZC"[:axes] + "C"), struct.pack("<HHH", len(names), len(limbs), 1)]
        out += [_text(point) for point in points]
        out += [struct.pack("<HH", *limb) for limb in limbs]
        out.append(struct.pack("<HHH", 255, 0, 0))
    out.append(struct.pack("<fIH", track.fps, len(track), 1))
    out.append(np.ascontiguousarray(track.points_TKC[..., :axes], "<f4").tobytes())
    out.append(np.ascontiguousarray(track.confidence_TK, "<f4").tobytes())
    return b"".join(out)


def _component(part: str, names: Sequence[str]) -> tuple[str, list[str]]:
    """Returns pose-format's name of a part's component, and of its points."""
    points = [name.partition(".")[2] for name in names]
    if part == "body" and tuple(names) == BODY_25:
        return "pose_keypoints_2d", [_openpose_name(point) for point in points]
    if part == "body":
        return (
            ("POSE_LANDMARKS", [p.upper() for p in points])
            if set(names) <= set(BODY_33)
            else ("BODY", points)
        )
    if part in ("left_hand", "right_hand"):
        return f"{part.upper()}_LANDMARKS", [point.upper() for point in points]
    return ("FACE_LANDMARKS", points) if part == "face" else (part, points)


def _openpose_name(point: str) -> str:
    """`left_big_toe` is LBigToe, `mid_hip` is MidHip."""
    return "".join(
        word[0].upper() if word in ("left", "right") else word.capitalize() for word in point.split("_")
    )


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<H", len(data)) + data
