"""Small real videos: numbered grey pictures, moving squares, and files of several streams.

Frame t of a numbered video is a picture of the one grey level BASE + STEP * t.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

BASE, STEP = 12, 4


def numbers(frames: np.ndarray) -> list[int]:
    """The source frame numbers that decoded pictures (n, H, W, 3) or (n, H, W) show."""
    levels = frames.reshape(len(frames), -1).mean(1)
    # Colours are kept in 8 bits of another space, and swscale's way back to RGB loses one level on average.
    lost = 1 if frames.ndim == 4 else 0
    return np.rint((levels + lost - BASE) / STEP).astype(int).tolist()


def write_video(
    path: Path,
    frames: int | Iterable[np.ndarray] = 50,
    *,
    rate: Fraction | int = 25,
    times: Sequence[float] | None = None,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A video of numbered grey pictures, or of the given RGB ones; `times` in seconds makes its rate vary."""
    if isinstance(frames, int):
        frames = [np.full((size[1], size[0], 3), BASE + STEP * t, np.uint8) for t in range(frames)]
    pictures = iter(frames)
    first = next(pictures)
    size = first.shape[1], first.shape[0]
    options = options or ({"threads": "1", "qp": "4", "g": "12"} if codec == "libx264" else {})
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for t, picture in enumerate(itertools.chain([first], pictures)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[t] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def camera_pictures(
    ground: np.ndarray, frames: int, patch: np.ndarray | int, noise: float = 3, seed: int = 0
) -> Iterator[np.ndarray]:
    """Pictures with noise and a patch (or a coloured square of that side) that moves over `ground`, (H, W, 3)."""
    height, width, _ = ground.shape
    shades = np.random.default_rng(seed).normal(0, noise, (8, height, width, 1)).astype(np.int16)
    for t in range(frames):
        picture = ground.astype(np.int16) + shades[t % len(shades)]
        shown = np.full((patch, patch, 3), (240, t % 256, 90)) if isinstance(patch, int) else patch
        top, left = (int((0.4 + 0.3 * np.sin(t / p)) * n) for p, n in ((5.0, height), (7.0, width)))
        picture[top : top + len(shown), left : left + shown.shape[1]] = shown
        yield np.clip(picture, 0, 255).astype(np.uint8)


def write_square(path: Path, frames: int, seed: int, size: int = 48) -> Path:
    """A bright square that moves over noise, 25 frames a second."""
    noise = np.random.default_rng(seed).integers(0, 60, (size, size, 3), np.uint8)
    pictures = []
    for number in range(frames):
        at = (3 * number + seed) % (size - 12)
        pictures.append(noise.copy())
        pictures[-1][at : at + 12, size // 3 : size // 3 + 12] = 230
    return write_video(path, pictures, options={"threads": "1", "preset": "ultrafast"})


def write_signing(path: Path, seed: int, frames: int = 60, size: int = 64) -> Path:
    """A square that travels between random points and slows down at each, so that the motion tagger cuts there."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(8, size - 8, size=(frames // 9 + 2, 2))
    colour = rng.integers(120, 255, 3)
    pictures = []
    for t in range(frames):
        i, share = divmod(t, 9)
        ease = (1 - np.cos(np.pi * share / 9)) / 2
        x, y = (points[i] * (1 - ease) + points[i + 1] * ease).round().astype(int)
        pictures.append(np.full((size, size, 3), 40, np.uint8))
        pictures[-1][max(y - 7, 0) : y + 7, max(x - 7, 0) : x + 7] = colour
    return write_video(path, pictures, options={"crf": "18"})


MS = Fraction(1, 1000)


@dataclass(frozen=True)
class Pictures:
    """Numbered pictures, number t of the one grey level that `numbers` reads."""

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
