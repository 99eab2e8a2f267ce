"""The frames of an open video from any time on, with their times on the file's clock, and the decision to seek.

A seek is right when its first frame is not behind the time asked for. Containers without an index may land anywhere:
then an earlier time is tried, and at last the beginning.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import av
from av.video.frame import VideoFrame

from sage_scale.errors import ClipRejected
from sage_scale.vision.archives import no_memory
from sage_scale.vision.crop import UPRIGHT, Orientation, check_picture
from sage_scale.vision.video_files import ffmpeg_message
from sage_scale.vision.video_track import VideoTrack

SKIP_S = 1.0
"""Least video that a seek must skip, seconds: it flushes the decoder, which costs as much as a few frames."""
SKIP_WITHOUT_INDEX_S = 30.0
"""The same for a container without an index of key frames, where a seek may land anywhere before its target."""
_NO_SEEKS = {"mpeg", "mpegvideo", "h264", "hevc", "rm"}
"""Formats whose times after a seek are guesses (or none): an MPEG program stream comes back half a frame off."""
_STEPS_BACK_S = (0.0, 4.0, 16.0)
_EPSILON_S = 1e-6
_MATRIX = struct.Struct("=9i")
_MATRIX_TYPE: Any = "DISPLAYMATRIX"


@dataclass
class DecodeStats:
    """Work of reading videos."""

    decoded: int = 0
    """Frames that left the decoder."""
    seeks: int = 0
    """Jumps within the file."""
    passes: int = 0
    """Times the file was opened."""
    notes: list[str] = field(default_factory=list)
    """Notes to the user that were not shown yet, one line each."""

    def take_notes(self) -> tuple[str, ...]:
        """Returns the notes so far, each once."""
        taken = [self.notes.pop(0) for _ in range(len(self.notes))]  # another thread may add to them
        return tuple(dict.fromkeys(taken))


@dataclass(frozen=True, slots=True)
class TimedFrame:
    """A decoded frame and when it is shown."""

    time_s: float
    """Seconds from the file's start."""
    duration_s: float
    frame: VideoFrame
    orientation: Orientation
    """How the stored picture is turned and mirrored to be shown."""
    intact: bool
    """False where the decoder reported damage: frames may then decode differently after a seek."""
    on_time: bool = True
    """False if frames before it were left out because their times did not rise."""


@dataclass(frozen=True)
class Ending:
    """The end of a reading of the whole file."""

    last_end_s: float
    """End of the last frame that could be decoded, seconds."""
    error: ClipRejected | None
    """The error that ended it before the file's end."""


class FrameReader:
    """Reads the frames of one open video file from any time on."""

    def __init__(
        self, container: Any, track: VideoTrack, stats: DecodeStats, reopen: Callable[[], Any]
    ) -> None:
        """`reopen` opens the same file as a new container: some formats never find back from a seek."""
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

    def frames_from(self, start_s: float, known: Ending | None = None) -> Iterator[TimedFrame]:
        """Frames in order, the first of them at or before `start_s` wherever the video has one.

        `known` is the end of an earlier reading from the beginning: if it lies before `start_s`, the file is not read
        again. Raises ClipRejected `corrupt`.
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
                    break  # behind the file's end
        if known is not None and known.last_end_s <= start_s:
            self.last_end_s = known.last_end_s
            if known.error is not None:
                raise ClipRejected(known.error.reason, known.error.detail)
            return
        self.from_beginning = True
        if not self._fresh:
            self._can_seek = False  # a seek led nowhere
            self._open_again()
        yield from self._decode(started=True)

    def skip_pays(self, start_s: float) -> bool:
        """Returns whether a seek from the last frame to `start_s` saves more than it costs.

        With an index the key frame it would land on is known: it must lie SKIP_S ahead. Without one the gap itself must
        be SKIP_WITHOUT_INDEX_S, more than the distance of key frames in nearly all videos.
        """
        here_s = self.last_end_s
        if not self._can_seek or self.track.restarts or start_s - here_s < SKIP_S:
            return False
        entries = self.track.stream.index_entries
        if entries is not None and len(entries):
            at = entries.search_timestamp(self._ticks(start_s))
            if at >= 0 and self._time_s(entries[at].timestamp) - here_s >= SKIP_S:
                return True
            if entries[len(entries) - 1].timestamp >= self._ticks(start_s):  # the index covers that time
                return False
        return start_s - here_s >= SKIP_WITHOUT_INDEX_S

    def _ticks(self, time_s: float) -> int:
        return int((time_s - self.track.first_s) / self.track.stream.time_base) + self.track.first_ticks

    def _time_s(self, ticks: int) -> float:
        return (ticks - self.track.first_ticks) * self._time_base + self.track.first_s

    def _open_again(self) -> None:
        self.container = self._reopen()
        self.track = self.track.reopened(self.container)
        self._skip_s = None

    def _seek(self, time_s: float) -> bool:
        if self.track.restarts:  # the container would look for another time, and may find it twice
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
        """Yields frames in rising time. After a seek (not `started`) they begin with a key frame, since others may lack
        their reference frames; if it has no time there are none, since it is not known which frame it is."""
        self._fresh = False
        previous_s: float | None = None
        on_time = True
        orientation: Orientation | None = None
        try:
            for frame in self._decoded():
                self.stats.decoded += 1
                # Looking it up costs a tenth of decoding a small frame.
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
    """Returns the orientation by the display matrix of the frame, which comes from the container or the stream."""
    matrix: Any = frame.side_data.get(_MATRIX_TYPE)
    if matrix is None or len(bytes(matrix)) < _MATRIX.size:
        return UPRIGHT
    return Orientation.of_matrix(_MATRIX.unpack_from(bytes(matrix)))
