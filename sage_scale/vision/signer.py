"""Where the signer is (`vision.fit=signer`): from keypoints that lie beside the video, `talk.pose` or `talk.npz` for
`talk.mp4`.

One square a clip, that does not move: its side is the signing space, so many times the clip's median shoulder width,
around a point a little below the shoulders. Keypoints are shares of the picture's width and height, as sage_scale's own
`.npz` and `.pose` files have them. Without such a file, or without shoulders in the clip, it is the middle.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from sage_scale.config import Vision
from sage_scale.errors import ClipRejected
from sage_scale.untrusted.files import is_file, is_folder
from sage_scale.vision.crop import Region
from sage_scale.vision.keypoint_files import LEFT_SHOULDER, RIGHT_SHOULDER, read_keypoints

SIGNING_SPACE = 3.6
"""Side of the square in shoulder widths: the head above, resting hands below, an arm's reach to each side."""
BELOW = 0.125
"""How far the square's middle lies below the middle of the shoulders, share of its side."""
SIDECARS = (".npz", ".pose")


def sidecar(video: Path) -> Path | None:
    """Returns the keypoint file beside a video file or folder of frames, if there is one."""
    return next((path for suffix in SIDECARS if is_file(path := _beside(video, suffix))), None)


def signer_region(video: Path, start_s: float, end_s: float | None, vision: Vision) -> Region | None:
    """The signing space of a clip, None where nothing says where it is.

    Raises ClipRejected `bad-keypoints` for a keypoint file that cannot be read, or whose points are no shares of the
    picture.
    """
    path = sidecar(video)
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
    """float32 (S, 2, 2): both shoulders of each frame, and the frame rate; kept, since clips of a video share it."""
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
