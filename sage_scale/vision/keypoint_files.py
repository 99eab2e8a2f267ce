"""Reading keypoints instead of pictures: `.npz` files of ours and `.pose` files (pose-format, an extra).

The layout inside sage_scale is K = 67 points of (x, y): 25 body points in the order of OpenPose's BODY_25, 21
of the left hand and 21 of the right hand (wrist, then four joints a finger from the thumb). A point that was
not seen is (0, 0). An `.npz` holds `keypoints` (T, 134), x and y in turn, and may hold `fps`; without it
`vision.source_fps` is taken.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from sage_scale.errors import ClipRejected, UsageError
from sage_scale.untrusted.files import open_regular, read_bytes
from sage_scale.vision.archives import damage_rejects

POINTS = 67
LEFT_HAND = slice(25, 46)
RIGHT_HAND = slice(46, 67)
NECK, LEFT_SHOULDER, RIGHT_SHOULDER = 1, 5, 2
LEFT_WRIST, RIGHT_WRIST = 7, 4

_LARGEST_BYTES = 256 * 2**20

# BODY_25 point -> MediaPipe Holistic body points whose mean it is.
_BODY_FROM_HOLISTIC: dict[int, tuple[str, ...]] = {
    0: ("NOSE",),
    1: ("LEFT_SHOULDER", "RIGHT_SHOULDER"),
    2: ("RIGHT_SHOULDER",),
    3: ("RIGHT_ELBOW",),
    4: ("RIGHT_WRIST",),
    5: ("LEFT_SHOULDER",),
    6: ("LEFT_ELBOW",),
    7: ("LEFT_WRIST",),
    8: ("LEFT_HIP", "RIGHT_HIP"),
    9: ("RIGHT_HIP",),
    10: ("RIGHT_KNEE",),
    11: ("RIGHT_ANKLE",),
    12: ("LEFT_HIP",),
    13: ("LEFT_KNEE",),
    14: ("LEFT_ANKLE",),
    15: ("RIGHT_EYE",),
    16: ("LEFT_EYE",),
    17: ("RIGHT_EAR",),
    18: ("LEFT_EAR",),
    19: ("LEFT_FOOT_INDEX",),
    21: ("LEFT_HEEL",),
    22: ("RIGHT_FOOT_INDEX",),
    24: ("RIGHT_HEEL",),
}


def read_keypoints(path: Path, default_fps: float) -> tuple[np.ndarray, float]:
    """Returns all keypoints of a file, float32 (S, 67, 2), and their frame rate. Raises ClipRejected for a bad file."""
    if path.suffix.lower() == ".pose":
        return _read_pose(path)
    return _read_npz(path, default_fps)


def _read_npz(path: Path, default_fps: float) -> tuple[np.ndarray, float]:
    with damage_rejects("keypoints", "unreadable"), open_regular(path) as file:
        with zipfile.ZipFile(file) as archive:
            if sum(member.file_size for member in archive.infolist()) > _LARGEST_BYTES:
                raise ClipRejected("too-large", "keypoints above 256 MiB")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            if "keypoints" not in arrays:
                raise ClipRejected("unreadable", f"no member `keypoints`, only {', '.join(arrays.files)}")
            values = arrays["keypoints"].astype(np.float32)
            fps = float(arrays["fps"]) if "fps" in arrays else default_fps
    if values.ndim == 3:
        values = values.reshape(len(values), -1)
    if values.ndim != 2 or values.shape[1] != 2 * POINTS or not len(values):
        raise ClipRejected("unreadable", f"keypoints of shape {values.shape}, expected (T, {2 * POINTS})")
    if not np.isfinite(values).all() or not 1 <= fps <= 1000:
        raise ClipRejected("unreadable", "keypoints that are not finite, or a frame rate outside 1 to 1000")
    return values.reshape(len(values), POINTS, 2), fps


def _read_pose(path: Path) -> tuple[np.ndarray, float]:
    try:
        from pose_format import Pose
    except ImportError:
        raise UsageError(f"{path.name}: .pose files need the extra: pip install 'sage-scale[pose]'") from None
    with damage_rejects(".pose", "unreadable"):
        pose = Pose.read(read_bytes(path))
        names = {}
        start = 0
        for component in pose.header.components:
            for offset, point in enumerate(component.points):
                names[component.name, point] = start + offset
            start += len(component.points)
        places = np.ma.asarray(pose.body.data)[:, 0, :, :2]
        seen = ~np.ma.getmaskarray(places).any(-1) & (np.ma.asarray(pose.body.confidence)[:, 0] > 0).filled(
            False
        )
        fps = float(pose.body.fps)
    size = np.array([pose.header.dimensions.width or 1, pose.header.dimensions.height or 1], np.float32)
    values = np.where(seen[..., None], places.filled(0) / size, 0).astype(np.float32)
    result = np.zeros((len(values), POINTS, 2), np.float32)
    for target, sources in _BODY_FROM_HOLISTIC.items():
        columns = [names[key] for name in sources if (key := ("POSE_LANDMARKS", name)) in names]
        if len(columns) == len(sources):
            points = values[:, columns]
            whole = (points != 0).any(-1).all(-1)
            result[:, target] = np.where(whole[:, None], points.mean(1), 0)
    for hand, place in (("LEFT", LEFT_HAND), ("RIGHT", RIGHT_HAND)):
        columns = [
            column for (component, _), column in names.items() if component == f"{hand}_HAND_LANDMARKS"
        ]
        if len(columns) == 21:
            result[:, place] = values[:, columns]
    if not len(result) or not result.any() or not 1 <= fps <= 1000:
        raise ClipRejected("unreadable", ".pose without MediaPipe Holistic body or hand points")
    return result, fps
