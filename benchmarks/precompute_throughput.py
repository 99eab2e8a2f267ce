"""Precompute beside plain processes, video2dataset and litdata's writer, in one run on the same clips.

    python benchmarks/precompute_throughput.py [--peer PYTHON] [--peers .peers] [--rounds 3]

1. The same work units through Ray's actors and through plain processes without Ray, as many of each: frames a second
   from the moment all workers are ready until the last marker is stored. Every file must be equal first.
2. Decode and write alone (no segments, no tagger) beside video2dataset, which brings the same clips to 256 pixels and
   writes them as WebDataset tars, as many processes each. `--peer` is an interpreter that has it (and, for want of a
   system's, imageio-ffmpeg's ffmpeg). Every clip must be in both outputs. Its start is taken off by a run over two.
3. Small samples (64 x 512 float16, a description) through our shard writer and commit into a folder, flushed to the
   disk, beside litdata's BinaryWriter in 64 MB chunks, which does not flush; by one process and by several, in turn.
   `--peers` is the environment with litdata (made where it is missing).
   Samples are read back and compared after the first round.

The ways take turns, round after round; the table has the median of each and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from common import parse, peers_python, ratios
from factories.precompute import hashes
from factories.videos import camera_pictures, write_video
from precompute_writing import beside_litdata

from sage_scale.config import Recipe, from_mapping
from sage_scale.corpora.registry import read_corpus
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.job import PrecomputeJob
from sage_scale.precompute.pool import ActorPool
from sage_scale.precompute.progress import JobProgress, UnitDone
from sage_scale.precompute.ray_session import ray_session
from sage_scale.precompute.schedule import Schedule
from sage_scale.shards import finish_dataset, open_dataset
from sage_scale.storage import open_store

FRAMES = 125


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--peer", default="", help="a Python with video2dataset")
    parser.add_argument("--peers", type=Path, help="environment with litdata; made where it is missing")
    parser.add_argument("--only", choices=("ray", "peer", "writer"))
    options = parse(parser, clips=9, rounds=1, samples=48)
    print(f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory(prefix="sage-scale-throughput-") as scratch:
        folder = Path(scratch)
        if options.only in (None, "ray", "peer"):
            write_corpus(folder / "corpus", options.clips)
        if options.only in (None, "ray"):
            beside_plain_processes(folder, options.workers, options.rounds)
        if options.peer and options.only in (None, "peer"):
            beside_video2dataset(folder, options.peer, options.clips, options.workers, options.rounds)
        if options.peers and options.only in (None, "writer"):
            writer = peers_python(options.peers)
            for processes in range(1, options.workers + 1):
                beside_litdata(folder, writer, options.samples, processes, options.rounds)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


def beside_plain_processes(folder: Path, workers: int, rounds: int) -> None:
    """Claim 1."""
    recipe = recipe_for(folder / "corpus", workers)
    times: dict[str, list[float]] = {"plain": [], "ray": []}
    with ray_session(recipe):
        for number in range(rounds):
            for way in ("plain", "ray") if number % 2 == 0 else ("ray", "plain"):
                out = folder / f"{way}-{number}"
                run = RayRun if way == "ray" else PlainRun
                times[way].append(run(recipe, out).seconds)
                finish_dataset(open_store(out))
            assert hashes(folder / f"plain-{number}") == hashes(folder / f"ray-{number}"), "the bytes differ"
            for way in times:
                shutil.rmtree(folder / f"{way}-{number}")
    frames = FRAMES * len(read_corpus(recipe.corpus).clips)
    rates = {way: frames / statistics.median(seconds) for way, seconds in times.items()}
    told = f"each round: {ratios(times['plain'], times['ray'])}; all files equal"
    print(
        f"1. {workers} plain processes {rates['plain']:,.0f} frames/s, {workers} Ray actors {rates['ray']:,.0f}: "
        f"ratio {rates['ray'] / rates['plain']:.2f} ({told})"
    )


class RayRun:
    """The units through Ray; `seconds` from all actors being ready to the last marker."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        run = PrecomputeJob(recipe=recipe, manifest=read_corpus(recipe.corpus), url=str(out), quiet=True)
        check = run.environment_check(None)
        progress = JobProgress(clips=len(run.manifest.clips), units=len(run.units), quiet=True)
        with ActorPool(recipe, run.actor, len(run.units), check) as pool, progress:
            while pool.idle < min(recipe.precompute.actors, len(run.units)):
                pool.wait(0.5)
            schedule = Schedule(run.units, tries=0, progress=progress, limit=run.limit)
            begun = time.perf_counter()
            schedule.run(pool)
            self.seconds = time.perf_counter() - begun


class PlainRun:
    """The units through processes that take one after the other from a queue."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        run = PrecomputeJob(recipe=recipe, manifest=read_corpus(recipe.corpus), url=str(out), quiet=True)
        digest = run.environment_check(None)(UnitWorker(recipe, str(out)).environment())
        spawn = multiprocessing.get_context("spawn")
        queue, used, ready = spawn.Queue(), spawn.Queue(), spawn.Barrier(recipe.precompute.actors + 1)
        for unit in [*run.units, *[None] * recipe.precompute.actors]:
            queue.put(unit)
        arguments = (recipe, str(out), digest, queue, ready, used)
        processes = [
            spawn.Process(target=plain_worker, args=arguments) for _ in range(recipe.precompute.actors)
        ]
        for process in processes:
            process.start()
        ready.wait()
        begun = time.perf_counter()
        self.cpu_seconds = sum(used.get() for _ in processes)
        for process in processes:
            process.join()
            assert process.exitcode == 0
        self.seconds = time.perf_counter() - begun


def plain_worker(recipe: Recipe, out: str, digest: str, queue: Any, ready: Any, used: Any) -> None:
    """A process without Ray."""
    worker = UnitWorker(recipe, out)
    worker.environment()
    ready.wait()
    begun = time.process_time()
    while (unit := queue.get()) is not None:
        *_, last = worker.work(unit, digest)
        assert isinstance(last, UnitDone), last
    used.put(time.process_time() - begun)


def beside_video2dataset(folder: Path, peer: str, clips: int, workers: int, rounds: int) -> None:
    """Claim 2."""
    recipe = recipe_for(folder / "corpus", workers, segmentation={"tagger": "uniform"})
    with contextlib.suppress(FileExistsError):
        (folder / "bin").mkdir()
        find = "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())"
        found = subprocess.run([peer, "-c", find], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            (folder / "bin" / "ffmpeg").symlink_to(found.stdout.strip())
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    used: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(rounds):
        ours = PlainRun(recipe, folder / f"ours-{number}")
        finish_dataset(open_store(folder / f"ours-{number}"))
        dataset = open_dataset(folder / f"ours-{number}")
        assert sum(dataset.splits.values()) == clips
        assert int(dataset.records["frames"].sum()) == clips * FRAMES
        times["ours"].append(ours.seconds / clips)
        used["ours"].append(ours.cpu_seconds / clips)
        few, few_cpu = video2dataset(folder, peer, workers, 2)
        all_of_them, all_cpu = video2dataset(folder, peer, workers, clips)
        times["peer"].append((all_of_them - few) / (clips - 2))
        used["peer"].append((all_cpu - few_cpu) / (clips - 2))
    rates = {way: FRAMES / statistics.median(seconds) for way, seconds in times.items()}
    told = f"each round: {ratios(times['peer'], times['ours'])}; all clips in both"
    print(
        f"2. decode and write, {workers} processes: {rates['ours']:,.0f} frames/s, video2dataset "
        f"{rates['peer']:,.0f}: ratio {rates['ours'] / rates['peer']:.2f} ({told})"
    )
    cpu = {way: FRAMES / statistics.median(seconds) for way, seconds in used.items()}
    told = f"each round: {ratios(used['peer'], used['ours'])}"
    print(
        f"   a CPU second: {cpu['ours']:,.0f} frames, video2dataset {cpu['peer']:,.0f}: "
        f"ratio {cpu['ours'] / cpu['peer']:.2f} ({told})"
    )


def video2dataset(folder: Path, peer: str, workers: int, clips: int) -> tuple[float, float]:
    """Seconds and CPU seconds of a run over the first `clips` clips, its start included; its tars hold each of them."""
    table, out = folder / f"clips-{clips}.csv", folder / "peer"
    videos = sorted((folder / "corpus").rglob("*.mp4"))[:clips]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["url", "caption"], *([str(video), video.stem] for video in videos)])
    config = {
        "subsampling": {"ResolutionSubsampler": {"args": {"video_size": 256, "resize_mode": "scale,crop"}}},
        "reading": {"yt_args": {}, "timeout": 60, "sampler": None},
        "storage": {"number_sample_per_shard": 8, "oom_shard_count": 5, "captions_are_subtitles": False},
        "distribution": {"processes_count": workers, "thread_count": 2, "subjob_size": 1000,
                         "distributor": "multiprocessing"},
    }  # fmt: skip
    code = f"""
import os, time
from video2dataset import video2dataset
from video2dataset.subsamplers import ResolutionSubsampler
ResolutionSubsampler.encode_formats = {{"video": "mp4"}}  # 1.3.0 asks for it, and only its clipping has it
if __name__ == "__main__":
    begun = time.perf_counter()
    video2dataset(url_list={str(table)!r}, output_folder={str(out)!r}, output_format="webdataset", input_format="csv",
                  url_col="url", caption_col="caption", encode_formats={{"video": "mp4"}}, config={config!r})
    print("SECONDS", time.perf_counter() - begun)
"""
    script = folder / "peer.py"
    script.write_text(code)
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{Path(peer).parent}:{os.environ['PATH']}",
        "PYTHONPATH": "",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([peer, script], env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told = [line for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    assert told, done.stdout[-2000:] + done.stderr[-2000:]
    captions = set()
    for tar in out.glob("*.tar"):
        with tarfile.open(tar) as file:
            names = file.getnames()
            assert sum(name.endswith(".mp4") for name in names) == sum(
                name.endswith(".txt") for name in names
            )
            texts = [file.extractfile(name) for name in names if name.endswith(".txt")]
            captions |= {text.read().decode() for text in texts if text}
    assert captions == {video.stem for video in videos}, (
        f"{len(captions)} of {clips} clips: {done.stderr[-1500:]}"
    )
    shutil.rmtree(out)
    return float(told[0].split()[1]), cpu


def recipe_for(root: Path, workers: int, **sections: dict) -> Recipe:
    """Frames at 256 pixels, every second one stored, eight clips a unit."""
    values: dict = {
        "corpus": {"name": "videos", "root": str(root), "language": "de"},
        "vision": {"size": 256, "crop": 224},
        "text": {"tagger": "none", "target": "sentence"},
        "shards": {"clips_per_unit": 8},
        "precompute": {"actors": workers},
    }
    return from_mapping({**values, **sections})


def write_corpus(root: Path, clips: int) -> None:
    """Five-second videos of 320 x 240 at 25 frames a second, H.264, with sentences."""
    for number in range(clips):
        scene = np.random.default_rng(number).integers(0, 255, (15, 20, 3)).repeat(16, 0).repeat(16, 1)
        path = root / "train" / f"clip{number:03d}.mp4"
        pictures = camera_pictures(scene, FRAMES, 255 - scene[:60, :40], seed=number)
        write_video(path, pictures, options={"threads": "1", "preset": "veryfast"})
        path.with_suffix(".txt").write_text(f"Satz Nummer {number}.\n", encoding="utf-8")


if __name__ == "__main__":
    main()
