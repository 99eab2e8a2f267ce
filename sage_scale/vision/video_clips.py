"""All clips of one video in one pass over it: each frame is decoded once, whatever number of clips it belongs to.

Memory is that of the clips which are open at one moment, not of the video. Where frames lie between clips that nobody
wants, the reader seeks (`FrameReader.skip_pays`).

A pass gives what reading each clip alone gives, byte for byte. In a sound file a frame is the same whether the decoder
came from before or was set down on the key frame before it. In a damaged one it need not be: once the decoder complains
the clips that are left are read one by one. Where only times do not rise, or the file ends early, those under way are
read alone, and a new pass begins with the next clip as if it were the first. What is left is damage that no decoder
reports, in videos without closed groups of pictures.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sage_scale.errors import ClipRejected
from sage_scale.vision.crop import Region, check_picture
from sage_scale.vision.sampling import StreamSampler, check_interval, check_length
from sage_scale.vision.scaling import PictureStack, SquareScaler
from sage_scale.vision.video_files import BYTES_AT_FAULT, open_video, read_through
from sage_scale.vision.video_frames import DecodeStats, Ending, FrameReader, TimedFrame
from sage_scale.vision.video_track import Survey, VideoTrack, open_track, survey_if_needed

_TRUNCATED_S = 1.0
_SOURCE_FRAMES_PER_FRAME = 16
_NO_PICTURE = np.zeros((0, 0), np.uint8)


@dataclass(frozen=True)
class Interval:
    """A stretch of a video."""

    start_s: float = 0.0
    end_s: float | None = None
    region: Region | None = None
    """The part of the picture that is wanted; None is its middle, or all of it where pictures are stretched."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What is made of a video's frames."""

    fps: float
    """Frame rate to which the clip is brought."""
    stride: int
    """Every how many frames a colour picture is made."""
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


def read_clip(
    path: Path, interval: Interval, pictures: Pictures, stats: DecodeStats | None = None
) -> ClipPictures:
    """One clip by itself. Raises ClipRejected for whatever lies in the file's bytes."""
    return _File(path, pictures, stats or DecodeStats()).one(interval)


def read_clips(
    path: Path, intervals: Sequence[Interval], pictures: Pictures, stats: DecodeStats | None = None
) -> Iterator[tuple[int, ClipPictures | ClipRejected]]:
    """(number in `intervals`, pictures or why there are none) of each, in the order in which they become complete.

    What the machine is to blame for is raised, as OSError or MemoryError.
    """
    file = _File(path, pictures, stats or DecodeStats())
    waiting = deque(sorted(range(len(intervals)), key=lambda number: intervals[number].start_s))
    while waiting:
        suspects: list[int] = []
        refused: ClipRejected | None = None
        try:
            with file.open() as video:
                yield from video.sweep(intervals, waiting, suspects)
        except ClipRejected as rejected:  # of the file, before any clip of it was looked at
            file.check_disk(rejected)
            refused = rejected
        if refused is not None:
            yield from ((number, refused) for number in waiting)
            return
        for number in suspects:
            try:
                outcome: ClipPictures | ClipRejected = file.one(intervals[number])
            except ClipRejected as rejected:
                outcome = rejected
            yield number, outcome


class _File:
    """A video file, and what reading it has taught."""

    def __init__(self, path: Path, pictures: Pictures, stats: DecodeStats) -> None:
        self.path, self.pictures, self.stats = path, pictures, stats
        self._known: list[Ending] = []
        self._survey: Survey | None = None
        self._disk_checked = False

    @contextlib.contextmanager
    def open(self) -> Iterator[_Video]:
        """Opens the file, to be read once. Raises ClipRejected for what is wrong with all of its clips."""
        with contextlib.ExitStack() as opened:

            def once_more() -> Any:
                self.stats.passes += 1
                opened.pop_all().close()
                return opened.enter_context(open_video(self.path))

            container = once_more()
            if self._survey is None:
                self._survey = survey_if_needed(self.path, container)
            track = open_track(container, self._survey)
            if track.note:
                self.stats.notes.append(f"{self.path.name}: {track.note}")
            yield _Video(container, track, once_more, self.pictures, self.stats, self._known)

    def one(self, interval: Interval) -> ClipPictures:
        """A clip by itself."""
        try:
            with self.open() as video:
                return video.one(interval)
        except ClipRejected as rejected:
            self.check_disk(rejected)
            raise

    def check_disk(self, rejected: ClipRejected) -> None:
        """Raise OSError where the file cannot be read to its end, so that its bytes are not to blame."""
        if rejected.reason in BYTES_AT_FAULT and not self._disk_checked:
            read_through(self.path)
            self._disk_checked = True


class _Clip:
    """A clip that is being read."""

    def __init__(self, number: int, interval: Interval, pictures: Pictures, stop_s: float | None) -> None:
        """`stop_s` is where it will end at the latest, as far as is known."""
        self.number, self.interval, self.pictures = number, interval, pictures
        expected = 64 if stop_s is None else round((stop_s - interval.start_s) * pictures.fps)
        expected = min(expected, pictures.max_frames)
        self.frames = PictureStack((pictures.size, pictures.size, 3), -(-expected // pictures.stride))
        self.greys = PictureStack((pictures.grey_size, pictures.grey_size), expected)
        self.sampler: StreamSampler[_Shown] = StreamSampler(
            pictures.fps, interval.start_s, interval.end_s, pictures.max_frames
        )
        self._seen = 0

    def push(self, timed: TimedFrame, shown: _Shown) -> None:
        """Take the next frame. Raises ClipRejected `too-long`, also for a video of absurdly many frames a second."""
        if timed.time_s >= self.interval.start_s:
            self._seen += 1
            limit = (self.pictures.max_frames + 1) * _SOURCE_FRAMES_PER_FRAME
            if self._seen > limit:
                raise ClipRejected("too-long", f"more than {limit} source frames")
        for k, picked in self.sampler.push(timed.time_s, timed.duration_s, shown):
            self._take(k, picked)

    def finish(self) -> None:
        """The video has ended."""
        for k, picked in self.sampler.finish():
            self._take(k, picked)

    def _take(self, k: int, shown: _Shown) -> None:
        self.greys.append(shown.grey(self.interval.region) if self.pictures.grey_size else _NO_PICTURE)
        if k % self.pictures.stride == 0:
            self.frames.append(shown.colour(self.interval.region))


class _Shown:
    """A frame and the squares made of it so far: clips that overlap share them."""

    __slots__ = ("_made", "_timed", "_video")

    def __init__(self, timed: TimedFrame, video: _Video) -> None:
        self._timed, self._video = timed, video
        self._made: dict[tuple[bool, Region | None], np.ndarray] = {}

    def colour(self, region: Region | None) -> np.ndarray:
        return self._square(True, region)

    def grey(self, region: Region | None) -> np.ndarray:
        return self._square(False, region)

    def _square(self, colour: bool, region: Region | None) -> np.ndarray:
        square = self._made.get((colour, region))
        if square is None:
            square = self._video.scale(self._timed, colour, region)
            self._made[colour, region] = square
        return square


class _Video:
    """An open video file."""

    def __init__(
        self,
        container: Any,
        track: VideoTrack,
        reopen: Callable[[], Any],
        pictures: Pictures,
        stats: DecodeStats,
        known: list[Ending],
    ) -> None:
        """Raises ClipRejected for what is wrong with every clip of the file. `known` takes what is found out about its
        end, and helps later readers of the same file."""
        # The stream is not kept: it is gone when the reader opens the file anew.
        check_picture(track.stream.codec_context.width, track.stream.codec_context.height)
        self.pixel_ratio = float(track.stream.sample_aspect_ratio or 1)
        self.first_s, self.end_s = track.first_s, track.end_s
        self.rate = track.rate or pictures.fps
        self.reader = FrameReader(container, track, stats, reopen)
        self.pictures, self.known = pictures, known
        stretch = pictures.stretch
        self._colour = SquareScaler(pictures.size, "rgb24", stretch=stretch)
        self._grey = SquareScaler(pictures.grey_size, "gray", stretch=stretch, cut_first=False)

    def scale(self, timed: TimedFrame, colour: bool, region: Region | None) -> np.ndarray:
        """A square of the frame."""
        scaler = self._colour if colour else self._grey
        return scaler(timed.frame, self.pixel_ratio, region, timed.orientation)

    def one(self, interval: Interval) -> ClipPictures:
        """A clip by itself."""
        interval = self._shown(interval)
        self._check(interval)
        clip = _Clip(0, interval, self.pictures, self._stop_s(interval))
        known = self.known[0] if self.known else None
        error: ClipRejected | None = None
        try:
            for timed in self.reader.frames_from(interval.start_s, known):
                clip.push(timed, _Shown(timed, self))
                if clip.sampler.done:
                    break
            else:
                clip.finish()
        except ClipRejected as rejected:
            if rejected.reason != "corrupt":
                raise
            error = rejected
        if not self.known and self.reader.from_beginning and self.reader.last_end_s <= interval.start_s:
            # All there is was read, and it ends before the clip begins: later clips will not have more.
            self.known.append(Ending(self.reader.last_end_s, error))
        if error is not None:
            raise error
        return self._complete(clip)

    def sweep(
        self, intervals: Sequence[Interval], waiting: deque[int], suspects: list[int]
    ) -> Iterator[tuple[int, ClipPictures | ClipRejected]]:
        """Clips of `waiting` (by start), which are taken from it, until none is left or the file complains.

        Then `suspects` are those that are to be read alone: what was under way or the next one, or all that are left.
        """
        intervals = [self._shown(interval) for interval in intervals]
        while waiting:
            refused = self._refused(intervals[waiting[0]])
            if refused is None:
                break
            yield waiting.popleft(), refused
        if not waiting:
            return
        under_way: list[_Clip] = []
        before: tuple[TimedFrame, _Shown] | None = None
        frames = self.reader.frames_from(intervals[waiting[0]].start_s, self.known[0] if self.known else None)
        sought = waiting[0]  # a seek may land far before its clip: it is not tried again for the same one
        while waiting or under_way:
            try:
                timed = next(frames, None)
            except ClipRejected:
                suspects.extend(waiting)
                break
            if timed is not None and not timed.sound:
                suspects.extend(waiting)
                break
            if timed is not None and not timed.on_time:
                break
            if timed is None and self._ends_early():
                break
            shown = None if timed is None else _Shown(timed, self)
            while waiting and (timed is None or intervals[waiting[0]].start_s <= timed.time_s):
                number = waiting.popleft()
                refused = self._refused(intervals[number])
                if refused is not None:
                    yield number, refused
                    continue
                stop_s = self._stop_s(intervals[number])
                clip = _Clip(number, intervals[number], self.pictures, stop_s)
                if before is not None:
                    clip.push(*before)
                under_way.append(clip)
            for clip in list(under_way):
                outcome = self._fed(clip, timed, shown)
                if isinstance(outcome, ClipRejected) and outcome.reason in BYTES_AT_FAULT:
                    continue  # it stays under way, and is read alone
                if outcome is not None:
                    under_way.remove(clip)
                    yield clip.number, outcome
            if timed is None:
                break
            assert shown is not None
            before = timed, shown
            idle = waiting and not under_way and sought != waiting[0]
            if idle and self.reader.skip_pays(intervals[waiting[0]].start_s):
                sought = waiting[0]
                frames = self.reader.frames_from(intervals[waiting[0]].start_s)
                before = None
        if suspects:
            waiting.clear()
        suspects[:0] = [clip.number for clip in under_way]
        if not suspects and waiting:
            suspects.append(waiting.popleft())

    def _ends_early(self) -> bool:
        """Whether frames ran out long before the length that the header promises."""
        return self.end_s is not None and self.end_s - self.reader.last_end_s > _TRUNCATED_S

    def _fed(
        self, clip: _Clip, timed: TimedFrame | None, shown: _Shown | None
    ) -> ClipPictures | ClipRejected | None:
        """The clip's outcome after this frame, or after the end; None where it goes on."""
        try:
            if timed is None:
                clip.finish()
            else:
                assert shown is not None
                clip.push(timed, shown)
                if not clip.sampler.done:
                    return None
            return self._complete(clip)
        except ClipRejected as rejected:
            return rejected

    def _refused(self, interval: Interval) -> ClipRejected | None:
        try:
            self._check(interval)
        except ClipRejected as rejected:
            return rejected
        return None

    def _shown(self, interval: Interval) -> Interval:
        """Returns the interval without what lies before the first picture, as what lies behind the last is cut."""
        return replace(interval, start_s=self.first_s) if interval.start_s < self.first_s else interval

    def _check(self, interval: Interval) -> None:
        """Raises ClipRejected for what need not be decoded to be refused."""
        if self.first_s and interval.end_s is not None and interval.end_s <= self.first_s:
            raise ClipRejected(
                "too-short",
                f"0 frames, it ends at {interval.end_s:g} s, the first picture is at {self.first_s:.2f} s",
            )
        check_interval(interval.start_s, interval.end_s, self.end_s)
        stop_s = self._stop_s(interval)
        if stop_s is not None:
            check_length(round((stop_s - interval.start_s) * self.pictures.fps), 0, self.pictures.max_frames)

    def _stop_s(self, interval: Interval) -> float | None:
        if self.end_s is None:
            return interval.end_s
        return min(interval.end_s or self.end_s, self.end_s)

    def _complete(self, clip: _Clip) -> ClipPictures:
        """The pictures, after a look at whether all are there: a file cut short decodes without an error up to its
        end, so what its header promises is compared."""
        last_end_s, stop_s = self.reader.last_end_s, self._stop_s(clip.interval)
        if last_end_s == 0:
            raise ClipRejected("empty", "no frame could be decoded")
        if self.end_s is not None and stop_s is not None:
            missing_s = stop_s - last_end_s
            if missing_s > _TRUNCATED_S and missing_s > 0.1 * self.end_s:
                raise ClipRejected("truncated", f"ends at {last_end_s:.2f} s of {self.end_s:.2f} s")
        check_length(clip.greys.count, self.pictures.min_frames, self.pictures.max_frames)
        if not clip.greys.count:  # a recipe may permit clips of no frames, but nothing can be made of them
            raise ClipRejected("too-short", "0 frames")
        return ClipPictures(clip.frames.array(), clip.greys.array(), self.rate)
