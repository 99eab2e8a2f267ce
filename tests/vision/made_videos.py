"""Small real videos whose pictures tell their own frame number."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BASE, STEP = 12, 4
"""Frame number t is a picture of the one grey level BASE + STEP * t."""


def numbers(frames: np.ndarray) -> list[int]:
    """The source frame numbers that decoded pictures (n, H, W, 3) or (n, H, W) show."""
    levels = frames.reshape(len(frames), -1).mean(1)
    # Colours are kept in 8 bits of another space, and swscale's way back to RGB loses one level on average.
    lost = 1 if frames.ndim == 4 else 0
    return np.rint((levels + lost - BASE) / STEP).astype(int).tolist()


def write_video(
    path: Path,
    frames: int | Sequence[np.ndarray] = 50,
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
        pictures = [np.full((size[1], size[0], 3), BASE + STEP * t, np.uint8) for t in range(frames)]
    else:
        pictures = list(frames)
        size = pictures[0].shape[1], pictures[0].shape[0]
    options = options or ({"threads": "1", "qp": "4", "g": "12"} if codec == "libx264" else {})
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for t, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[t] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
