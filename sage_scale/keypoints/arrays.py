"""Keypoints as NumPy arrays: our `.npz` files, of today and of version 0.1.0, and COCO-WholeBody arrays.

| members | content |
|---|---|
| `points` (T, K, 3), `confidence` (T, K), `names` (K,), `fps`, `width`, `height`, `has_z` | a track (`npz_bytes`) |
| `keypoints` (T, 134) or (T, 67, 2), perhaps `fps` | 0.1.0: OPENPOSE_67 as shares of the picture's sides (0 = unseen) |
| `keypoints`, or one array of any name, (T, 133, 3) or (T, P, 133, 3) | COCO-WholeBody: x, y, score |

A `.npy` file holds one of the two arrays. Sizes are compared with the file's bytes before anything is allocated.
"""

from __future__ import annotations

import io
import math
import zipfile
from typing import IO, BinaryIO

import numpy as np

from sage_scale.errors import ClipRejected
from sage_scale.keypoints.names import FACE_70, LEFT_HAND, OPENPOSE_67, RIGHT_HAND, point_names
from sage_scale.keypoints.people import main_person
from sage_scale.keypoints.track import KeypointTrack, track_of

UNKNOWN_SIDE = 1024.0
"""Height of a picture of unknown size, pixels. A power of two: shares keep all their bits."""
WHOLEBODY_BODY = point_names(
    "body",
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle left_big_toe left_small_toe left_heel "
    "right_big_toe right_small_toe right_heel",
)
WHOLEBODY_133 = WHOLEBODY_BODY + FACE_70[:68] + LEFT_HAND + RIGHT_HAND
"""COCO-WholeBody's points in its order: 17 of the body, 6 of the feet, 68 of the face, 21 of each hand."""


def read_npz(
    file: BinaryIO, largest: int, *, default_fps: float, picture: tuple[float, float] | None
) -> KeypointTrack:
    """Returns the track of an `.npz` file. Raises ClipRejected `bad-keypoints`, and what zipfile raises for damage."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if sum(info.file_size for info in members.values()) > largest:
            raise ClipRejected("bad-keypoints", f"above {largest // 2**20} MiB unpacked")

        def array(name: str) -> np.ndarray:
            with archive.open(members[name]) as member:
                return _npy(member, members[name].file_size, name)

        def number(name: str, default: float) -> float:
            return float(array(name).reshape(-1)[0]) if name in members and array(name).size else default

        fps = number("fps", default_fps)
        if {"points", "confidence", "names"} <= members.keys():
            points, confidence, names = array("points"), array("confidence"), array("names")
            if points.ndim != 3 or points.shape[2] not in (2, 3) or confidence.shape != points.shape[:2]:
                raise ClipRejected(
                    "bad-keypoints", f"points of shape {points.shape}, confidence {confidence.shape}"
                )
            if names.ndim != 1 or names.dtype.kind != "U" or len(names) != points.shape[1]:
                raise ClipRejected(
                    "bad-keypoints", f"names of shape {names.shape} for {points.shape[1]} points"
                )
            width, height = picture or (UNKNOWN_SIDE, UNKNOWN_SIDE)
            return track_of(
                [str(name) for name in names],
                points if number("has_z", 1.0) else points[..., :2],
                confidence,
                fps=fps,
                width=number("width", width),
                height=number("height", height),
            )
        if "keypoints" not in members and len(members) != 1:
            raise ClipRejected(
                "bad-keypoints", "no member `keypoints`, nor `points`, `confidence` and `names`"
            )
        values = array("keypoints" if "keypoints" in members else next(iter(members)))
    return track_of_array(values, fps=fps, picture=picture)


def read_npy(
    file: BinaryIO, size: int, *, default_fps: float, picture: tuple[float, float] | None
) -> KeypointTrack:
    """Returns the track of a `.npy` file. Raises ClipRejected `bad-keypoints`."""
    return track_of_array(_npy(file, size, "the array"), fps=default_fps, picture=picture)


def track_of_array(
    values: np.ndarray, *, fps: float, picture: tuple[float, float] | None = None
) -> KeypointTrack:
    """Returns the track of shares (T, 134) or (T, 67, 2), or of COCO-WholeBody pixels (T, 133, 3); with P people
    (T, P, 133, 3), of whom `main_person` is taken.

    `picture` is (width, height) in pixels. Without it shares are of a square picture, and the picture of pixels ends at
    the outermost point. Raises ClipRejected `bad-keypoints`.
    """
    if values.dtype.kind not in "fiu":
        raise ClipRejected("bad-keypoints", f"an array of type {values.dtype}, not of numbers")
    if values.ndim == 4 and values.shape[2:] == (len(WHOLEBODY_133), 3) and values.shape[1]:
        points, confidence = main_person(WHOLEBODY_133, values[..., :2], values[..., 2])
        values = np.concatenate([points, confidence[..., None]], axis=-1)
    if values.shape[1:] == (len(WHOLEBODY_133), 3):
        points, confidence = values[..., :2], values[..., 2]
        width, height = picture or outermost(points, confidence)
        return track_of(WHOLEBODY_133, points, confidence, fps=fps, width=width, height=height)
    if values.shape[1:] not in ((2 * len(OPENPOSE_67),), (len(OPENPOSE_67), 2)):
        raise ClipRejected(
            "bad-keypoints", f"an array of shape {values.shape}, expected (T, 134), (T, 67, 2), (T, 133, 3)"
        )
    width, height = picture or (UNKNOWN_SIDE, UNKNOWN_SIDE)
    shares = values.astype(np.float32).reshape(len(values), len(OPENPOSE_67), 2)
    with np.errstate(over="ignore"):
        points = shares * np.array([width, height], np.float32)
    seen = (shares != 0).any(-1).astype(np.float32)
    return track_of(OPENPOSE_67, points, seen, fps=fps, width=width, height=height)


def outermost(points: np.ndarray, confidence: np.ndarray) -> tuple[float, float]:
    """Returns width and height of the smallest picture from (0, 0) that holds all points seen; at least 1 x 1."""
    seen = (confidence > 0) & np.isfinite(points).all(-1) & (np.abs(points) <= 65535).all(-1)
    if not seen.any():
        return UNKNOWN_SIDE, UNKNOWN_SIDE
    width, height = np.ceil(points[seen].max(0).astype(np.float64))
    return max(1.0, float(width)), max(1.0, float(height))


def npz_bytes(track: KeypointTrack) -> bytes:
    """Returns the track as an `.npz` file, compressed, with names, picture and frame rate; equal tracks, equal bytes
    for one version of NumPy and zlib."""
    out = io.BytesIO()
    np.savez_compressed(
        out,
        points=track.points_TKC,
        confidence=track.confidence_TK,
        names=np.array(track.names, dtype=np.str_),
        fps=np.float64(track.fps),
        width=np.float64(track.width),
        height=np.float64(track.height),
        has_z=np.bool_(track.has_z),
    )
    return out.getvalue()


def wholebody_array(track: KeypointTrack) -> np.ndarray:
    """Returns float32 (T, 133, 3): x, y in pixels and confidence of COCO-WholeBody's points; all 0 where not seen."""
    chosen = track.select(WHOLEBODY_133)
    return np.concatenate([chosen.points_TKC[..., :2], chosen.confidence_TK[..., None]], axis=-1)


def _npy(file: IO[bytes], size: int, name: str) -> np.ndarray:
    """Returns an array of numbers or text. Its header's counts are checked against the file's `size` in bytes."""
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ClipRejected("bad-keypoints", f"{name}: .npy version {version}")
    shape, fortran, dtype = read_header(file)
    if dtype.kind not in "fiubU" or dtype.itemsize == 0:
        raise ClipRejected("bad-keypoints", f"{name}: an array of type {dtype}, not of numbers")
    needed = math.prod(shape) * dtype.itemsize
    if needed > size - file.tell():
        raise ClipRejected("bad-keypoints", f"{name}: cut off, shape {shape} needs {needed:,} bytes")
    values = np.frombuffer(file.read(needed), dtype)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)
