"""All pictures of a video, whole and upright, at the video's own rate: the input of keypoint extractors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sage_scale.errors import ClipRejected
from sage_scale.untrusted.files import is_folder
from sage_scale.vision.crop import check_picture
from sage_scale.vision.frame_folders import list_pictures, open_picture
from sage_scale.vision.sampling import StreamSampler
from sage_scale.vision.scaling import WholeScaler
from sage_scale.vision.video_clips import check_end
from sage_scale.vision.video_files import BYTES_AT_FAULT, check_file, open_video, read_through
from sage_scale.vision.video_frames import DecodeStats, FrameReader, TimedFrame
from sage_scale.vision.video_track import open_track, scan_if_needed

LEAST_FPS, MOST_FPS = 1.0, 240.0
"""Range of the constant rate; a video of another average rate is brought to the nearer end."""
UNKNOWN_FPS = 25.0
MOST_FRAMES = 2**31


@dataclass(frozen=True)
class WholePicture:
    """One picture of a video."""

    rgb_HWC: np.ndarray
    """uint8 (H, W, 3), upright, with square pixels; H and W are those of the first picture."""
    frames: int
    """How many frames of the constant rate show it."""
    fps: float
    """The constant rate: the video's average."""
    share: float
    """Share of the video up to this picture; 0 where its length is unknown."""


def whole_pictures(
    path: Path, source_fps: float = UNKNOWN_FPS, stats: DecodeStats | None = None
) -> Iterator[WholePicture]:
    """Yields the pictures of a video file, or of a folder with `source_fps` pictures a second.

    Frame k of the constant rate shows the picture nearest to k / fps from the first one; pictures that no frame shows
    are left out. Raises ClipRejected for faults of the bytes, OSError for those of the file system.
    """
    if is_folder(path):
        yield from _of_folder(path, source_fps)
        return
    check_file(path)
    try:
        yield from _of_file(path, stats or DecodeStats())
    except ClipRejected as rejected:
        if rejected.reason in BYTES_AT_FAULT:
            read_through(path)
        raise


def _of_folder(folder: Path, fps: float) -> Iterator[WholePicture]:
    files = list_pictures(folder)
    if not files:
        raise ClipRejected("empty", "a folder without pictures")
    size: tuple[int, int] | None = None
    for number, file in enumerate(files, start=1):
        picture = open_picture(file)
        size = size or picture.size
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        yield WholePicture(np.asarray(picture), 1, fps, number / len(files))


def _of_file(path: Path, stats: DecodeStats) -> Iterator[WholePicture]:
    with contextlib.ExitStack() as opened:

        def reopen() -> Any:
            stats.passes += 1
            opened.pop_all().close()
            return opened.enter_context(open_video(path))

        container = reopen()
        track = open_track(container, scan_if_needed(path, container))
        if track.note:
            stats.notes.append(f"{path.name}: {track.note}")
        codec = track.stream.codec_context
        check_picture(codec.width, codec.height)
        scale = WholeScaler(float(track.stream.sample_aspect_ratio or 1))
        fps = min(max(track.rate or UNKNOWN_FPS, LEAST_FPS), MOST_FPS)
        sampler: StreamSampler[TimedFrame] = StreamSampler(fps, track.first_s, None, MOST_FRAMES)
        length_s = (track.end_s or 0.0) - track.first_s
        reader = FrameReader(container, track, stats, reopen)
        any_shown = False

        def shown(chosen: Iterator[tuple[int, TimedFrame]]) -> Iterator[WholePicture]:
            nonlocal any_shown
            numbered = list(chosen)  # the numbers of one picture
            if numbered:
                any_shown = True
                timed = numbered[0][1]
                share = min(1.0, (timed.time_s - track.first_s) / length_s) if length_s > 0 else 0.0
                yield WholePicture(scale(timed.frame, timed.orientation), len(numbered), fps, share)

        timed = None
        for timed in reader.frames_from(track.first_s):
            yield from shown(sampler.push(timed.time_s, timed.duration_s, timed))
        yield from shown(sampler.finish())
        if timed is not None and not any_shown:  # a single picture shorter than half a frame
            yield from shown(iter([(0, timed)]))
        check_end(reader.last_end_s, track.end_s, track.end_s)
