"""Files of several streams: numbered pictures, sound and covers, each beginning at a time of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from made_videos import BASE, STEP

MS = Fraction(1, 1000)


@dataclass(frozen=True)
class Pictures:
    """Numbered pictures, number t of the one grey level that `made_videos.numbers` reads."""

    frames: int = 50
    start_s: float = 0.0
    first: int = 0
    """Number of the first picture."""
    rate: int = 25
    codec: str = "libx264"
    size: tuple[int, int] = (64, 48)
    disposition: int = 0
    b_frames: int = 0


@dataclass(frozen=True)
class Sound:
    """A tone."""

    seconds: float
    start_s: float = 0.0
    codec: str = "aac"
    disposition: int = 0


COVER = Pictures(
    frames=1, first=40, rate=1, codec="mjpeg", size=(96, 96), disposition=int(Disposition.attached_pic)
)


def write_tracks(
    path: Path, tracks: Sequence[Pictures | Sound], container_options: dict[str, str] | None = None
) -> Path:
    """Writes the tracks into one file, in their order, and returns its path."""
    packets = []
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        for track in tracks:
            packets += (
                _pictures(container, track) if isinstance(track, Pictures) else _sound(container, track)
            )
        for _, packet in sorted(packets, key=lambda timed: timed[0]):
            container.mux(packet)
    return path


def _pictures(container, track: Pictures) -> list:
    options = {
        "libx264": {"threads": "1", "qp": "4", "g": "12", "bf": str(track.b_frames)},
        "libvpx": {"crf": "4", "b": "4M", "g": "12", "deadline": "realtime", "cpu-used": "8"},
        "mpeg2video": {"g": "12", "qscale": "2"},
    }
    stream = container.add_stream(track.codec, rate=track.rate, options=options.get(track.codec, {}))
    stream.width, stream.height = track.size
    stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(track.codec, "yuv420p")
    if track.codec != "mpeg2video":  # it has a list of rates
        stream.codec_context.time_base = MS
    stream.disposition = track.disposition
    packets = []
    for t in range(track.frames):
        level = BASE + STEP * (track.first + t)
        frame = av.VideoFrame.from_ndarray(np.full((*track.size[::-1], 3), level, np.uint8), "rgb24")
        frame.pts, frame.time_base = round(1000 * (track.start_s + t / track.rate)), MS
        if track.codec == "mpeg2video":
            frame.pts, frame.time_base = t + round(track.start_s * track.rate), Fraction(1, track.rate)
        packets += stream.encode(frame)
    return _timed([*packets, *stream.encode(None)])


def _sound(container, track: Sound) -> list:
    rate = 48000 if track.codec == "libopus" else 16000
    stream = container.add_stream(track.codec, rate=rate, layout="mono")
    stream.disposition = track.disposition
    packets = []
    step = stream.codec_context.frame_size or 960
    for begin in range(0, round(track.seconds * rate), step):
        tone = np.sin(np.arange(begin, begin + step)[None] / 20).astype(np.float32) / 4
        kind = stream.format.name
        if kind.startswith("s16"):
            tone = (tone * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(tone, kind, "mono")
        frame.sample_rate = rate
        frame.pts, frame.time_base = begin + round(track.start_s * rate), Fraction(1, rate)
        packets += stream.encode(frame)
    return _timed([*packets, *stream.encode(None)])


def _timed(packets: list) -> list:
    return [(float(packet.dts * packet.time_base), packet) for packet in packets]
