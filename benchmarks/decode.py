"""What the vision stage costs beside PyAV's bare decode and reformat of the same file, and beside the plain way.

    python benchmarks/decode.py [--seconds 20] [--rounds 5]

Makes H.264 videos with motion and the noise of a camera. Ways, interleaved, in processor time on one core:

bare         PyAV: decode, reformat to 256 x 256 RGB; nothing is kept
vision       decode, cut the middle square, scale to 256 x 256 RGB, hand over as one array (`read_clip`)
and grey     the same and a grey 48 x 48 picture of every frame for the tagger of hand motion: what precompute does
plain        PyAV's `to_image`, Pillow's crop and resize, only for the scale of things

Before anything is timed, the pictures of `vision` are compared with those of a way that shares no code with it: all of
a frame's planes as arrays, cut in numpy, a new scaler for each. They must be equal.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import numpy as np
from av.video.reformatter import VideoReformatter

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from common import parse
from factories.videos import camera_pictures, write_video
from PIL import Image

from sage_scale.vision.video_clips import Interval, PictureSettings, read_clip

SIZE = 256


def make_video(path: Path, width: int, height: int, frames: int) -> None:
    """A textured picture with a patch that moves, and noise, so that the decoder has what a camera gives it."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8))
    ground = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    side = min(width, height) // 4
    pictures = camera_pictures(ground, frames, ground[:side, :side] // 2 + 100)
    write_video(path, pictures, options={"threads": "2", "preset": "veryfast", "crf": "23"})


def decoded(path: Path) -> Iterator[av.VideoFrame]:
    """The file's frames, on one thread."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        yield from container.decode(stream)


def bare(path: Path) -> None:
    """Decode and reformat, keeping nothing."""
    reformatter = VideoReformatter()
    for frame in decoded(path):
        reformatter.reformat(frame, width=SIZE, height=SIZE, format="rgb24", threads=1)


def vision(path: Path, grey_size: int = 0, stretch: bool = False) -> np.ndarray:
    """The vision stage, with grey pictures if they have a size."""
    pictures = PictureSettings(
        fps=25.0, stride=1, size=SIZE, grey_size=grey_size, stretch=stretch, min_frames=1, max_frames=10**6
    )
    return read_clip(path, Interval(), pictures).frames


def plain(path: Path) -> np.ndarray:
    """The middle square with Pillow."""
    pictures = []
    for frame in decoded(path):
        image = frame.to_image()
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        pictures.append(np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)))
    return np.stack(pictures)


def by_planes(path: Path, stretch: bool) -> np.ndarray:
    """The same pictures another way: planes cut in numpy, a new frame and a new scaler each time."""
    pictures = []
    for frame in decoded(path):
        width, height = frame.width, frame.height
        if not stretch:
            side = min(width, height) // 2 * 2
            left, top = (round((n - min(width, height)) / 2) // 2 * 2 for n in (width, height))
            # A frame of the right size with this one's properties, whose pixels are then all replaced.
            cut = VideoReformatter().reformat(frame, width=side, height=side, format="yuv420p", threads=1)
            for plane, target, part in zip(frame.planes, cut.planes, (1, 2, 2)):
                lines = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
                wanted = np.zeros((side // part, target.line_size), np.uint8)
                wanted[:, : side // part] = lines[top // part :, left // part :][
                    : side // part, : side // part
                ]
                target.update(wanted.tobytes())
            frame = cut
        scaled = VideoReformatter().reformat(frame, width=SIZE, height=SIZE, format="rgb24", threads=1)
        pictures.append(scaled.to_ndarray())
    return np.stack(pictures)


def seconds(way: Callable[[], object]) -> float:
    """Processor time."""
    begun = time.process_time()
    way()
    return time.process_time() - begun


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parse(parser, seconds=1, rounds=1)
    frames = 25 * arguments.seconds
    print("Frames a second of processor time, and the time over that of `bare`:\n")
    print("| video | bare | vision | over bare | and grey | over bare | stretched, over bare | plain |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for width, height in ((210, 260), (640, 480), (1280, 720)):
            path = Path(folder) / f"{width}.mp4"
            make_video(path, width, height, frames)
            for stretch in (False, True):
                assert np.array_equal(vision(path, stretch=stretch), by_planes(path, stretch)), "they differ"
            ways: dict[str, Callable[[], object]] = {
                "bare": lambda path=path: bare(path),
                "vision": lambda path=path: vision(path),
                "grey": lambda path=path: vision(path, 48),
                "stretched": lambda path=path: vision(path, stretch=True),
                "plain": lambda path=path: plain(path),
            }
            taken: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(arguments.rounds):
                for name, way in ways.items():
                    taken[name].append(seconds(way))
            rate = {name: frames / statistics.median(times) for name, times in taken.items()}
            over = {
                name: statistics.median(t / b for t, b in zip(taken[name], taken["bare"])) - 1
                for name in ways
            }
            print(
                f"| {width} x {height} | {rate['bare']:.0f} | {rate['vision']:.0f} | {over['vision']:+.0%} "
                f"| {rate['grey']:.0f} | {over['grey']:+.0%} | {over['stretched']:+.0%} | {rate['plain']:.0f} |"
            )


if __name__ == "__main__":
    main()
