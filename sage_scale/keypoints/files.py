"""Keypoint files by their ending and content, each as one `KeypointTrack`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sage_scale.errors import ClipRejected
from sage_scale.keypoints.arrays import npz_bytes, read_npy, read_npz, track_of_array, wholebody_array
from sage_scale.keypoints.openpose import openpose_frames, read_openpose_file, read_openpose_folder
from sage_scale.keypoints.pose_file import pose_bytes, read_pose
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.untrusted.damage import damage_rejects
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import is_folder, open_regular

__all__ = ["npz_bytes", "openpose_frames", "pose_bytes", "read_track", "track_of_array", "wholebody_array"]

LARGEST_BYTES = 2**30
"""Largest keypoint file, bytes, also unpacked: 4 hours of body and hands at 25 frames a second."""
LARGEST_JSON = 2**25
"""Largest file of OpenPose frames, bytes: parsed, it takes some ten times its size."""


def read_track(
    path: Path, *, default_fps: float = 25.0, picture: tuple[float, float] | None = None
) -> KeypointTrack:
    """Returns the track of a `.pose`, `.npz`, `.npy` or OpenPose `.json` file, or of a folder of OpenPose's files.

    `default_fps` and `picture` (width, height in pixels) hold where the file states neither. Raises ClipRejected
    `bad-keypoints` for a file that cannot be read, OSError where the file system fails.
    """
    with _damage(path):
        if is_folder(path):
            return read_openpose_folder(path, default_fps=default_fps, picture=picture)
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            suffix = path.suffix.lower()
            largest = LARGEST_JSON if suffix == ".json" else LARGEST_BYTES
            if size > largest:
                raise ClipRejected("bad-keypoints", f"{size:,} bytes, above {largest // 2**20} MiB")
            if suffix == ".pose":
                return read_pose(file.read(size))
            if suffix == ".json":
                return read_openpose_file(file.read(size), default_fps=default_fps, picture=picture)
            if suffix == ".npy":
                return read_npy(file, size, default_fps=default_fps, picture=picture)
            return read_npz(file, LARGEST_BYTES, default_fps=default_fps, picture=picture)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Names the file in every rejection, and makes each one `bad-keypoints`."""
    try:
        with damage_rejects("keypoints", "bad-keypoints"):
            yield
    except ClipRejected as rejected:
        detail = rejected.detail.removeprefix("keypoints: ")
        raise ClipRejected("bad-keypoints", f"{shortened(path.name, 255)}: {detail}") from None
