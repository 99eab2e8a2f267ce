"""From a clip to its frames: a video file, a folder of pictures or a keypoint file, brought to the recipe's
rate.

Shape letters: T frames at the recipe's rate, n frames on the stride grid (0, stride, 2 * stride, ...), H and
W sides, K keypoints. A clip that cannot be used raises ClipRejected with a reason that lies in its bytes and
the recipe; what lies in the machine (permission, memory, a failing disk) is another error and rejects
nothing.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sage_scale.config import Vision
from sage_scale.errors import ClipRejected, StorageError
from sage_scale.vision.frame_folders import read_folder
from sage_scale.vision.keypoint_files import read_keypoints
from sage_scale.vision.sampling import check_interval, check_length, nearest_frames
from sage_scale.vision.video_files import read_video

GREY_SIZE = 48
"""Side of the grey pictures kept for every frame, pixels: a hand is still 5 to 8 pixels wide."""

KEYPOINT_SUFFIXES = {".npz", ".pose"}


class Source(Protocol):
    """What decoding needs to know of a clip; `corpora.clip.Clip` has it."""

    @property
    def id(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def video(self) -> str: ...
    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float | None: ...


@dataclass(frozen=True, kw_only=True)
class DecodedClip:
    """A clip at the recipe's rate."""

    clip: Source
    """What was decoded."""
    frames: np.ndarray = field(repr=False)
    """uint8 (n, S, S, 3) RGB on the stride grid; n = 0 where the source is a keypoint file."""
    total_frames: int
    """T, frames at `fps`."""
    fps: float
    """The recipe's rate, frames per second."""
    stride: int
    """Frame r of `frames` is frame r * stride of the clip."""
    source_fps: float
    """The source's own (average) rate."""
    grey_THW: np.ndarray | None = field(default=None, repr=False)
    """uint8 (T, 48, 48): every frame, small and grey, for the motion tagger; None for keypoint files."""
    keypoints_TKC: np.ndarray | None = field(default=None, repr=False)
    """float32 (T, 67, 2), layout of `vision.keypoint_files`, or None."""

    @property
    def grid(self) -> np.ndarray:
        """int64 (n,): the frame numbers of the stride grid, also where `frames` is empty."""
        return np.arange(0, self.total_frames, self.stride)


def decode_clip(clip: Source, vision: Vision) -> DecodedClip:
    """Decode `clip` as `vision` says; ClipRejected names what is wrong with it."""
    path = _local_path(clip.video)
    colour = not (vision.kind == "features" and vision.backbone == "keypoints")
    common: dict[str, Any] = {
        "start_s": clip.start_s,
        "end_s": clip.end_s,
        "fps": vision.fps,
        "stride": vision.frame_stride,
        "size": vision.size,
        "grey_size": GREY_SIZE,
        "min_frames": vision.min_frames,
        "max_frames": vision.max_frames,
        "colour": colour,
    }
    check_interval(clip.start_s, clip.end_s, None)
    grey_THW: np.ndarray | None = None
    keypoints_TKC: np.ndarray | None = None
    frames = np.zeros((0, vision.size, vision.size, 3), np.uint8)
    try:
        if path.suffix.lower() in KEYPOINT_SUFFIXES and path.is_file():
            keypoints_TKC, source_fps = _decode_keypoints(path, clip, vision)
        elif not colour:
            raise ClipRejected("no-keypoints", f"{path.name} is not a keypoint file (.npz, .pose)")
        elif path.is_dir():
            source_fps = vision.source_fps
            stretch = vision.fit != "crop"
            frames, grey_THW = read_folder(path, source_fps=source_fps, stretch=stretch, **common)
        elif path.is_file():
            frames, grey_THW, source_fps = read_video(path, stretch=vision.fit == "stretch", **common)
        elif os.path.lexists(path):
            raise ClipRejected("unreadable", f"{path.name} is neither a file nor a folder")
        else:
            raise ClipRejected("missing", f"there is no {path.name}")
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror or error}; the clip was not rejected, run again"
        ) from None
    counted = keypoints_TKC if keypoints_TKC is not None else grey_THW
    assert counted is not None, "every branch above read one of them or raised"
    return DecodedClip(
        clip=clip,
        frames=frames,
        total_frames=len(counted),
        fps=vision.fps,
        stride=vision.frame_stride,
        source_fps=source_fps,
        grey_THW=grey_THW,
        keypoints_TKC=keypoints_TKC,
    )


def _decode_keypoints(path: Path, clip: Source, vision: Vision) -> tuple[np.ndarray, float]:
    if vision.kind != "features" or vision.backbone != "keypoints":
        raise ClipRejected(
            "no-pictures", f"{path.name} has keypoints only: vision.backbone=keypoints is needed"
        )
    keypoints_SKC, source_fps = read_keypoints(path, vision.source_fps)
    chosen_T = nearest_frames(len(keypoints_SKC), source_fps, vision.fps, clip.start_s, clip.end_s)
    check_length(len(chosen_T), vision.min_frames, vision.max_frames)
    return keypoints_SKC[chosen_T], source_fps


def _local_path(video: str) -> Path:
    if video.startswith("file://"):
        video = video.removeprefix("file://")
    elif "://" in video:
        raise ClipRejected(
            "unsupported", f"{video.split('://')[0]}:// videos are not read; copy them to a folder"
        )
    if not video or "\0" in video:
        raise ClipRejected("missing", "no video is named")
    return Path(video)


def encode_jpeg(picture_HWC: np.ndarray, quality: int) -> bytes:
    """One uint8 (H, W, 3) RGB picture as JPEG; the same bytes each time for one version of Pillow's
    libjpeg."""
    out = io.BytesIO()
    Image.fromarray(picture_HWC, "RGB").save(
        out, "JPEG", quality=quality, subsampling="4:2:0", optimize=False
    )
    return out.getvalue()


def median_frame(frames_THWC: np.ndarray, most: int = 101) -> np.ndarray:
    """The lower median of up to `most` evenly chosen frames, uint8 (H, W, 3): the scene without what moves in
    it."""
    total = len(frames_THWC)
    if not total:
        raise ClipRejected("empty", "no frame to take a median of")
    chosen = frames_THWC[np.linspace(0, total - 1, min(total, most)).round().astype(int)]
    columns = np.ascontiguousarray(chosen.reshape(len(chosen), -1).T)
    middle = (len(chosen) - 1) // 2
    return np.partition(columns, middle, axis=1)[:, middle].reshape(frames_THWC.shape[1:])
