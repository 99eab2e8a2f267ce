"""All clips of one video in one pass over it: each frame is decoded once, however many clips it belongs to.

Memory is that of the clips which are open at one moment, not of the video. Where no clip needs the frames ahead, the
reader seeks (`FrameReader.should_seek`).

A pass gives the bytes of reading each clip alone. In an intact file a frame decodes identically after sequential
reading or a seek. In a damaged one it need not: once the decoder complains, the remaining clips are read one by one.
Where only times do not rise, or the file ends early, the open clips are read alone, and a new pass begins with the next
clip. The remaining risk is damage that no decoder reports, in videos without closed groups of pictures.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sage_scale.errors import ClipRejected, or_rejected
from sage_scale.vision.crop import Region, check_picture
from sage_scale.vision.sampling import StreamSampler, check_interval, check_length
from sage_scale.vision.scaling import PictureStack, SquareScaler
from sage_scale.vision.video_files import BYTES_AT_FAULT, open_video, read_through
from sage_scale.vision.video_frames import DecodeStats, FileEnd, FrameReader, TimedFrame
from sage_scale.vision.video_track import PacketScan, VideoTrack, open_track, scan_if_needed

_TRUNCATED_S = 1.0
_SOURCE_FRAMES_PER_FRAME = 16
_NO_PICTURE = np.zeros((0, 0), np.uint8)


@dataclass(frozen=True)
class Interval:
    """A stretch of a video, seconds."""

    start_s: float = 0.0
    end_s: float | None = None
    region: Region | None = None
    """The part of the picture to cut out; None is its middle, or all of it where pictures are stretched."""


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """Rate, size and kind of the pictures of a clip."""

    fps: float
    """Frame rate to which the clip is brought."""
    stride: int
    """A colour picture is made of every `stride`-th frame."""
    size: int
    """Side of the colour pictures."""
    grey_size: int
    """Side of the grey pictures, one a frame; 0 makes none."""
    stretch: bool
    """Whether the whole picture becomes the square, or a part of it."""
    min_frames: int
    max_frames: int


@dataclass(frozen=True)
class ClipPictures:
    """A clip's pictures."""

    frames: np.ndarray
    """uint8 (n, size, size, 3), the stride grid."""
    grey_THW: np.ndarray
    """uint8 (T, grey_size, grey_size), also where grey_size is 0."""
    source_fps: float


Outcome = ClipPictures | ClipRejected


def read_clip(
    path: Path, interval: Interval, settings: PictureSettings, stats: DecodeStats | None = None
) -> ClipPictures:
    """Returns one clip, read by itself. Raises ClipRejected for faults of the file's bytes."""
    return _VideoFile(path, settings, stats or DecodeStats()).one(interval)


def read_clips(
    path: Path, intervals: Sequence[Interval], settings: PictureSettings, stats: DecodeStats | None = None
) -> Iterator[tuple[int, Outcome]]:
    """Yields (number in `intervals`, pictures or rejection), in the order in which the clips become complete.

    Raises OSError or MemoryError for faults of the machine.
    """
    file = _VideoFile(path, settings, stats or DecodeStats())
    pending = deque(sorted(range(len(intervals)), key=lambda number: intervals[number].start_s))
    while pending:
        reread: list[int] = []
        refused: ClipRejected | None = None
        try:
            with file.open() as video:
                yield from video.sweep(intervals, pending, reread)
        except ClipRejected as rejected:  # of the file, before any of its clips was read
            file.check_disk(rejected)
            refused = rejected
        if refused is not None:
            yield from ((number, refused) for number in pending)
            return
        for number in reread:
            yield number, or_rejected(file.one, intervals[number])


def check_end(last_end_s: float, stop_s: float | None, end_s: float | None) -> None:
    """Raises ClipRejected where pictures are missing: the last one decoded ends at `last_end_s`, long before `stop_s`,
    of a video whose header promises `end_s` (None if unknown). A file cut short decodes without an error up to its end.
    """
    if last_end_s == 0:
        raise ClipRejected("empty", "no frame could be decoded")
    if end_s is not None and stop_s is not None:
        missing_s = stop_s - last_end_s
        if missing_s > _TRUNCATED_S and missing_s > 0.1 * end_s:
            raise ClipRejected("truncated", f"ends at {last_end_s:.2f} s of {end_s:.2f} s")


class _VideoFile:
    """A video file, with the facts that earlier readings of it have found."""

    def __init__(self, path: Path, settings: PictureSettings, stats: DecodeStats) -> None:
        self.path, self.settings, self.stats = path, settings, stats
        self._endings: list[FileEnd] = []
        self._scan: PacketScan | None = None
        self._disk_checked = False

    @contextlib.contextmanager
    def open(self) -> Iterator[_OpenVideo]:
        """Opens the file, to be read once. Raises ClipRejected for faults that all of its clips share."""
        with contextlib.ExitStack() as opened:

            def reopen() -> Any:
                self.stats.passes += 1
                opened.pop_all().close()
                return opened.enter_context(open_video(self.path))

            container = reopen()
            if self._scan is None:
                self._scan = scan_if_needed(self.path, container)
            track = open_track(container, self._scan)
            if track.note:
                self.stats.notes.append(f"{self.path.name}: {track.note}")
            yield _OpenVideo(container, track, reopen, self.settings, self.stats, self._endings)

    def one(self, interval: Interval) -> ClipPictures:
        """Returns a clip, read by itself."""
        try:
            with self.open() as video:
                return video.one(interval)
        except ClipRejected as rejected:
            self.check_disk(rejected)
            raise

    def check_disk(self, rejected: ClipRejected) -> None:
        """Raises OSError where the file cannot be read to its end, so that its bytes are not at fault."""
        if rejected.reason in BYTES_AT_FAULT and not self._disk_checked:
            read_through(self.path)
            self._disk_checked = True


class _OpenClip:
    """A clip that is being read."""

    def __init__(
        self, number: int, interval: Interval, settings: PictureSettings, stop_s: float | None
    ) -> None:
        """`stop_s` is its end as far as is known."""
        self.number, self.interval, self.settings = number, interval, settings
        expected = 64 if stop_s is None else round((stop_s - interval.start_s) * settings.fps)
        expected = min(expected, settings.max_frames)
        self.frames = PictureStack((settings.size, settings.size, 3), -(-expected // settings.stride))
        self.greys = PictureStack((settings.grey_size, settings.grey_size), expected)
        self.sampler: StreamSampler[_Squares] = StreamSampler(
            settings.fps, interval.start_s, interval.end_s, settings.max_frames
        )
        self._seen = 0

    def push(self, timed: TimedFrame, squares: _Squares) -> None:
        """Take the next frame. Raises ClipRejected `too-long`, also for a video of absurdly many frames a second."""
        if timed.time_s >= self.interval.start_s:
            self._seen += 1
            limit = (self.settings.max_frames + 1) * _SOURCE_FRAMES_PER_FRAME
            if self._seen > limit:
                raise ClipRejected("too-long", f"more than {limit} source frames")
        self._take(self.sampler.push(timed.time_s, timed.duration_s, squares))

    def finish(self) -> None:
        """The video has ended."""
        self._take(self.sampler.finish())

    def _take(self, sampled: Iterator[tuple[int, _Squares]]) -> None:
        for k, squares in sampled:
            region = self.interval.region
            self.greys.append(squares.get(False, region) if self.settings.grey_size else _NO_PICTURE)
            if k % self.settings.stride == 0:
                self.frames.append(squares.get(True, region))


class _Squares:
    """The squares made of a frame so far: clips that overlap share them."""

    __slots__ = ("_made", "_timed", "_video")

    def __init__(self, timed: TimedFrame, video: _OpenVideo) -> None:
        self._timed, self._video = timed, video
        self._made: dict[tuple[bool, Region | None], np.ndarray] = {}

    def get(self, colour: bool, region: Region | None) -> np.ndarray:
        """Returns the frame's square in colour or grey."""
        square = self._made.get((colour, region))
        if square is None:
            square = self._made[colour, region] = self._video.scale(self._timed, colour, region)
        return square


class _OpenVideo:
    """An open video file."""

    def __init__(
        self,
        container: Any,
        track: VideoTrack,
        reopen: Callable[[], Any],
        settings: PictureSettings,
        stats: DecodeStats,
        endings: list[FileEnd],
    ) -> None:
        """Raises ClipRejected for faults that all clips of the file share. `endings` takes the end that a reading
        finds, for later readings of the same file."""
        # The stream is not kept: it is gone when the reader opens the file anew.
        check_picture(track.stream.codec_context.width, track.stream.codec_context.height)
        self.pixel_ratio = float(track.stream.sample_aspect_ratio or 1)
        self.first_s, self.end_s = track.first_s, track.end_s
        self.rate = track.rate or settings.fps
        self.reader = FrameReader(container, track, stats, reopen)
        self.settings, self.endings = settings, endings
        stretch = settings.stretch
        self._colour = SquareScaler(settings.size, "rgb24", stretch=stretch)
        self._grey = SquareScaler(settings.grey_size, "gray", stretch=stretch, cut_first=False)

    def scale(self, timed: TimedFrame, colour: bool, region: Region | None) -> np.ndarray:
        """Returns a square of the frame."""
        scaler = self._colour if colour else self._grey
        return scaler(timed.frame, self.pixel_ratio, region, timed.orientation)

    def one(self, interval: Interval) -> ClipPictures:
        """Returns a clip, read by itself."""
        interval = self._from_first_picture(interval)
        self._check(interval)
        clip = _OpenClip(0, interval, self.settings, self._stop_s(interval))
        error: ClipRejected | None = None
        try:
            for timed in self._frames_from(interval.start_s):
                clip.push(timed, _Squares(timed, self))
                if clip.sampler.done:
                    break
            else:
                clip.finish()
        except ClipRejected as rejected:
            if rejected.reason != "corrupt":
                raise
            error = rejected
        if not self.endings and self.reader.from_beginning and self.reader.last_end_s <= interval.start_s:
            # The whole file was read, and it ends before the clip begins: later clips have no frames either.
            self.endings.append(FileEnd(self.reader.last_end_s, error))
        if error is not None:
            raise error
        return self._complete(clip)

    def sweep(
        self, intervals: Sequence[Interval], pending: deque[int], reread: list[int]
    ) -> Iterator[tuple[int, Outcome]]:
        """Reads the clips of `pending` (by start), which are taken from it, until none is left or the file complains.

        `reread` then takes those to read alone: the open ones or the next one, or all that are left.
        """
        intervals = [self._from_first_picture(interval) for interval in intervals]
        while pending:
            refused = or_rejected(self._check, intervals[pending[0]])
            if refused is None:
                break
            yield pending.popleft(), refused
        if not pending:
            return
        open_clips: list[_OpenClip] = []
        before: tuple[TimedFrame, _Squares] | None = None
        frames = self._frames_from(intervals[pending[0]].start_s)
        sought = pending[0]  # a seek may land far before its clip: it is not tried again for the same one
        while pending or open_clips:
            try:
                timed = next(frames, None)
            except ClipRejected:
                reread.extend(pending)
                break
            if timed is not None and not timed.intact:
                reread.extend(pending)
                break
            if timed is not None and not timed.on_time:
                break
            if timed is None and self._ends_early():
                break
            squares = None if timed is None else _Squares(timed, self)
            while pending and (timed is None or intervals[pending[0]].start_s <= timed.time_s):
                number = pending.popleft()
                interval = intervals[number]
                if (refused := or_rejected(self._check, interval)) is not None:
                    yield number, refused
                    continue
                clip = _OpenClip(number, interval, self.settings, self._stop_s(interval))
                if before is not None:
                    clip.push(*before)
                open_clips.append(clip)
            for clip in list(open_clips):
                outcome = or_rejected(self._feed, clip, timed, squares)
                if isinstance(outcome, ClipRejected) and outcome.reason in BYTES_AT_FAULT:
                    continue  # it stays open, and is read alone
                if outcome is not None:
                    open_clips.remove(clip)
                    yield clip.number, outcome
            if timed is None:
                break
            assert squares is not None
            before = timed, squares
            idle = pending and not open_clips and sought != pending[0]
            if idle and self.reader.should_seek(intervals[pending[0]].start_s):
                sought = pending[0]
                frames = self.reader.frames_from(intervals[pending[0]].start_s)
                before = None
        if reread:
            pending.clear()
        reread[:0] = [clip.number for clip in open_clips]
        if not reread and pending:
            reread.append(pending.popleft())

    def _frames_from(self, start_s: float) -> Iterator[TimedFrame]:
        return self.reader.frames_from(start_s, self.endings[0] if self.endings else None)

    def _ends_early(self) -> bool:
        """Whether frames ran out long before the length that the header promises."""
        return self.end_s is not None and self.end_s - self.reader.last_end_s > _TRUNCATED_S

    def _feed(
        self, clip: _OpenClip, timed: TimedFrame | None, squares: _Squares | None
    ) -> ClipPictures | None:
        """Returns the clip's pictures if it is complete with this frame, or at the video's end (None)."""
        if timed is None:
            clip.finish()
        else:
            assert squares is not None
            clip.push(timed, squares)
            if not clip.sampler.done:
                return None
        return self._complete(clip)

    def _from_first_picture(self, interval: Interval) -> Interval:
        """Returns the interval without its part before the first picture; the part behind the last one is cut too."""
        return replace(interval, start_s=self.first_s) if interval.start_s < self.first_s else interval

    def _check(self, interval: Interval) -> None:
        """Raises ClipRejected for faults that show without decoding."""
        if self.first_s and interval.end_s is not None and interval.end_s <= self.first_s:
            raise ClipRejected(
                "too-short",
                f"0 frames, it ends at {interval.end_s:g} s, the first picture is at {self.first_s:.2f} s",
            )
        check_interval(interval.start_s, interval.end_s, self.end_s)
        stop_s = self._stop_s(interval)
        if stop_s is not None:
            check_length(round((stop_s - interval.start_s) * self.settings.fps), 0, self.settings.max_frames)

    def _stop_s(self, interval: Interval) -> float | None:
        if self.end_s is None:
            return interval.end_s
        return min(interval.end_s or self.end_s, self.end_s)

    def _complete(self, clip: _OpenClip) -> ClipPictures:
        """Returns the pictures if none are missing."""
        last_end_s, stop_s = self.reader.last_end_s, self._stop_s(clip.interval)
        check_end(last_end_s, stop_s, self.end_s)
        check_length(clip.greys.count, self.settings.min_frames, self.settings.max_frames)
        if not clip.greys.count:  # a recipe may permit clips of no frames, but nothing can be made of them
            raise ClipRejected("too-short", "0 frames")
        return ClipPictures(clip.frames.array(), clip.greys.array(), self.rate)
