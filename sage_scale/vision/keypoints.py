"""Keypoint files of videos: where they are, the track of a clip, and the signer's place in a picture
(`vision.fit=signer`).
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from sage_scale.config import Vision
from sage_scale.errors import ClipRejected
from sage_scale.keypoints.arrays import UNKNOWN_SIDE, WHOLEBODY_133
from sage_scale.keypoints.files import read_track
from sage_scale.keypoints.names import OPENPOSE_67
from sage_scale.keypoints.openpose import is_openpose_folder
from sage_scale.keypoints.people import SHOULDERS
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.untrusted.files import expanded, is_file, is_folder
from sage_scale.vision.crop import Region

POINTS = len(OPENPOSE_67)
LEFT_HAND = slice(25, 46)
RIGHT_HAND = slice(46, 67)
NECK, LEFT_SHOULDER, RIGHT_SHOULDER = 1, 5, 2
LEFT_WRIST, RIGHT_WRIST = 7, 4
"""Places in OPENPOSE_67, the layout of `DecodedClip.keypoints_TKC`."""
KEYPOINT_SUFFIXES = (".npz", ".pose")
"""Endings of a keypoint file beside a video. Other files of its name may be captions or notes."""
FOLDER_SUFFIXES = (*KEYPOINT_SUFFIXES, ".npy", ".json")
"""Endings of a keypoint file in the folder `vision.keypoints`, or of one that a manifest names as a clip's video."""
_WHOLEBODY = tuple(name for name in WHOLEBODY_133 if not name.startswith("face"))
SIGNING_SPACE = 3.6
"""Side of the signer's square in shoulder widths: the head above, resting hands below, an arm's reach to each side."""
BELOW = 0.125
"""How far the square's middle lies below the middle of the shoulders, share of its side."""


def is_keypoint_file(path: Path) -> bool:
    """Returns whether a clip's video is itself a keypoint file, or a folder of OpenPose's files."""
    if path.suffix.lower() in FOLDER_SUFFIXES:
        return is_file(path)
    return is_folder(path) and is_openpose_folder(path)


def keypoints_of(video: Path, vision: Vision) -> Path | None:
    """Returns the keypoint file of a video file or folder of frames, if there is one.

    It lies in the folder `vision.keypoints`, under the same folders as the video, as many of the last of them as exist
    there, or in the folder itself; there it may also be a folder of OpenPose's files. Else it lies beside the video.
    """
    if vision.keypoints and (found := _in_folder(video, vision)) is not None:
        return found
    return next((path for suffix in KEYPOINT_SUFFIXES if is_file(path := _beside(video, suffix))), None)


def _in_folder(video: Path, vision: Vision) -> Path | None:
    root, inner = expanded(vision.keypoints), video.parent.parts[1 if video.is_absolute() else 0 :]
    for first in range(len(inner) + 1):
        folder = root.joinpath(*inner[first:])
        if not is_folder(folder):
            continue
        for suffix in FOLDER_SUFFIXES:
            if is_file(path := _beside(folder / video.name, suffix, video)):
                return path
        path = folder / (video.name if is_folder(video) else video.stem)
        if is_folder(path) and is_openpose_folder(path):
            return path
    return None


def read_keypoints(path: Path, vision: Vision) -> KeypointTrack:
    """Returns the track of a keypoint file, without the points of a face. Cached for the clips of one video.

    Shares of a picture whose sides the file does not state are of one with `vision.source_aspect`. Raises ClipRejected
    `bad-keypoints`.
    """
    status = path.stat()
    sides = None
    if path.suffix.lower() == ".npz":
        sides = (UNKNOWN_SIDE * vision.source_aspect, UNKNOWN_SIDE)
    return _read(path, vision.source_fps, sides, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=2)
def _read(
    path: Path, default_fps: float, picture: tuple[float, float] | None, *_changed: int
) -> KeypointTrack:
    track = read_track(path, default_fps=default_fps, picture=picture)
    return track.select([name for name in track.names if not name.startswith("face")])


def signer_region(file: Path, start_s: float, end_s: float | None, vision: Vision) -> Region | None:
    """Returns the signing space of a clip, from the keypoint file of its video; None where no shoulders are seen.

    One square a clip, that does not move: its side is SIGNING_SPACE times the clip's median shoulder width. Raises
    ClipRejected `bad-keypoints` for a file that cannot be read, that has pixels of a picture whose sides it does not
    state, or points far outside of it.
    """
    track = read_keypoints(file, vision)
    if file.suffix.lower() not in KEYPOINT_SUFFIXES or track.names == _WHOLEBODY:
        raise ClipRejected(
            "bad-keypoints",
            f"{file.name}: it does not state the size of its picture, which vision.fit=signer needs: "
            "write it as .pose, or as .npz with width and height",
        )
    shoulders = track.select(SHOULDERS)
    first = max(0, round(start_s * track.fps))
    last = len(track) if end_s is None else max(first + 1, round(end_s * track.fps))
    both_T = shoulders.seen_TK[first:last].all(1)
    if not both_T.any():
        return None
    sides = np.array([track.width, track.height], np.float32)
    seen_T22 = shoulders.points_TKC[first:last][both_T][..., :2] / sides
    if np.abs(seen_T22).max() > 2:
        raise ClipRejected("bad-keypoints", f"{file.name}: points lie far outside of the picture")
    width = float(np.median(np.abs(seen_T22[:, 0, 0] - seen_T22[:, 1, 0])))
    if width <= 0:
        return None
    x, y = np.median(seen_T22.mean(1), axis=0).tolist()
    return Region(round(x, 4), round(y, 4), round(SIGNING_SPACE * width, 4), BELOW)


def _beside(video: Path, suffix: str, kind: Path | None = None) -> Path:
    """Returns `video` with another ending. `kind` is the video itself where `video` is its name elsewhere."""
    if video.suffix and not is_folder(kind or video):
        return video.parent / (video.stem + suffix)
    return Path(f"{video}{suffix}")
