"""Reads the frames of an open video from a given time, with their presentation times, and decides when to seek.

A seek is valid if its first frame is not later than the requested time. A container without an index may land anywhere:
an earlier target is tried next, and finally the file's beginning.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import av
from av.video.frame import VideoFrame

from sage_scale.errors import ClipRejected
from sage_scale.untrusted.damage import no_memory
from sage_scale.vision.crop import UPRIGHT, Orientation, check_picture
from sage_scale.vision.video_files import ffmpeg_message
from sage_scale.vision.video_track import VideoTrack

MIN_SEEK_S = 1.0
"""Least time that a seek must skip, seconds: a seek flushes the decoder, which costs as much as a few frames."""
MIN_SEEK_WITHOUT_INDEX_S = 30.0
"""The same for a container without an index of key frames, where a seek may land anywhere before its target."""
_NO_SEEKS = {"mpeg", "mpegvideo", "h264", "hevc", "rm"}
"""Formats with missing or estimated times after a seek: those of an MPEG program stream are half a frame off."""
_STEPS_BACK_S = (0.0, 4.0, 16.0)
_EPSILON_S = 1e-6
_MATRIX = struct.Struct("=9i")
_MATRIX_TYPE: Any = "DISPLAYMATRIX"


@dataclass
class DecodeStats:
    """Counts of the work of reading videos."""

    decoded: int = 0
    """Decoded frames."""
    seeks: int = 0
    """Jumps within the file."""
    passes: int = 0
    """Times the file was opened."""
    notes: list[str] = field(default_factory=list)
    """Notes to the user, not yet shown, one line each."""
    part: Callable[[int, float], None] = lambda frames, share: None
    """Called in the course of a long clip with frames since the last call, and the clip's share that is done (0 where
    unknown)."""

    def take_notes(self) -> tuple[str, ...]:
        """Removes and returns the notes, without repeats."""
        taken = [self.notes.pop(0) for _ in range(len(self.notes))]  # another thread may add to them
        return tuple(dict.fromkeys(taken))


@dataclass(frozen=True, slots=True)
class TimedFrame:
    """A decoded frame with its presentation time."""

    time_s: float
    """Seconds from the file's start."""
    duration_s: float
    frame: VideoFrame
    orientation: Orientation
    """Rotation and mirroring to apply for display."""
    intact: bool
    """False where the decoder reported damage: frames may then decode differently after a seek."""
    on_time: bool = True
    """False if frames just before this one were dropped because their times did not increase."""


@dataclass(frozen=True)
class FileEnd:
    """The end of the file, known after reading it from the beginning."""

    last_end_s: float
    """End of the last frame that could be decoded, seconds."""
    error: ClipRejected | None
    """The decoding error that ended the reading early."""


class FrameReader:
    """Reads the frames of one open video file from a given time."""

    def __init__(
        self, container: Any, track: VideoTrack, stats: DecodeStats, reopen: Callable[[], Any]
    ) -> None:
        """`reopen` opens the same file as a new container: some formats cannot seek to the beginning."""
        self.container, self.track, self.stats, self._reopen = container, track, stats, reopen
        self.last_end_s = 0.0
        """End of the last decoded frame, seconds."""
        self.from_beginning = False
        """Whether the last reading began at the file's beginning."""
        self.rate = track.rate or 25.0
        self._can_seek = container.format.name not in _NO_SEEKS
        self._skip_s: float | None = None
        """Time at which decoding begins without a seek: earlier packets are read, but not decoded."""
        self._fresh = True  # nothing read yet: the beginning needs no seek
        self._time_base = float(track.stream.time_base)

    def frames_from(self, start_s: float, known: FileEnd | None = None) -> Iterator[TimedFrame]:
        """Yields frames in order, beginning at or before `start_s` if the video has such a frame.

        `known` is the file's end from an earlier reading: if it is before `start_s`, the file is not read again.
        Raises ClipRejected `corrupt`.
        """
        self.last_end_s, self.from_beginning = 0.0, False
        if start_s > self.track.first_s and self._can_seek:
            for back_s in _STEPS_BACK_S:
                if back_s >= start_s or not self._seek(start_s - back_s):
                    break
                frames = self._decode(started=False)
                first = next(frames, None)
                if first is not None and first.time_s <= start_s + _EPSILON_S:
                    yield first
                    yield from frames
                    return
                frames.close()
                if first is None and known is not None and known.error is None:
                    break  # after the file's end
        if known is not None and known.last_end_s <= start_s:
            self.last_end_s = known.last_end_s
            if known.error is not None:
                raise ClipRejected(known.error.reason, known.error.detail)
            return
        self.from_beginning = True
        if not self._fresh:
            self._can_seek = False  # no seek was valid
            self._open_again()
        yield from self._decode(started=True)

    def should_seek(self, start_s: float) -> bool:
        """Returns whether a seek from the last frame to `start_s` is faster than decoding up to it.

        With an index, the target key frame must be at least MIN_SEEK_S ahead. Without one, the gap must be at least
        MIN_SEEK_WITHOUT_INDEX_S, more than the distance of key frames in nearly all videos.
        """
        here_s = self.last_end_s
        if not self._can_seek or self.track.restarts or start_s - here_s < MIN_SEEK_S:
            return False
        entries = self.track.stream.index_entries
        if entries is not None and len(entries):
            at = entries.search_timestamp(self._ticks(start_s))
            if at >= 0 and self._time_s(entries[at].timestamp) - here_s >= MIN_SEEK_S:
                return True
            if entries[len(entries) - 1].timestamp >= self._ticks(start_s):  # the index covers that time
                return False
        return start_s - here_s >= MIN_SEEK_WITHOUT_INDEX_S

    def _ticks(self, time_s: float) -> int:
        return int((time_s - self.track.first_s) / self.track.stream.time_base) + self.track.first_ticks

    def _time_s(self, ticks: int) -> float:
        return (ticks - self.track.first_ticks) * self._time_base + self.track.first_s

    def _open_again(self) -> None:
        self.container = self._reopen()
        self.track = self.track.reopened(self.container)
        self._skip_s = None

    def _seek(self, time_s: float) -> bool:
        if self.track.restarts:  # the file's clock restarts, so a time may occur twice in the container
            if not self._fresh:
                self._open_again()
            self._skip_s = time_s
            return True
        self._fresh = False
        try:
            self.container.seek(self._ticks(time_s), stream=self.track.stream, backward=True)
        except av.error.FFmpegError:
            return False
        self.stats.seeks += 1
        return True

    def _decoded(self) -> Iterator[VideoFrame]:
        packets = self.track.packets(self.container)
        if self._skip_s is not None:
            packets = self._behind(packets, self._ticks(self._skip_s))
        for packet in packets:
            yield from packet.decode()

    def _behind(self, packets: Iterator[Any], ticks: int) -> Iterator[Any]:
        """Yields packets from the last key frame that is shown at `ticks` or before."""
        ahead: list[Any] = []
        for packet in packets:
            time = packet.pts if packet.dts is None else packet.dts
            if packet.is_keyframe and (packet.pts is None or packet.pts <= ticks):
                ahead.clear()
            ahead.append(packet)
            if time is not None and time > ticks:
                break
        yield from ahead
        yield from packets

    def _decode(self, started: bool) -> Generator[TimedFrame, None, None]:
        """Yields frames with increasing times.

        After a seek (not `started`) the first frame is a key frame, since other frames may lack their reference frames.
        Without a time on that key frame no frame is yielded, since its position is unknown.
        """
        self._fresh = False
        previous_s: float | None = None
        on_time = True
        orientation: Orientation | None = None
        try:
            for frame in self._decoded():
                self.stats.decoded += 1
                # The lookup costs a tenth of decoding a small frame.
                if orientation is None or frame.key_frame:
                    orientation = _orientation(frame)
                check_picture(frame.width, frame.height)
                if not started and previous_s is None and (frame.is_corrupt or not frame.key_frame):
                    continue
                if frame.pts is not None:
                    time_s = self._time_s(frame.pts)
                elif previous_s is not None:
                    time_s = previous_s + 1 / self.rate
                elif started:
                    time_s = self.track.first_s
                else:
                    return
                if previous_s is not None and time_s <= previous_s:
                    on_time = False
                    continue
                duration_s = (frame.duration or 0) * self._time_base
                if not 0 < duration_s <= 1:
                    duration_s = 1 / self.rate
                previous_s = time_s
                self.last_end_s = time_s + duration_s
                yield TimedFrame(time_s, duration_s, frame, orientation, not frame.is_corrupt, on_time)
                on_time = True
        except av.error.ExitError:
            raise  # the file system hangs
        except av.error.MemoryError:
            raise no_memory("corrupt", f"no memory to decode {self.container.name}") from None
        except av.error.FFmpegError as error:
            raise ClipRejected("corrupt", f"{ffmpeg_message(error)} after {self.last_end_s:.2f} s") from None


def _orientation(frame: VideoFrame) -> Orientation:
    """Returns the orientation from the frame's display matrix, which the container or the stream provides."""
    matrix: Any = frame.side_data.get(_MATRIX_TYPE)
    if matrix is None or len(bytes(matrix)) < _MATRIX.size:
        return UPRIGHT
    return Orientation.of_matrix(_MATRIX.unpack_from(bytes(matrix)))
