"""Keypoints: reading `.npz` files of ours and `.pose` files (pose-format, an extra), features of a frame, and the
signer's position in a picture (`vision.fit=signer`).

K = 67 points of (x, y), as shares of the picture's width and height: 25 body points in the order of OpenPose's BODY_25,
21 of the left hand and 21 of the right hand (wrist, then four joints a finger from the thumb). A point that was not
seen is (0, 0). An `.npz` holds `keypoints` (T, 134), x and y in turn, and may hold `fps`; without it
`vision.source_fps` is taken.
"""

from __future__ import annotations

import functools
import zipfile
from pathlib import Path

import numpy as np

from sage_scale.config import Vision
from sage_scale.errors import ClipRejected, UsageError
from sage_scale.untrusted.damage import damage_rejects
from sage_scale.untrusted.files import is_file, is_folder, open_regular, read_bytes
from sage_scale.vision.crop import Region

POINTS = 67
LEFT_HAND = slice(25, 46)
RIGHT_HAND = slice(46, 67)
NECK, LEFT_SHOULDER, RIGHT_SHOULDER = 1, 5, 2
LEFT_WRIST, RIGHT_WRIST = 7, 4
KEYPOINT_SUFFIXES = (".npz", ".pose")
SIGNING_SPACE = 3.6
"""Side of the signer's square in shoulder widths: the head above, resting hands below, an arm's reach to each side."""
BELOW = 0.125
"""How far the square's middle lies below the middle of the shoulders, share of its side."""
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
    for hand, rows in (("LEFT", LEFT_HAND), ("RIGHT", RIGHT_HAND)):
        columns = [
            column for (component, _), column in names.items() if component == f"{hand}_HAND_LANDMARKS"
        ]
        if len(columns) == 21:
            result[:, rows] = values[:, columns]
    if not len(result) or not result.any() or not 1 <= fps <= 1000:
        raise ClipRejected("unreadable", ".pose without MediaPipe Holistic body or hand points")
    return result, fps


def keypoint_features(keypoints_TKC: np.ndarray, *, velocities: bool = False) -> np.ndarray:
    """Returns float16 (T, 134), or (T, 268) with velocities, from keypoints (T, 67, 2); (0, 0) is a point not seen.

    Each frame is centred between the shoulders and scaled by the clip's median shoulder width, so that position and
    distance of the camera cancel. Unseen points stay 0; a frame without shoulders takes the nearest one's centre.
    Velocities are differences to the row before, 0 where the point was not seen in both.
    """
    points = keypoints_TKC.astype(np.float64)
    seen_TK = (points != 0).any(-1)
    centre_TC, width = _shoulder_frame(points, seen_TK)
    places = np.where(seen_TK[..., None], (points - centre_TC[:, None]) / width, 0)
    parts = [places.reshape(len(points), 2 * POINTS)]
    if velocities:
        steps = np.zeros_like(places)
        both = seen_TK[1:] & seen_TK[:-1]
        steps[1:] = np.where(both[..., None], places[1:] - places[:-1], 0)
        parts.append(steps.reshape(len(points), 2 * POINTS))
    # A point far outside (a wrong detection) would dominate the others.
    return np.clip(np.concatenate(parts, axis=1), -10, 10).astype(np.float16)


def _shoulder_frame(points: np.ndarray, seen_TK: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the centre (T, 2) between the shoulders, and the clip's median shoulder width."""
    known = np.flatnonzero(seen_TK[:, LEFT_SHOULDER] & seen_TK[:, RIGHT_SHOULDER])
    if not len(known):
        middle = points[seen_TK].mean(0) if seen_TK.any() else np.zeros(2)
        return np.broadcast_to(middle, (len(points), 2)), 1.0
    left, right = points[known, LEFT_SHOULDER], points[known, RIGHT_SHOULDER]
    width = float(np.median(np.linalg.norm(left - right, axis=1)))
    nearest = known[np.abs(np.arange(len(points))[:, None] - known[None]).argmin(1)]
    centre_TC = (points[nearest, LEFT_SHOULDER] + points[nearest, RIGHT_SHOULDER]) / 2
    return centre_TC, max(width, 1e-3)


def keypoints_beside(video: Path) -> Path | None:
    """Returns the keypoint file beside a video file or folder of frames, if there is one."""
    return next((path for suffix in KEYPOINT_SUFFIXES if is_file(path := _beside(video, suffix))), None)


def signer_region(video: Path, start_s: float, end_s: float | None, vision: Vision) -> Region | None:
    """Returns the signing space of a clip, from the keypoint file beside its video; None without file or shoulders.

    One square a clip, that does not move: its side is SIGNING_SPACE times the clip's median shoulder width. Raises
    ClipRejected `bad-keypoints` for a file that cannot be read, or whose points are no shares of the picture.
    """
    path = keypoints_beside(video)
    if path is None:
        return None
    stat = path.stat()
    shoulders_S22, fps = _shoulders(path, vision.source_fps, stat.st_mtime_ns, stat.st_size)
    first = max(0, round(start_s * fps))
    last = len(shoulders_S22) if end_s is None else max(first + 1, round(end_s * fps))
    part = shoulders_S22[first:last]
    seen = part[(part != 0).any(-1).all(-1)]
    if not len(seen):
        return None
    if np.abs(seen).max() > 2:
        raise ClipRejected("bad-keypoints", f"{path.name}: points are no shares of the picture's sides")
    width = float(np.median(np.abs(seen[:, 0, 0] - seen[:, 1, 0])))
    if width <= 0:
        return None
    x, y = np.median(seen.mean(1), axis=0).tolist()
    return Region(round(x, 4), round(y, 4), round(SIGNING_SPACE * width, 4), BELOW)


@functools.lru_cache(maxsize=4)
def _shoulders(path: Path, default_fps: float, *_changed: int) -> tuple[np.ndarray, float]:
    """Returns float32 (S, 2, 2), both shoulders of each frame, and the frame rate; cached for clips of one video."""
    try:
        keypoints_SKC, fps = read_keypoints(path, default_fps)
    except ClipRejected as rejected:
        raise ClipRejected("bad-keypoints", f"{path.name}: {rejected.detail}") from None
    return keypoints_SKC[:, [LEFT_SHOULDER, RIGHT_SHOULDER]].copy(), fps


def _beside(video: Path, suffix: str) -> Path:
    return (
        video.parent / (video.stem + suffix)
        if video.suffix and not is_folder(video)
        else Path(f"{video}{suffix}")
    )
