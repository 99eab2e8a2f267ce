"""Frames a CPU second (other work on the machine counts little) of `decode_clip`, beside the plain way:
PyAV's picture of a frame, Pillow's resize.

    python benchmarks/decode.py [--seconds 20]

Makes H.264 videos with moving noise, decodes each both ways, asserts that the pictures agree, and prints one
table.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import numpy as np
from PIL import Image

from sage_scale.config import Vision
from sage_scale.corpora.clip import Clip
from sage_scale.vision.decode import decode_clip


def make_video(path: Path, width: int, height: int, frames: int) -> None:
    """A smooth picture with a bright patch that moves, so that the decoder has motion to compensate."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8))
    ground = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"threads": "1", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(frames):
            picture = ground.copy()
            side = height // 5
            top, left = (int((0.4 + 0.3 * np.sin(t / p)) * n) for p, n in ((5.0, height), (7.0, width)))
            picture[top : top + side, left : left + side] = rng.integers(0, 255, (1, 1, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))


def plain(path: Path, size: int, stride: int) -> np.ndarray:
    """Decode, take the middle square and resize it with Pillow; only the frames of the stride grid."""
    pictures = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        for t, frame in enumerate(container.decode(stream)):
            if t % stride:
                continue
            image = frame.to_image()
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
            pictures.append(np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box)))
    return np.stack(pictures)


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=20)
    frames = 25 * parser.parse_args().seconds
    print(
        "| video | output | stride | decode_clip, frames/CPU s | plain, frames/CPU s | ratio | mean difference |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for width, height in ((210, 260), (640, 480), (1280, 720)):
            path = Path(folder) / f"{width}.mp4"
            make_video(path, width, height, frames)
            for stride in (1, 2):
                vision = Vision(frame_stride=stride)
                begun = time.process_time()
                ours = decode_clip(Clip(id="x", video=str(path)), vision).frames
                middle = time.process_time()
                theirs = plain(path, vision.size, stride)
                ended = time.process_time()
                assert ours.shape == theirs.shape
                difference = float(np.abs(ours.astype(int) - theirs).mean())
                assert difference < 4, difference  # chroma is scaled before the colours are made, not after
                rates = frames / (middle - begun), frames / (ended - middle)
                print(
                    f"| {width} x {height} | 256 x 256 and grey 48 x 48 | {stride} | {rates[0]:.0f} | {rates[1]:.0f} "
                    f"| {rates[0] / rates[1]:.2f} | {difference:.2f} |"
                )


if __name__ == "__main__":
    main()
