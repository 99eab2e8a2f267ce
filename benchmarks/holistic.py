"""Frames that MediaPipe Holistic gives a processor second, with decoding, on the videos of a folder.

    python benchmarks/holistic.py FOLDER [--complexity 1]

Needs `sage-scale keypoints --setup` (complexity 0 and 2: with --models). Each video is extracted twice, and both times
must give the same bytes. The first ten frames, in which models are loaded, are not counted. With --small a stand-in
takes MediaPipe's place.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import parse

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from factories.videos import write_square

from sage_scale.extraction.extract import extract
from sage_scale.extraction.mediapipe import MediapipeHolistic
from sage_scale.keypoints.files import pose_bytes

WARM = 10
TOY = Path(__file__).parents[1] / "tests" / "plugins" / "toy_extractor.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--complexity", type=int, choices=(0, 1, 2), default=1)
    settings = parse(parser)
    with tempfile.TemporaryDirectory() as scratch:
        folder = settings.folder or write_square(Path(scratch) / "a.mp4", frames=40, seed=0).parent
        command = [sys.executable, str(TOY)] if settings.small else None
        print(f"complexity {settings.complexity}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        print(f"{'video':<24}{'picture':>10}{'frames':>8}{'/CPU s':>8}{'/s':>8}{'decoding':>10}")
        rates = []
        for video in sorted(folder.glob("*.mp4")):
            first, row, rate = timed(video, MediapipeHolistic(settings.complexity, command=command))
            again, _, _ = timed(video, MediapipeHolistic(settings.complexity, command=command))
            assert first == again, f"{video.name}: not the same bytes twice"
            print(row, flush=True)
            rates.append(rate)
        print(f"all: {np.mean(rates):.1f} frames a CPU second; the same bytes twice")


def timed(video: Path, extractor: MediapipeHolistic) -> tuple[bytes, str, float]:
    """Returns the video's track as a file, a row of the table, and frames a processor second."""
    _ = extractor.facts  # starts the child
    child = extractor._running()._process.pid
    begun, before = 0, (0.0, 0.0, 0.0)

    def report(frames: int, share: float) -> None:
        nonlocal begun, before
        if not begun and frames >= WARM:
            begun, before = frames, clocks(child)

    track = extract(video, extractor, report=report)
    own, its, wall = np.subtract(clocks(child), before)
    extractor.close()
    rate = (len(track) - begun) / max(own + its, 1e-9)
    size = f"{track.width:.0f}x{track.height:.0f}"
    row = f"{video.stem:<24}{size:>10}{len(track):>8}{rate:>8.1f}{(len(track) - begun) / wall:>8.1f}"
    return pose_bytes(track), f"{row}{own / max(own + its, 1e-9):>10.0%}", rate


def clocks(child: int) -> tuple[float, float, float]:
    """Returns processor seconds of this process and of the child, and the time, seconds."""
    fields = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
    ticks = int(fields[11]) + int(fields[12])
    return time.process_time(), ticks / os.sysconf("SC_CLK_TCK"), time.perf_counter()


if __name__ == "__main__":
    main()
