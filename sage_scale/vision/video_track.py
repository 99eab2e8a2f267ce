"""The video stream of a file, the times of its pictures, and its end: the same for every reader.

**Stream.** Attached pictures (covers) and thumbnails are no video. Of several video streams the default one is taken,
with a note to the user.

**Clock.** Time zero is the file's start, the earliest picture or sound, as for players (mpv, VLC) and captions: if
pictures begin two seconds after the sound, the first one is at 2 s. A container's own times may begin anywhere (1.4 s
in many transport streams). Sound before zero is a codec's priming, which is not played.

**End.** MP4 and AVI store the length of each track. Others store that of the longest stream (Matroska, FLV) or none
(transport and program streams, where ffmpeg guesses). Their packets are read, not decoded: the last ones where the
container finds them by its index, else all.

**Clocks that start again.** Where files were joined byte by byte, the second one's times begin again. They go on from
where the first one ended, as in ffmpeg's own tool.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from sage_scale.errors import ClipRejected
from sage_scale.vision.video_files import open_video

_NO_VIDEO = int(Disposition.attached_pic | Disposition.timed_thumbnails)
_PICTURE_CODECS = {"mjpeg", "png", "apng", "bmp", "gif", "webp", "tiff", "jpegls", "jpeg2000"}
_TRACK_LENGTHS = {"mov,mp4,m4a,3gp,3g2,mj2", "avi"}
"""Formats whose header has the length of each track."""
_NO_HEADER = {"mpegts", "mpeg"}
"""Formats that store no length and are often joined: all packets are read."""
_NO_TIMES = {"mpegvideo", "h264", "hevc"}
"""Formats without a clock."""
_BACK_S = 0.1
"""A step back of the packets' clock by more than this is a clock that starts again (ffmpeg's own limit), seconds."""
_AHEAD_S = 10.0
"""A step ahead by more than this in a format without a header is another clock (ffmpeg's own limit), seconds."""
_TAIL_S = 1.0
"""How far the last packet of any stream may lie before the length that a container claims for a whole file, seconds."""
_TIMED_IN_A_ROW = 16
_MOST_UNTIMED = 2000


@dataclass(frozen=True)
class PacketScan:
    """The clock of a video by the packets of its file. Times are the container's own, seconds."""

    end_s: float = 0.0
    """End of the last picture."""
    file_end_s: float = 0.0
    """End of the last packet of any stream."""
    first_ticks: int | None = None
    """Time of the first picture, ticks, where it lies before zero: Matroska then gives it none."""
    restarts: int = 0
    """How often the clock starts again."""
    strays: int = 0
    """Packets whose time is far from that of both neighbours: damage."""


@dataclass(frozen=True)
class VideoTrack:
    """The video of an open file. Its clock counts seconds from the file's start."""

    stream: Any
    """The video stream, set to one thread; it is gone when its container is closed."""
    first_ticks: int
    """The container's time of the first picture, ticks of the stream's time base."""
    first_s: float
    """When the first picture is shown."""
    end_s: float | None
    """When the last picture ends; None if unknown."""
    rate: float
    """Pictures a second on average, 0 if unknown."""
    restarts: int
    """How often the container's clock starts again."""
    strays: int
    note: str
    """Note to the user on the choice of stream and clock, one line; mostly empty."""
    height: int = 0
    """Of the stored pictures, pixels; 0 if unknown."""

    def reopened(self, container: Any) -> VideoTrack:
        """Returns the same track of the same file, opened once more."""
        return replace(self, stream=choose_stream(container)[0])

    def packets(self, container: Any) -> Iterator[Any]:
        """Returns the remaining packets of the video, with times corrected where clocks start again."""
        packets = _demuxed(container, self.stream)
        return _ContinuousClock(self.stream).continued(packets) if self.restarts or self.strays else packets


def choose_stream(container: Any) -> tuple[Any, str]:
    """Returns the video stream, set to one thread, and a note where there was a choice.

    Raises ClipRejected `no-video`, or `unreadable` where there is no decoder for it.
    """
    streams = [stream for stream in container.streams.video if not int(stream.disposition) & _NO_VIDEO]
    if not streams:
        pictures = len(container.streams.video)
        others = f", {pictures} of them attached pictures" if pictures else ", none of them video"
        raise ClipRejected("no-video", f"{len(container.streams)} streams{others}")
    stream = min(streams, key=_rank)
    if stream.codec_context is None:
        raise ClipRejected("unreadable", "no decoder for this video codec")
    with contextlib.suppress(av.error.FFmpegError, RuntimeError):
        stream.codec_context.thread_count = 1
        stream.thread_type = "NONE"
    return stream, _choice(stream, streams) if len(streams) > 1 else ""


def _rank(stream: Any) -> tuple[bool, bool, bool, bool, int]:
    """Sorts moving pictures and default streams first."""
    codec = stream.codec_context.name if stream.codec_context is not None else ""
    return (
        stream.codec_context is None,
        stream.frames == 1,
        not int(stream.disposition) & int(Disposition.default),
        codec in _PICTURE_CODECS,
        stream.index,
    )


def _choice(stream: Any, streams: list[Any]) -> str:
    context = stream.codec_context
    default = sum(bool(int(each.disposition) & int(Disposition.default)) for each in streams)
    return (
        f"{len(streams)} video streams, {default or 'none'} of them default: stream {stream.index} is taken "
        f"({context.name}, {context.width} x {context.height})"
    )


def read_track(path: Path) -> VideoTrack:
    """Returns the video of a file, whose stream is closed. Errors as `open_video` and `choose_stream`."""
    with open_video(path) as container:
        return open_track(container, scan_if_needed(path, container))


def scan_if_needed(path: Path, container: Any) -> PacketScan | None:
    """Returns a scan of the packets if the header of an open file does not tell the end of its video, else None."""
    name = container.format.name
    has_length = name in _TRACK_LENGTHS and choose_stream(container)[0].duration
    if name in _NO_TIMES or has_length:
        return None
    for from_tail in (True, False):
        with open_video(path) as other:
            scan = _scan(other, from_tail)
        if scan.end_s:
            break
    return scan


def _scan(container: Any, from_tail: bool) -> PacketScan:
    """Returns a scan of the packets of a newly opened file, which exhausts the container.

    With `from_tail` only the last ones are read, if the container can find them; none of them may be of the video.
    """
    stream, _ = choose_stream(container)
    matroska = "matroska" in container.format.name
    first_ticks = _before_zero(container, stream) if matroska else None
    if from_tail and container.format.name not in _NO_HEADER and container.duration:
        with contextlib.suppress(av.error.FFmpegError):  # where it cannot seek, all is read
            container.seek(int(container.duration / av.time_base / stream.time_base), stream=stream)
    clock = _ContinuousClock(stream)
    file_end_s = 0.0
    bases = [float(each.time_base or 0) for each in container.streams]

    def of_video() -> Iterator[Any]:
        nonlocal file_end_s
        for packet in _demuxed(container):
            time = packet.dts if packet.pts is None else packet.pts
            if time is not None:
                end_s = (time + (packet.duration or 0)) * bases[packet.stream_index]
                file_end_s = max(file_end_s, end_s)
            if packet.stream_index == stream.index:
                yield packet

    try:
        for _ in clock.continued(of_video()):
            pass
    except av.error.ExitError:
        raise  # the file system hangs
    except av.error.FFmpegError:
        pass  # the decoder will raise it again
    end_s = (clock.end_ticks or 0) * float(stream.time_base)
    return PacketScan(end_s, file_end_s, first_ticks, clock.restarts, clock.strays)


def open_track(container: Any, scan: PacketScan | None) -> VideoTrack:
    """Returns the video of an open file; `scan` is the result of `scan_if_needed`.

    Raises ClipRejected as `choose_stream` does.
    """
    stream, note = choose_stream(container)
    tick_s = float(stream.time_base)
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    first_ticks = stream.start_time or 0
    if scan is not None and scan.first_ticks is not None:
        first_ticks = scan.first_ticks
    starts_s = [
        float(sound.start_time * sound.time_base)
        for sound in container.streams.audio
        if sound.start_time is not None
    ]
    zero_s = min([first_ticks * tick_s, *(max(0.0, start_s) for start_s in starts_s)])
    first_s = first_ticks * tick_s - zero_s
    end_s = _end_s(container, stream, scan, zero_s, first_s)
    restarts, strays = (scan.restarts, scan.strays) if scan else (0, 0)
    if restarts:
        often = "once" if restarts == 1 else f"{restarts} times"
        note += f"{'; ' if note else ''}its clock starts again {often}: times go on from there"
    return VideoTrack(stream, first_ticks, first_s, end_s, rate, restarts, strays, note, stream.height or 0)


def _end_s(
    container: Any, stream: Any, scan: PacketScan | None, zero_s: float, first_s: float
) -> float | None:
    claimed_s = container.duration / av.time_base if container.duration else None
    if scan is None or not scan.end_s:
        if stream.duration:
            return float(stream.duration * stream.time_base) + first_s
        return claimed_s
    if scan.restarts or container.format.name in _NO_HEADER or claimed_s is None:
        return scan.end_s - zero_s
    # Whether the claimed length counts from the container's zero or from its first packet differs by writer.
    whole = max(scan.file_end_s, scan.file_end_s - zero_s) >= claimed_s - _TAIL_S
    return scan.end_s - zero_s if whole else claimed_s


def _demuxed(container: Any, *streams: Any) -> Iterator[Any]:
    """Yields the packets of the streams, by default of all.

    At the end PyAV raises IndexError for streams that came up on the way (sound that begins later). By then it has
    flushed the decoders of all streams that it knows.
    """
    with contextlib.suppress(IndexError):
        yield from container.demux(*streams)


def _before_zero(container: Any, stream: Any) -> int | None:
    """Returns the time of the first picture, ticks, counted back from the first one with a time; None if it has one."""
    untimed = in_a_row = 0
    first: int | None = None
    with contextlib.suppress(av.error.FFmpegError):
        for packet in _demuxed(container, stream):
            if packet.pts is not None:
                first = packet.pts if first is None else min(first, packet.pts)
                in_a_row += 1
            elif packet.size:
                untimed, in_a_row = untimed + 1, 0
            if in_a_row >= (_TIMED_IN_A_ROW if untimed else 1) or untimed > _MOST_UNTIMED:
                break
    return first - untimed * _frame_ticks(stream) if untimed and first is not None else None


def _frame_ticks(stream: Any) -> int:
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    return max(1, round(1 / rate / float(stream.time_base)))


class _ContinuousClock:
    """Corrects the times of a stream's packets where its clock starts again."""

    def __init__(self, stream: Any) -> None:
        self.end_ticks: int | None = None
        """End of the latest picture so far."""
        self.restarts = self.strays = 0
        tick_s = float(stream.time_base)
        self._frame = _frame_ticks(stream)
        self._back = round(_BACK_S / tick_s)
        no_header = stream.container.format.name in _NO_HEADER
        self._ahead = round(_AHEAD_S / tick_s) if no_header else None
        # Others store no decoding times, and ffmpeg's guesses are no clock; key frames are shown in their stored order.
        self._decoding_times = no_header

    def continued(self, packets: Iterable[Any]) -> Iterator[Any]:
        """Yields the packets of the stream, with a clock that starts again moved to where the last one ended.

        The packet behind a step decides: a single packet far from both neighbours is damage, and loses its time.
        """
        shift = 0
        last: int | None = None
        suspect: Any = None
        for packet in packets:
            stamp = self._stamp(packet)
            if suspect is not None:
                there = self._stamp(suspect)
                assured = packet.dts if self._decoding_times else packet.pts
                assert there is not None and last is not None
                if assured is not None and abs(assured - there) < abs(assured - last):
                    first = there if suspect.pts is None else suspect.pts
                    shift, last = (self.end_ticks or 0) - first, there
                    self.restarts += 1
                else:
                    self.strays += 1
                    suspect.pts = suspect.dts = None
                yield self._moved(suspect, shift)
                suspect = None
            if stamp is not None:
                if last is not None and self._is_step(stamp - last):
                    suspect = packet
                    continue
                last = stamp
            yield self._moved(packet, shift)
        if suspect is not None:
            suspect.pts = suspect.dts = None
            yield suspect

    def _stamp(self, packet: Any) -> int | None:
        if self._decoding_times:
            return packet.dts
        return packet.pts if packet.is_keyframe else None

    def _is_step(self, ticks: int) -> bool:
        return ticks < -self._back or (self._ahead is not None and ticks > self._ahead)

    def _moved(self, packet: Any, shift: int) -> Any:
        time = packet.dts if packet.pts is None else packet.pts
        if time is not None:
            end = time + shift + (packet.duration or self._frame)
            self.end_ticks = end if self.end_ticks is None else max(self.end_ticks, end)
        if shift:
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift
        return packet
