"""From a clip to its frames: a video file, a folder of pictures or a keypoint file, brought to the recipe's rate.

Shape letters: T frames at the recipe's rate, n frames on the stride grid (0, stride, 2 * stride, ...), H and W sides,
K keypoints. Faults of a clip's bytes raise ClipRejected; faults of the machine (permission, memory, a failing disk) are
other errors and reject nothing.
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
from sage_scale.errors import ClipRejected, StorageError, or_rejected
from sage_scale.keypoints.cleaning import completed
from sage_scale.keypoints.names import OPENPOSE_67
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import is_file, is_folder
from sage_scale.vision.frame_folders import read_folder
from sage_scale.vision.keypoints import is_keypoint_file, keypoints_of, read_keypoints, signer_region
from sage_scale.vision.sampling import check_interval, check_length, nearest_frames
from sage_scale.vision.video_clips import ClipPictures, Interval, PictureSettings, read_clip, read_clips
from sage_scale.vision.video_files import check_file
from sage_scale.vision.video_frames import DecodeStats
from sage_scale.vision.video_track import VideoTrack, read_track

GREY_SIZE = 48
"""Side of the grey pictures kept for every frame, pixels: a hand is still 5 to 8 pixels wide."""


class Source(Protocol):
    """The part of a clip that decoding uses; `corpora.manifest.Clip` has it."""

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
    """uint8 (T, 48, 48): every frame, small and grey, for the motion tagger; None without it and for keypoint files."""
    track: KeypointTrack | None = field(default=None, repr=False)
    """The clip's part of its keypoint file, body and hands, at the file's own rate; None where none was asked for, or
    is there."""
    keypoints: KeypointTrack | None = field(default=None, repr=False)
    """Of `track` the frame nearest to each of the T frames; None where the source is no keypoint file."""

    @property
    def grid(self) -> np.ndarray:
        """int64 (n,): the frame numbers of the stride grid, also where `frames` is empty."""
        return np.arange(0, self.total_frames, self.stride)

    @property
    def keypoints_TKC(self) -> np.ndarray | None:
        """float32 (T, 67, 2): x and y of `keypoints` in the order of OPENPOSE_67, (0, 0) where not seen; or None."""
        return None if self.keypoints is None else completed(self.keypoints, OPENPOSE_67).points_TKC[..., :2]


def decode_clip(
    clip: Source,
    vision: Vision,
    stats: DecodeStats | None = None,
    *,
    grey: bool = True,
    keypoints: bool = False,
) -> DecodedClip:
    """Returns `clip`, decoded as `vision` says. Raises ClipRejected for its faults.

    `stats` counts the work; without `grey` there are no grey pictures, which saves an eighth of it. With `keypoints` a
    video or folder comes with the `track` of its keypoint file, if it has one.
    """
    path = local_path(clip.video)
    check_interval(clip.start_s, clip.end_s, None)
    with _storage_errors(path):
        kind = _kind(path, vision)
        if kind == "keypoints":
            return _decode_keypoints(clip, path, vision)
        interval = _interval(clip, path, vision)
        settings = picture_settings(vision, grey, folder=kind == "folder")
        if kind == "folder":
            read = read_folder(path, interval, settings, source_fps=vision.source_fps)
        else:
            read = read_clip(path, interval, settings, stats)
        return _with_pictures(clip, vision, read, _track(clip, path, vision) if keypoints else None)


def decode_clips(
    clips: Sequence[Source],
    vision: Vision,
    stats: DecodeStats | None = None,
    *,
    grey: bool = True,
    keypoints: bool = False,
) -> Iterator[tuple[int, DecodedClip | ClipRejected]]:
    """Yields (number in `clips`, decoded clip or rejection) for clips of one video, in the order in which they become
    complete; each has the same bytes as from `decode_clip`.

    A video file is read once for all of them; memory is that of the clips that overlap at one moment.
    """
    try:
        path = local_path(clips[0].video)
        with _storage_errors(path):
            one_pass = _kind(path, vision) == "video"
    except ClipRejected:
        one_pass = False
    if not one_pass or len(clips) == 1:
        for number, clip in enumerate(clips):
            yield number, or_rejected(decode_clip, clip, vision, stats, grey=grey, keypoints=keypoints)
        return
    numbers: list[int] = []
    intervals: list[Interval] = []
    for number, clip in enumerate(clips):
        try:
            check_interval(clip.start_s, clip.end_s, None)
            with _storage_errors(path):
                intervals.append(_interval(clip, path, vision))
            numbers.append(number)
        except ClipRejected as rejected:
            yield number, rejected
    with _storage_errors(path):
        for position, outcome in read_clips(path, intervals, picture_settings(vision, grey), stats):
            number = numbers[position]
            if isinstance(outcome, ClipRejected):
                yield number, outcome
            else:
                clip = clips[number]
                track = or_rejected(_track, clip, path, vision) if keypoints else None
                if isinstance(track, ClipRejected):
                    yield number, track
                else:
                    yield number, _with_pictures(clip, vision, outcome, track)


def probe(video: str) -> VideoTrack | None:
    """Returns begin and end of the video that a clip names, from its header, or from its packets where the header does
    not say; None for folders of pictures and keypoint files. The track's stream is closed.

    Raises ClipRejected for a file that is no video, StorageError where it cannot be read.
    """
    path = local_path(video)
    with _storage_errors(path):
        if is_folder(path) or is_keypoint_file(path):
            return None
        check_file(path)
        return read_track(path)


def local_path(video: str) -> Path:
    """Returns the path that a clip's video names. Raises ClipRejected where it is no path of a file system."""
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
    """Returns a uint8 (H, W, 3) RGB picture as JPEG; the same bytes each time for one version of Pillow's libjpeg."""
    out = io.BytesIO()
    Image.fromarray(picture_HWC, "RGB").save(
        out, "JPEG", quality=quality, subsampling="4:2:0", optimize=False
    )
    return out.getvalue()


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Raises StorageError for errors of the file system: no fault of the file's clips."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror or error}; the clip was not rejected, run again"
        ) from error


def _kind(path: Path, vision: Vision) -> Literal["video", "folder", "keypoints"]:
    if is_keypoint_file(path):
        return "keypoints"
    if vision.kind == "features" and vision.backbone == "keypoints":
        if keypoints_of(path, vision) is not None:
            return "keypoints"
        if not is_folder(path):
            check_file(path)
        where = "beside it" + (f" or in {vision.keypoints}" if vision.keypoints else "")
        raise ClipRejected(
            "no-keypoints",
            f"{shortened(path.name, 255)} has no keypoint file (.pose, .npz) {where}; "
            "`sage-scale keypoints` makes them",
        )
    if is_folder(path):
        return "folder"
    check_file(path)
    return "video"


def picture_settings(vision: Vision, grey: bool, folder: bool = False) -> PictureSettings:
    """Returns the recipe's rate, size and kind of pictures."""
    return PictureSettings(
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
    if vision.fit == "signer" and (file := keypoints_of(path, vision)) is not None:
        region = signer_region(file, *_since_first_picture(clip, path), vision)
    return Interval(clip.start_s, clip.end_s, region)


def _with_pictures(
    clip: Source, vision: Vision, read: ClipPictures, track: KeypointTrack | None
) -> DecodedClip:
    return DecodedClip(
        clip=clip,
        frames=read.frames,
        total_frames=len(read.grey_THW),
        fps=vision.fps,
        stride=vision.frame_stride,
        source_fps=read.source_fps,
        grey_THW=read.grey_THW if read.grey_THW.size else None,
        track=track,
    )


def _track(clip: Source, path: Path, vision: Vision) -> KeypointTrack | None:
    """Returns the clip's part of the keypoint file of its video; None without one."""
    file = keypoints_of(path, vision)
    if file is None:
        return None
    return read_keypoints(file, vision).part(*_since_first_picture(clip, path))


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
    """Returns the time of a video's first picture; 0 for a file that is no video, which decoding will reject."""
    if is_keypoint_file(path):
        return 0.0
    try:
        return read_track(path).first_s
    except ClipRejected:
        return 0.0


def _decode_keypoints(clip: Source, path: Path, vision: Vision) -> DecodedClip:
    file = path if is_keypoint_file(path) else keypoints_of(path, vision)
    assert file is not None, "a video or folder is of this kind only if a keypoint file lies beside it"
    if vision.kind != "features" or vision.backbone != "keypoints":
        raise ClipRejected(
            "no-pictures", f"{file.name} has keypoints only: vision.backbone=keypoints is needed"
        )
    track = read_keypoints(file, vision)
    start_s, end_s = _since_first_picture(clip, path)
    chosen_T = nearest_frames(len(track), track.fps, vision.fps, start_s, end_s)
    check_length(len(chosen_T), vision.min_frames, vision.max_frames)
    return DecodedClip(
        clip=clip,
        frames=np.zeros((0, vision.size, vision.size, 3), np.uint8),
        total_frames=len(chosen_T),
        fps=vision.fps,
        stride=vision.frame_stride,
        source_fps=track.fps,
        track=track.part(start_s, end_s),
        keypoints=track.replace(
            points_TKC=track.points_TKC[chosen_T], confidence_TK=track.confidence_TK[chosen_T], fps=vision.fps
        ),
    )
