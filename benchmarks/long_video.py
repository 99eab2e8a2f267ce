"""A two-hour video with 1,500 captions as one work unit: memory over time, and each frame decoded once.

    python benchmarks/long_video.py [--hours 2] [--captions 1500] [--figure docs/results/long_video.svg]

Makes the video (a minute of H.264, 320 x 240, 25 frames a second, a key frame every ten seconds, repeated without
encoding it again), with captions of 2 to 7.6 seconds, some overlapping, some with a gap, that go from its first to its
last frame. Each way to read it is a process of its own, whose memory is read from /proc as it works: all captions in
one pass, and caption by caption (at fewer of them: `--alone`). Asserts that the pass decoded every frame exactly once,
that its memory does not grow, and that both ways give the same samples.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from common import parse
from factories.videos import camera_pictures, write_video

from sage_scale.config import from_mapping
from sage_scale.corpora.manifest import Clip
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import ClipDone, UnitDone

FPS = 25
"""Frames a second of the video."""
GROWTH_MB = 25.0
"""Most that the mean memory of the last quarter of the time may exceed that of the second quarter."""


def make_minute(path: Path, width: int, height: int) -> None:
    """A minute of video in which something moves over a textured ground, with noise as a camera has it."""
    rng = np.random.default_rng(0)
    ground = rng.integers(60, 180, (height, width, 3)).astype(np.int16)
    options = {"threads": "2", "preset": "veryfast", "g": str(10 * FPS), "crf": "30"}
    write_video(path, camera_pictures(ground, 60 * FPS, height // 5, noise=4), rate=FPS, options=options)


def repeat(minute: Path, path: Path, times: int) -> None:
    """The same packets again and again, one after the other in time."""
    with av.open(str(path), "w") as out:
        for turn in range(times):
            with av.open(str(minute)) as source:
                given = source.streams.video[0]
                if turn == 0:
                    stream = out.add_stream_from_template(given)
                assert given.time_base is not None
                shift = round(60 * turn / given.time_base)
                for packet in source.demux(given):
                    if packet.pts is None or packet.dts is None:
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    out.mux(packet)


def captions(video: Path, seconds: float, count: int) -> list[Clip]:
    """`count` clips that begin at 0 and end with the video; the next begins up to .9 s before or after one's end."""
    rng = np.random.default_rng(1)
    lengths = rng.uniform(2.0, 7.6, count)
    ends = np.cumsum(lengths) * seconds / lengths.sum()
    starts = np.concatenate([[0.0], ends[:-1] + rng.uniform(-0.9, 0.9, count - 1)]).clip(0)
    ends[-1] = seconds
    spans = zip(starts.round(3).tolist(), ends.round(3).tolist())
    return [
        Clip(id=f"{k:04d}", video=str(video), start_s=start, end_s=end, sentence="x")
        for k, (start, end) in enumerate(spans)
    ]


def work(video: Path, out: Path, seconds: float, count: int, most: int, alone: bool, size: int) -> None:
    """In a process of its own: run the unit, print one JSON line with what it took."""
    recipe = from_mapping({
        "corpus": {"name": "videos", "language": "de"},
        "vision": {"size": size, "crop": size},
        "text": {"tagger": "none", "target": "sentence"},
        "shards": {"clips_per_unit": count, "frames_per_unit": 10**9},
    })  # fmt: skip
    unit = Unit(number=0, split="train", clips=tuple(captions(video, seconds, count)[:most]))
    worker = UnitWorker(recipe, str(out))
    memory: list[tuple[float, float]] = []
    begun = time.perf_counter()
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            memory.append((time.perf_counter() - begun, resident_mb()))
            ended.wait(0.25)

    threading.Thread(target=watch, daemon=True).start()
    stages: dict[str, float] = {}
    frames = 0
    for event in worker.work(unit, "0" * 16, alone=alone):
        assert isinstance(event, UnitDone) or (isinstance(event, ClipDone) and not event.reason), event
        for name, spent in event.stages.items():
            stages[name] = stages.get(name, 0.0) + spent
        frames += getattr(event, "frames", 0)
    ended.set()
    taken = {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time(),
        "memory": memory,
        "stages": stages,
        "frames": frames,
        "stats": {name: value for name, value in vars(worker.stats).items() if name != "part"},
        "sha256": hashlib.sha256((out / "000000.tar").read_bytes()).hexdigest(),
    }
    print(json.dumps(taken))


def resident_mb() -> float:
    """Resident memory of this process, MB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def run(*arguments: object) -> dict:
    """One way of reading, in a process of its own."""
    command = [sys.executable, __file__, "--work", json.dumps([str(a) for a in arguments])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def draw(path: Path, passes: dict, video_seconds: float) -> None:
    """Memory over time as an SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "long_video"
    from matplotlib import pyplot

    times, memory = zip(*passes["memory"])
    figure, axes = pyplot.subplots(figsize=(7, 2.6), layout="constrained")
    axes.plot(
        [t * video_seconds / 60 / passes["seconds"] for t in times], memory, color="#2456c8", linewidth=1.2
    )
    axes.set(
        xlabel="minute of the video (by share of the work)", ylabel="resident memory, MB", ylim=(0, None)
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print one Markdown table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--captions", type=int, default=1500)
    parser.add_argument(
        "--alone", type=int, default=300, help="captions also read one by one, for comparison"
    )
    parser.add_argument("--size", type=int, default=128, help="side of the stored pictures")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parse(parser, hours=1 / 60, captions=12, alone=4, size=32)
    if arguments.work:
        video, out, seconds, count, most, alone, size = json.loads(arguments.work)
        work(Path(video), Path(out), float(seconds), int(count), int(most), alone == "True", int(size))
        return
    minutes = round(60 * arguments.hours)
    seconds, count, few = 60.0 * minutes, arguments.captions, min(arguments.alone, arguments.captions)
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "long.mp4"
        make_minute(Path(folder) / "minute.mp4", 320, 240)
        repeat(Path(folder) / "minute.mp4", video, minutes)
        outs = (Path(folder) / f"out{k}" for k in itertools.count())
        whole = run(video, next(outs), seconds, count, count, False, arguments.size)
        one_pass = run(video, next(outs), seconds, count, few, False, arguments.size)
        by_clip = run(video, next(outs), seconds, count, few, True, arguments.size)
        once = {"decoded": minutes * 60 * FPS, "seeks": 0, "passes": 1, "notes": []}
        assert whole["stats"] == once, whole["stats"]
        assert one_pass["sha256"] == by_clip["sha256"], "the two ways differ"
        quarters = np.array_split(np.array([mb for _, mb in whole["memory"]]), 4)
        growth = float(quarters[3].mean() - quarters[1].mean())
        assert arguments.small or growth < GROWTH_MB, f"memory grew by {growth:.0f} MB"
        if arguments.figure:
            draw(arguments.figure, whole, seconds)
    print(
        "| way | captions | seconds | frames decoded | seeks | file opened | memory, MB: 2nd quarter, last, highest |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, taken, number in (
        ("one pass, all", whole, count), ("one pass", one_pass, few), ("caption by caption", by_clip, few),
    ):  # fmt: skip
        memory = np.array([mb for _, mb in taken["memory"]])
        parts = np.array_split(memory, 4)
        stats = taken["stats"]
        print(
            f"| {name} | {number:,} | {taken['seconds']:.1f} | {stats['decoded']:,} | {stats['seeks']:,} "
            f"| {stats['passes']:,} | {parts[1].mean():.0f}, {parts[3].mean():.0f}, {memory.max():.0f} |"
        )
    print(
        f"\nThe same bytes in both ways; one pass took {one_pass['seconds'] / by_clip['seconds']:.2f} of the time."
    )
    stages = ", ".join(f"{name} {spent:.0f} s" for name, spent in whole["stages"].items())
    print(f"Stages of the whole: {stages}.")


if __name__ == "__main__":
    main()
