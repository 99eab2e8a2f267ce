"""Small real MP4 files with something that moves and rests, so that the motion tagger cuts them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np


def make_video(path: Path, seed: int, frames: int = 60, size: int = 64, fps: int = 25) -> Path:
    """A bright square that travels between random places and slows down at each, on a still ground."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(8, size - 8, size=(frames // 9 + 2, 2))
    colour = rng.integers(120, 255, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for t in range(frames):
            i, share = divmod(t, 9)
            ease = (1 - np.cos(np.pi * share / 9)) / 2
            x, y = (places[i] * (1 - ease) + places[i + 1] * ease).round().astype(int)
            picture = np.full((size, size, 3), 40, np.uint8)
            picture[max(y - 7, 0) : y + 7, max(x - 7, 0) : x + 7] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path
