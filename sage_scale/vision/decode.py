"""From a clip to its frames: a video file, a folder of pictures or a keypoint file, brought to the recipe's
rate.

Shape letters: T frames at the recipe's rate, n frames on the stride grid (0, stride, 2 * stride, ...), H and
W sides, K keypoints. A clip that cannot be used raises ClipRejected with a reason that lies in its bytes and
the recipe; what lies in the machine (permission, memory, a failing disk) is another error and rejects
nothing.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from sage_scale.config import Vision
from sage_scale.errors import ClipRejected, StorageError
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import is_file, is_folder
from sage_scale.vision.frame_folders import read_folder
from sage_scale.vision.keypoint_files import read_keypoints
from sage_scale.vision.sampling import check_interval, check_length, nearest_frames
from sage_scale.vision.signer import sidecar, signer_region
from sage_scale.vision.video_clips import ClipPictures, Interval, Pictures, read_clip, read_clips
from sage_scale.vision.video_files import check_file
from sage_scale.vision.video_frames import DecodeStats
from sage_scale.vision.video_track import VideoTrack, read_track

GREY_SIZE = 48
"""Side of the grey pictures kept for every frame, pixels: a hand is still 5 to 8 pixels wide."""

KEYPOINT_SUFFIXES = {".npz", ".pose"}


class Source(Protocol):
    """What decoding needs to know of a clip; `corpora.manifest.Clip` has it."""

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
    @property
    def split(self) -> str: ...


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
    """uint8 (T, 48, 48): every frame, small and grey, for the motion tagger; None for keypoint files, or where it
    was not asked for."""
    keypoints_TKC: np.ndarray | None = field(default=None, repr=False)
    """float32 (T, 67, 2), layout of `vision.keypoint_files`, or None."""

    @property
    def grid(self) -> np.ndarray:
        """int64 (n,): the frame numbers of the stride grid, also where `frames` is empty."""
        return np.arange(0, self.total_frames, self.stride)


def decode_clip(
    clip: Source, vision: Vision, stats: DecodeStats | None = None, *, grey: bool = True
) -> DecodedClip:
    """Decode `clip` as `vision` says; ClipRejected names what is wrong with it.

    `stats` counts what it took; without `grey` there are no grey pictures, which spares an eighth of the work.
    """
    path = local_path(clip.video)
    check_interval(clip.start_s, clip.end_s, None)
    with _storage(path):
        kind = _kind(path, vision)
        if kind == "keypoints":
            file = path if path.suffix.lower() in KEYPOINT_SUFFIXES else sidecar(path)
            assert file is not None, (
                "a video or folder is of this kind only if a keypoint file lies beside it"
            )
            keypoints_TKC, source_fps = _decode_keypoints(file, clip, path, vision)
            return DecodedClip(
                clip=clip,
                frames=np.zeros((0, vision.size, vision.size, 3), np.uint8),
                total_frames=len(keypoints_TKC),
                fps=vision.fps,
                stride=vision.frame_stride,
                source_fps=source_fps,
                keypoints_TKC=keypoints_TKC,
            )
        interval = _interval(clip, path, vision)
        pictures = _pictures(vision, grey, folder=kind == "folder")
        if kind == "folder":
            return _with_pictures(
                clip, vision, read_folder(path, interval, pictures, source_fps=vision.source_fps)
            )
        return _with_pictures(clip, vision, read_clip(path, interval, pictures, stats))


def decode_clips(
    clips: Sequence[Source], vision: Vision, stats: DecodeStats | None = None, *, grey: bool = True
) -> Iterator[tuple[int, DecodedClip | ClipRejected]]:
    """(place in `clips`, decoded clip or why there is none) for clips of one video, in the order in which they become
    complete; each the same bytes as `decode_clip` gives.

    A video file is read once for all of them; memory is that of the clips that overlap at one moment.
    """
    try:
        path = local_path(clips[0].video)
        with _storage(path):
            one_pass = _kind(path, vision) == "video"
    except ClipRejected:
        one_pass = False
    if not one_pass or len(clips) == 1:
        for place, clip in enumerate(clips):
            try:
                yield place, decode_clip(clip, vision, stats, grey=grey)
            except ClipRejected as rejected:
                yield place, rejected
        return
    places: list[int] = []
    intervals: list[Interval] = []
    for place, clip in enumerate(clips):
        try:
            check_interval(clip.start_s, clip.end_s, None)
            with _storage(path):
                interval = _interval(clip, path, vision)
        except ClipRejected as rejected:
            yield place, rejected
            continue
        places.append(place)
        intervals.append(interval)
    with _storage(path):
        for number, outcome in read_clips(path, intervals, _pictures(vision, grey), stats):
            place = places[number]
            if isinstance(outcome, ClipRejected):
                yield place, outcome
            else:
                yield place, _with_pictures(clips[place], vision, outcome)


def probe(video: str) -> VideoTrack | None:
    """Returns where the video that a clip names begins and ends, after a look at its header, or at its packets where
    the header does not say; None for folders of pictures and keypoint files. The track's stream is closed.

    Raises ClipRejected for what is no video, StorageError where it cannot be read.
    """
    path = local_path(video)
    with _storage(path):
        if is_folder(path) or (path.suffix.lower() in KEYPOINT_SUFFIXES and is_file(path)):
            return None
        check_file(path)
        return read_track(path)


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    """Raises StorageError for what the file system says against reading a file: no fault of its clips."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror or error}; the clip was not rejected, run again"
        ) from error


def _kind(path: Path, vision: Vision) -> Literal["video", "folder", "keypoints"]:
    if path.suffix.lower() in KEYPOINT_SUFFIXES and is_file(path):
        return "keypoints"
    if vision.kind == "features" and vision.backbone == "keypoints":
        if sidecar(path) is not None:
            return "keypoints"
        raise ClipRejected(
            "no-keypoints", f"{shortened(path.name, 255)} is not a keypoint file (.npz, .pose)"
        )
    if is_folder(path):
        return "folder"
    check_file(path)
    return "video"


def _pictures(vision: Vision, grey: bool, folder: bool = False) -> Pictures:
    return Pictures(
        fps=vision.fps,
        stride=vision.frame_stride,
        size=vision.size,
        grey_size=GREY_SIZE if grey else 0,
        stretch=vision.fit == "stretch" or (folder and vision.fit == "auto"),
        min_frames=vision.min_frames,
        max_frames=vision.max_frames,
    )


def _interval(clip: Source, path: Path, vision: Vision) -> Interval:
    region = None
    if vision.fit == "signer" and sidecar(path) is not None:
        region = signer_region(path, *_since_first_picture(clip, path), vision)
    return Interval(clip.start_s, clip.end_s, region)


def _with_pictures(clip: Source, vision: Vision, read: ClipPictures) -> DecodedClip:
    grey_THW = read.grey_THW if read.grey_THW.size else None
    return DecodedClip(
        clip=clip,
        frames=read.frames,
        total_frames=len(read.grey_THW),
        fps=vision.fps,
        stride=vision.frame_stride,
        source_fps=read.source_fps,
        grey_THW=grey_THW,
    )


def _since_first_picture(clip: Source, path: Path) -> tuple[float, float | None]:
    """Returns the clip's start and end on the clock of keypoints that were made of the file's pictures."""
    status = path.stat() if is_file(path) else None
    first_s = _first_picture_s(path, status.st_mtime_ns, status.st_size) if status else 0.0
    if not first_s:
        return clip.start_s, clip.end_s
    start_s = max(0.0, clip.start_s - first_s)
    return start_s, None if clip.end_s is None else max(start_s, clip.end_s - first_s)


@functools.lru_cache(maxsize=4)
def _first_picture_s(path: Path, *_changed: int) -> float:
    """Returns when a video's first picture is shown; 0 for what is no video, as one hears when it is decoded."""
    if path.suffix.lower() in KEYPOINT_SUFFIXES:
        return 0.0
    try:
        return read_track(path).first_s
    except ClipRejected:
        return 0.0


def _decode_keypoints(path: Path, clip: Source, video: Path, vision: Vision) -> tuple[np.ndarray, float]:
    if vision.kind != "features" or vision.backbone != "keypoints":
        raise ClipRejected(
            "no-pictures", f"{path.name} has keypoints only: vision.backbone=keypoints is needed"
        )
    keypoints_SKC, source_fps = read_keypoints(path, vision.source_fps)
    start_s, end_s = _since_first_picture(clip, video)
    chosen_T = nearest_frames(len(keypoints_SKC), source_fps, vision.fps, start_s, end_s)
    check_length(len(chosen_T), vision.min_frames, vision.max_frames)
    return keypoints_SKC[chosen_T], source_fps


def local_path(video: str) -> Path:
    """The path that a clip's video names. Raises ClipRejected where it is no path of a file system."""
    if video.startswith("file://"):
        video = video.removeprefix("file://")
    elif "://" in video:
        raise ClipRejected(
            "unsupported", f"{video.split('://')[0]}:// videos are not read; copy them to a folder"
        )
    if not video:
        raise ClipRejected("missing", "no video is named")
    if "\0" in video:
        raise ClipRejected("missing", "the video's name holds a NUL character")
    return Path(video)


def encode_jpeg(picture_HWC: np.ndarray, quality: int) -> bytes:
    """One uint8 (H, W, 3) RGB picture as JPEG; the same bytes each time for one version of Pillow's
    libjpeg."""
    out = io.BytesIO()
    Image.fromarray(picture_HWC, "RGB").save(
        out, "JPEG", quality=quality, subsampling="4:2:0", optimize=False
    )
    return out.getvalue()
