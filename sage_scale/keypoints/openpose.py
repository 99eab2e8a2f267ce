"""OpenPose's JSON: a folder of `<name>_000000000000_keypoints.json`, one file a frame, or one file with all frames.

https://github.com/CMU-Perceptual-Computing-Lab/openpose, doc/02_output.md. A frame is {"people": [...]}, a person has
flat lists x, y, confidence: `pose_keypoints_2d` (BODY_25), `face_keypoints_2d` (70), `hand_left_keypoints_2d` and
`hand_right_keypoints_2d` (21 each). One file with all frames is a list of frames, or an object from frame number to
frame.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sage_scale.errors import ClipRejected, or_rejected
from sage_scale.keypoints.arrays import UNKNOWN_SIDE, outermost
from sage_scale.keypoints.names import BODY_25, FACE_70, LEFT_HAND, OPENPOSE_67, RIGHT_HAND
from sage_scale.keypoints.people import main_person
from sage_scale.keypoints.track import KeypointTrack, track_of
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import read_bytes
from sage_scale.untrusted.json_values import InvalidJSON, parse_json

PARTS = {
    "pose_keypoints_2d": BODY_25,
    "face_keypoints_2d": FACE_70,
    "hand_left_keypoints_2d": LEFT_HAND,
    "hand_right_keypoints_2d": RIGHT_HAND,
}
OPENPOSE_137 = BODY_25 + FACE_70 + LEFT_HAND + RIGHT_HAND
"""All points of OpenPose: body, face, hands."""
MOST_PEOPLE = 100
MOST_FRAMES = 500_000
LARGEST_FRAME = 2**20
"""Largest file of one frame, bytes: a hundred people have 400 kB."""
_FRAME_FILE = re.compile(r"(.*?)_?([0-9]{1,12})_keypoints\.json", re.DOTALL)


def is_openpose_folder(folder: Path) -> bool:
    """Returns whether a folder holds files of OpenPose frames; its first hundred entries are looked at."""
    with os.scandir(folder) as entries:
        return any(_FRAME_FILE.fullmatch(entry.name) for entry in itertools.islice(entries, 100))


def read_openpose_folder(
    folder: Path, *, default_fps: float, picture: tuple[float, float] | None
) -> KeypointTrack:
    """Returns the track of a folder with a file a frame; frame 0 is number 0, numbers without a file have no points.

    A frame that cannot be read is one without points. Raises ClipRejected `bad-keypoints` where no file
    can be, for files of several videos, and for numbers far above the count of files.
    """
    files: dict[int, str] = {}
    videos = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if (match := _FRAME_FILE.fullmatch(entry.name)) and entry.is_file():
                files[int(match[2])] = entry.name
                videos.add(match[1])
    if len(videos) > 1:
        first, second = (shortened(name, 80) for name in sorted(videos)[:2])
        raise ClipRejected("bad-keypoints", f"frames of several videos, such as {first} and {second}")
    if not files:
        raise ClipRejected("bad-keypoints", "no files NAME_000000000000_keypoints.json")
    rows = {number: or_rejected(_read_frame, folder / name) for number, name in files.items()}
    return _track(rows, default_fps=default_fps, picture=picture)


def read_openpose_file(
    data: bytes, *, default_fps: float, picture: tuple[float, float] | None
) -> KeypointTrack:
    """Returns the track of one JSON document with one frame or all frames. Raises ClipRejected `bad-keypoints`."""
    try:
        document = parse_json(data, finite=False)
    except InvalidJSON as error:
        raise ClipRejected("bad-keypoints", str(error)) from None
    if isinstance(document, dict) and "people" in document:
        document = [document]
    if isinstance(document, list):
        frames = dict(enumerate(document))
    elif isinstance(document, dict) and all(re.fullmatch("[0-9]{1,12}", key) for key in document):
        frames = {int(key): frame for key, frame in document.items()}
    else:
        raise ClipRejected("bad-keypoints", "neither {'people': ...}, nor a list or an object of such frames")
    rows = {number: or_rejected(_signer, frame) for number, frame in frames.items()}
    return _track(rows, default_fps=default_fps, picture=picture)


def openpose_frames(track: KeypointTrack, name: str) -> Iterator[tuple[str, bytes]]:
    """Yields file name and content of each frame, as OpenPose writes them: BODY_25, hands, and the face where the track
    has its 70 points. A frame without a seen point has no person."""
    parts = {
        key: names
        for key, names in PARTS.items()
        if key != "face_keypoints_2d" or set(names) & set(track.names)
    }
    chosen = {key: track.select(names) for key, names in parts.items()}
    for number in range(len(track)):
        person: dict[str, Any] = {"person_id": [-1]} | {key: [] for key in PARTS}
        for key, part in chosen.items():
            rows = np.concatenate([part.points_TKC[number, :, :2], part.confidence_TK[number, :, None]], 1)
            person[key] = rows.astype(float).ravel().tolist()
        people = [person] if any(part.seen_TK[number].any() for part in chosen.values()) else []
        content = json.dumps({"version": 1.3, "people": people}, separators=(",", ":"))
        yield f"{name}_{number:012d}_keypoints.json", content.encode()


def _read_frame(path: Path) -> np.ndarray:
    name = shortened(path.name, 255)
    if path.stat().st_size > LARGEST_FRAME:
        raise ClipRejected("bad-keypoints", f"{name}: above {LARGEST_FRAME // 2**20} MiB")
    try:
        return _signer(parse_json(read_bytes(path), finite=False))
    except InvalidJSON as error:
        raise ClipRejected("bad-keypoints", f"{name}: {error}") from None
    except ClipRejected as rejected:
        raise ClipRejected("bad-keypoints", f"{name}: {rejected.detail}") from None


def _signer(frame: Any) -> np.ndarray:
    """Returns float32 (137, 3), the rows of `main_person`; zeros without a person. Raises ClipRejected."""
    people = frame.get("people") if isinstance(frame, dict) else None
    if not isinstance(people, list) or not all(isinstance(person, dict) for person in people):
        raise ClipRejected("bad-keypoints", "a frame without a list of people")
    if len(people) > MOST_PEOPLE:
        raise ClipRejected("bad-keypoints", f"more than {MOST_PEOPLE} people in a frame")
    if not people:
        return np.zeros((len(OPENPOSE_137), 3), np.float32)
    rows = np.stack([_person(person) for person in people])[None]
    points, confidence = main_person(OPENPOSE_137, rows[..., :2], rows[..., 2])
    return np.concatenate([points[0], confidence[0, :, None]], axis=1)


def _person(person: Mapping[str, Any]) -> np.ndarray:
    """Returns float32 (137, 3). Parts that are missing are 0, so not seen; values that are no numbers are NaN."""
    rows = []
    for key, part in PARTS.items():
        values = person.get(key) or 3 * len(part) * [0]
        if not isinstance(values, list) or len(values) != 3 * len(part):
            count = len(values) if isinstance(values, list) else type(values).__name__
            raise ClipRejected("bad-keypoints", f"{key} has {count} numbers, expected {3 * len(part)}")
        rows += [float(value) if type(value) in (int, float) else np.nan for value in values]
    with np.errstate(over="ignore"):
        return np.array(rows).astype(np.float32).reshape(-1, 3)


def _track(
    rows: Mapping[int, np.ndarray | ClipRejected], *, default_fps: float, picture: tuple[float, float] | None
) -> KeypointTrack:
    faults = [row for row in rows.values() if isinstance(row, ClipRejected)]
    if faults and len(faults) == len(rows):
        raise faults[0]
    count = max(rows, default=-1) + 1
    if count > 100 * len(rows) + 1000:
        raise ClipRejected("bad-keypoints", f"frame number {count - 1} with {len(rows)} frames in all")
    if count > MOST_FRAMES:
        raise ClipRejected("bad-keypoints", f"{count:,} frames, above {MOST_FRAMES:,}")
    rows_TKC = np.zeros((count, len(OPENPOSE_137), 3), np.float32)
    for number, row in rows.items():
        if not isinstance(row, ClipRejected):
            rows_TKC[number] = row
    face = slice(OPENPOSE_137.index(FACE_70[0]), OPENPOSE_137.index(FACE_70[-1]) + 1)
    names = OPENPOSE_137
    if not (rows_TKC[:, face, 2] > 0).any():
        rows_TKC, names = np.delete(rows_TKC, face, axis=1), OPENPOSE_67
    points_TKC, confidence_TK = rows_TKC[..., :2], rows_TKC[..., 2]
    sizes = np.abs(points_TKC[confidence_TK > 0])
    sizes = sizes[np.isfinite(sizes)]
    if sizes.size and sizes.max() <= 1:  # keypoint_scale 3: shares of the sides
        picture = picture or (UNKNOWN_SIDE, UNKNOWN_SIDE)
        points_TKC = points_TKC * np.array(picture, np.float32)
    width, height = picture or outermost(points_TKC, confidence_TK)
    return track_of(names, points_TKC, confidence_TK, fps=default_fps, width=width, height=height)
