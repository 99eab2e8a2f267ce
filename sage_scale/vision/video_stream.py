"""Pictures of a long video or a live source at a constant rate, one after the other: constant memory.

A stretch of a file that cannot be decoded is left out, and reading goes on behind it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from sage_scale.errors import ClipRejected, UsageError
from sage_scale.untrusted.files import is_folder
from sage_scale.vision.crop import UPRIGHT, check_picture
from sage_scale.vision.frame_folders import list_pictures, open_picture
from sage_scale.vision.sampling import StreamSampler, check_interval
from sage_scale.vision.scaling import SquareScaler
from sage_scale.vision.video_clips import PictureSettings
from sage_scale.vision.video_files import BYTES_AT_FAULT, check_file, open_video, read_through
from sage_scale.vision.video_frames import DecodeStats, FrameReader, TimedFrame
from sage_scale.vision.video_track import open_track, scan_if_needed

GAP_S = 2.0
"""A picture that is shown for longer is a gap: the recording begins again behind it, seconds."""
STEP_S, GROWTH, MOST_STEP_S = 1.0, 1.25, 64.0
"""Behind damage reading goes on this much later, and GROWTH times as much each time it fails again, seconds."""
TRUNCATED_S = 1.0
"""A video that ends this much before its header's length is cut short, seconds."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame at the constant rate."""

    time_s: float
    """When it is shown, seconds of the recording."""
    grey_HW: np.ndarray
    """uint8, side `PictureSettings.grey_size`."""
    colour_HWC: np.ndarray | None
    """uint8, RGB, side `PictureSettings.size`; None off the stride grid."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The recording is interrupted here; the next picture begins a new grid."""

    start_s: float
    end_s: float
    reason: str = ""
    """Why this part cannot be read; empty where no picture came."""


class VideoStream:
    """Pictures of a video file or a folder of pictures."""

    def __init__(self, path: Path, settings: PictureSettings, source_fps: float = 25.0) -> None:
        """A folder has `source_fps` pictures a second."""
        self.path, self.settings, self.source_fps = path, settings, source_fps
        self.stats = DecodeStats()
        self.end_s: float | None = None
        """End of the video by its header, known with the first picture; None if unknown."""

    def pictures(self, start_s: float = 0.0, end_s: float | None = None) -> Iterator[Picture | Gap]:
        """Yields pictures and gaps of an interval. Raises ClipRejected for a file that cannot be opened or an interval
        outside of it, OSError for faults of the file system."""
        if is_folder(self.path):
            yield from self._of_folder(start_s, end_s)
            return
        check_file(self.path)
        with contextlib.ExitStack() as opened:

            def reopen() -> Any:
                self.stats.passes += 1
                opened.pop_all().close()
                return opened.enter_context(open_video(self.path))

            try:
                container = reopen()
                track = open_track(container, scan_if_needed(self.path, container))
                codec = track.stream.codec_context
                check_picture(codec.width, codec.height)
            except ClipRejected as rejected:
                if rejected.reason in BYTES_AT_FAULT:
                    read_through(self.path)
                raise
            if track.note:
                self.stats.notes.append(f"{self.path.name}: {track.note}")
            self.end_s = track.end_s
            start_s = max(start_s, track.first_s)
            check_interval(start_s, end_s, track.end_s)
            ratio = float(track.stream.sample_aspect_ratio or 1)
            reader = FrameReader(container, track, self.stats, reopen)
            yield from at_rate(
                _readable(reader, start_s, end_s, self.path), self.settings, start_s, end_s, ratio
            )

    def _of_folder(self, start_s: float, end_s: float | None) -> Iterator[Picture | Gap]:
        files = list_pictures(self.path)
        if not files:
            raise ClipRejected("empty", "a folder without pictures")
        self.end_s = len(files) / self.source_fps
        check_interval(start_s, end_s, self.end_s)
        first = max(0, math.floor(start_s * self.source_fps))

        def frames() -> Iterator[TimedFrame | Gap]:
            for number, file in enumerate(files[first:], start=first):
                yield timed_frame(
                    number / self.source_fps, np.asarray(open_picture(file)), 1 / self.source_fps
                )

        yield from at_rate(frames(), self.settings, start_s, end_s)


def live_pictures(
    source: Iterable[tuple[float, np.ndarray]], settings: PictureSettings
) -> Iterator[Picture | Gap]:
    """Yields the pictures of a live source: (seconds, uint8 (H, W, 3) RGB) in rising order of time.

    Pictures whose time does not rise are left out. Raises UsageError for anything else than such a pair.
    """

    def frames() -> Iterator[TimedFrame | Gap]:
        before = -math.inf
        for time_s, picture in source:
            if not math.isfinite(time_s):
                raise UsageError(f"a picture's time is {time_s}: it is in seconds")
            if time_s > before:
                before = float(time_s)
                yield timed_frame(before, picture, 0.0)

    yield from at_rate(frames(), settings, None, None)


def timed_frame(time_s: float, picture_HWC: np.ndarray, duration_s: float) -> TimedFrame:
    """Returns a picture as a decoded frame. Raises UsageError where it is no uint8 (H, W, 3)."""
    if not isinstance(picture_HWC, np.ndarray) or picture_HWC.dtype != np.uint8 or picture_HWC.ndim != 3:
        raise UsageError("a picture is a NumPy array, uint8 (height, width, 3), RGB")
    if picture_HWC.shape[2] != 3:
        raise UsageError(
            f"a picture has {picture_HWC.shape[2]} channels: it is uint8 (height, width, 3), RGB"
        )
    check_picture(picture_HWC.shape[1], picture_HWC.shape[0])
    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture_HWC), format="rgb24")
    return TimedFrame(time_s, duration_s, frame, UPRIGHT, True)


def at_rate(
    frames: Iterable[TimedFrame | Gap],
    settings: PictureSettings,
    start_s: float | None,
    end_s: float | None,
    pixel_ratio: float = 1.0,
) -> Iterator[Picture | Gap]:
    """Yields frames at the settings' rate. Frame k since the last gap is the one nearest to k / fps, as for clips."""
    colour = SquareScaler(settings.size, "rgb24", stretch=settings.stretch)
    grey = SquareScaler(settings.grey_size, "gray", stretch=settings.stretch, cut_first=False)
    made: tuple[TimedFrame, np.ndarray, np.ndarray | None] | None = None
    sampler: StreamSampler[TimedFrame] | None = None
    last: TimedFrame | None = None
    first_s = 0.0

    def shown(chosen: Iterator[tuple[int, TimedFrame]]) -> Iterator[Picture]:
        nonlocal made
        for k, timed in chosen:
            if made is None or made[0] is not timed:
                made = timed, grey(timed.frame, pixel_ratio, None, timed.orientation).copy(), None
            if k % settings.stride == 0 and made[2] is None:
                square = colour(timed.frame, pixel_ratio, None, timed.orientation).copy()
                made = timed, made[1], square
            yield Picture(first_s + k / settings.fps, made[1], made[2] if k % settings.stride == 0 else None)

    for timed in frames:
        if isinstance(timed, Gap):
            if sampler is not None:
                yield from shown(sampler.finish())
                sampler = last = None
            yield timed
            continue
        if last is not None and timed.time_s - last.time_s > GAP_S:
            assert sampler is not None
            yield from shown(sampler.finish())
            yield Gap(last.time_s, timed.time_s)
            sampler = None
        if sampler is None:
            first_s = timed.time_s if last is not None or start_s is None else max(start_s, timed.time_s)
            if last is None and start_s is not None and timed.time_s <= start_s:
                first_s = start_s
            stop_s = end_s if end_s is None or end_s > first_s else first_s
            sampler = StreamSampler(settings.fps, first_s, stop_s, 2**31)
        last = timed
        yield from shown(sampler.push(timed.time_s, timed.duration_s, timed))
        if sampler.done:
            return
    if sampler is not None:
        yield from shown(sampler.finish())


def _readable(
    reader: FrameReader, start_s: float, end_s: float | None, path: Path
) -> Iterator[TimedFrame | Gap]:
    """Yields the frames of a file that can be decoded, with a gap for each part that cannot."""
    stop_s = reader.track.end_s if end_s is None else min(end_s, reader.track.end_s or end_s)
    wanted_s, shown_s, step_s = start_s, start_s, STEP_S
    damaged = ""
    while True:
        held: TimedFrame | None = None
        try:
            for timed in reader.frames_from(wanted_s):
                if timed.time_s < wanted_s and not damaged:
                    held = timed  # the frame that is shown at the start
                    continue
                if damaged and timed.time_s < shown_s - 1e-6:
                    continue
                if damaged:
                    yield Gap(shown_s, timed.time_s, damaged)
                    damaged, step_s = "", STEP_S
                elif held is not None:
                    yield held
                held = None
                shown_s = timed.time_s + timed.duration_s
                yield timed
                if stop_s is not None and timed.time_s >= stop_s:
                    return
            if held is not None:
                yield held
            if damaged or (stop_s is not None and stop_s - shown_s > TRUNCATED_S):
                yield Gap(shown_s, stop_s or shown_s, damaged or "the file ends early")
            return
        except ClipRejected as rejected:
            if rejected.reason not in BYTES_AT_FAULT:
                raise
            read_through(path)  # raises where it is the disk
            if held is not None:
                yield held
            damaged = damaged or rejected.detail
        wanted_s = max(wanted_s, shown_s) + step_s
        step_s = min(GROWTH * step_s, MOST_STEP_S)
        if stop_s is None or wanted_s >= stop_s:
            yield Gap(shown_s, stop_s or shown_s, damaged)
            return
