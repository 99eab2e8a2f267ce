"""Videos as they come: rates, containers, codecs, B-frames, open GOPs, turned and interlaced pictures."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
from factories.videos import write_video

X264 = {"threads": "1", "preset": "ultrafast", "qp": "12"}


def scenes(frames: int, width: int = 64, height: int = 48, seed: int = 0) -> list[np.ndarray]:
    """RGB pictures in which something moves over a smooth ground, each different from the others."""
    rng = np.random.default_rng(seed)
    ground = np.kron(rng.integers(40, 160, (height // 8 + 1, width // 8 + 1, 3)), np.ones((8, 8, 1)))
    pictures = []
    for t in range(frames):
        picture = ground[:height, :width].astype(np.uint8).copy()
        left, top = int((0.5 + 0.4 * np.sin(t / 7)) * (width - 12)), int(t * 1.7) % (height - 12)
        picture[top : top + 12, left : left + 12] = (250, t % 250, 255 - t % 250)
        pictures.append(picture)
    return pictures


def turned(path: Path) -> Path:
    """A quarter turn clockwise, written into an MP4's track header."""
    data = bytearray(path.read_bytes())
    place = data.find(b"tkhd") + 4 + 40
    data[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def varying_times(frames: int, seed: int = 3) -> list[float]:
    """Rising times between 10 and 190 ms apart."""
    steps = np.random.default_rng(seed).integers(10, 190, frames)
    return (np.concatenate([[0], steps[:-1]]).cumsum() / 1000).tolist()


FRAMES = 220


def _kind(name: str, **keywords) -> Callable[[Path], Path]:
    return lambda folder: write_video(folder / name, scenes(FRAMES), **keywords)


KINDS: dict[str, Callable[[Path], Path]] = {
    "mp4": _kind("a.mp4", options=X264 | {"g": "30"}),
    "mp4 B-frames": _kind(
        "b.mp4", options={"threads": "1", "preset": "veryfast", "qp": "14", "g": "40", "bf": "3"}
    ),
    "mp4 open GOP": _kind(
        "o.mp4",
        options={
            "threads": "1", "preset": "veryfast", "qp": "14", "bf": "3",
            "x264-params": "open-gop=1:keyint=24:min-keyint=24:scenecut=0:b-pyramid=normal",
        },
    ),
    "mkv open GOP, 29.97": _kind(
        "o.mkv",
        rate=Fraction(30000, 1001),
        options={
            "threads": "1", "preset": "veryfast", "qp": "14", "bf": "3",
            "x264-params": "open-gop=1:keyint=30:min-keyint=30:scenecut=0",
        },
    ),
    "intra refresh": _kind(
        "i.mp4", options=X264 | {"x264-params": "intra-refresh=1:keyint=30:bframes=0"}
    ),
    "one key frame": _kind("k.mp4", options=X264 | {"g": "9999"}),
    "mkv 60": _kind("s.mkv", rate=60, options=X264 | {"g": "25"}),
    "mkv 12": _kind("t.mkv", rate=12, options=X264 | {"g": "25"}),
    "VFR mkv": _kind("v.mkv", times=varying_times(FRAMES), options=X264 | {"g": "25"}),
    "VFR mp4": _kind("v.mp4", times=varying_times(FRAMES, 4), options=X264 | {"g": "25", "bf": "2"}),
    "ts": _kind("a.ts", options=X264 | {"g": "25", "bf": "2"}),
    "MPEG-2 B-frames": _kind("a.mpg", codec="mpeg2video", options={"g": "15", "bf": "2", "qscale": "3"}),
    "avi B-frames": _kind("a.avi", codec="mpeg4", options={"g": "20", "bf": "2", "qscale": "3"}),
    "raw H.264": _kind("a.h264", options=X264 | {"g": "25"}),
    "turned": lambda folder: turned(write_video(folder / "r.mp4", scenes(FRAMES), options=X264 | {"g": "30"})),
    "interlaced": _kind(
        "l.mp4", options={"threads": "1", "qp": "10", "g": "25", "x264-params": "interlaced=1:bframes=2"}
    ),
    "interlaced MPEG-2": _kind(
        "l.mpg",
        codec="mpeg2video",
        options={"g": "12", "bf": "2", "qscale": "3", "flags": "+ildct+ilme", "top": "1"},
    ),
}  # fmt: skip
"""Makers of a video in a folder, by what is odd about it."""
