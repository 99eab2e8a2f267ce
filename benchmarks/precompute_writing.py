"""Small samples written by sage_scale and by litdata, in turn: the third part of precompute_throughput.py.

    python benchmarks/precompute_writing.py --peers .peers [--processes 2] [--rounds 5]

64 x 512 float16 (64 KiB) and a description each, through our shard writer and commit into a folder, every object
hashed and flushed to the disk, beside litdata's BinaryWriter in 64 MB chunks, which does neither, in the peers'
environment (made where it is missing; without --peers litdata is left out). Samples are read back and compared
after the first round, which is not timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from common import Asked, parse, peers_python, ratios

from sage_scale.shards import Sample, publish_shard, sample_key
from sage_scale.shards.writer import write_shard
from sage_scale.storage import open_store

ROWS, WIDTH = 64, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", type=Path, help="environment of the peers; made where it is missing")
    options = parse(parser, samples=48, processes=1, rounds=1)
    writer = peers_python(options.peers) if options.peers else ""
    print(f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f} at the start")
    with tempfile.TemporaryDirectory(prefix="sage-scale-writing-") as folder:
        for processes in range(1, options.processes + 1):
            beside_litdata(Path(folder), writer, options.samples, processes, options.rounds)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


def beside_litdata(folder: Path, writer: str, count: int, processes: int, rounds: int) -> None:
    """Claim 3; `writer` is the peers' interpreter, or empty."""
    samples = small_samples(count)
    np.save(folder / "features.npy", np.array([sample.features for sample in samples]))
    (folder / "metas.json").write_text(json.dumps([sample.meta for sample in samples]))
    commands = {"ours": [sys.executable, __file__, "--as-writer"]}
    if writer:
        commands["peer"] = [writer, "-c", LITDATA]
    wall: dict[str, list[float]] = {way: [] for way in commands}
    used: dict[str, list[float]] = {way: [] for way in commands}
    crews = {
        way: [Asked([*command, str(folder), str(part), str(processes)]) for part in range(processes)]
        for way, command in commands.items()
    }
    for number in range(rounds + 1):
        for way, crew in crews.items():
            begun = time.perf_counter()
            for process in crew:
                process.say("go")
            seconds_of_cpu = sum(float(process.answer()) for process in crew)
            seconds = time.perf_counter() - begun
            for process in crew:
                process.say("tidy")
                assert process.answer() == "tidied"
            if number:  # the first round warms up, and is read back
                wall[way].append(seconds)
                used[way].append(seconds_of_cpu)
    for process in itertools.chain(*crews.values()):
        process.close()
    if not writer:
        told = f"{count / statistics.median(wall['ours']):,.0f} samples/s"
        print(f"3. small samples, {processes} processes: {told}; litdata is left out: no --peers FOLDER")
        return
    ours, theirs = (count / statistics.median(wall[way]) for way in commands)
    best, their_best = (count / min(wall[way]) for way in commands)
    cpu, their_cpu = (count / statistics.median(used[way]) for way in commands)
    print(
        f"3. small samples, {processes} processes: {ours:,.0f} samples/s ({best:,.0f} in the best round), litdata "
        f"{theirs:,.0f} ({their_best:,.0f}): ratio {ours / theirs:.2f} (each round: "
        f"{ratios(wall['peer'], wall['ours'])})\n   a CPU second: {cpu:,.0f} samples, litdata {their_cpu:,.0f}: ratio "
        f"{cpu / their_cpu:.2f}; all samples equal"
    )


def as_writer(folder: Path, part: int, parts: int) -> None:
    """A process of ours, as LITDATA is one of litdata's."""
    metas = json.loads((folder / "metas.json").read_text())
    samples = small_samples(len(metas))[part::parts]
    for number, order in enumerate(sys.stdin):
        out = folder / f"small-{part}-{number // 2}"
        if order == "tidy\n":
            if number == 1:
                check_ours(samples, out)
            shutil.rmtree(out)
            print("tidied", flush=True)
            continue
        cpu = time.process_time()
        write_ours(samples, out)
        print(time.process_time() - cpu, flush=True)


def write_ours(samples: list[Sample], out: Path, per_unit: int = 1024) -> None:
    """The samples as shards with indexes and markers, each flushed to the disk."""
    store = open_store(out)
    for unit, start in enumerate(range(0, len(samples), per_unit)):
        with store.draft(out.with_suffix(".tar")) as tar:
            some = samples[start : start + per_unit]
            index = write_shard(tar, some, unit=unit, split="train", dataset="0" * 16)
            publish_shard(store, tar, index)


def check_ours(samples: list[Sample], out: Path) -> None:
    """Every sample is read back as it was."""
    from sage_scale.shards.index import build_index
    from sage_scale.shards.sample import read_sample

    wanted = {sample.key: sample for sample in samples}
    for tar in sorted(out.glob("*.tar")):
        data = tar.read_bytes()
        for record in build_index(tar).records:
            start = int(record["offset"])
            found = read_sample(data[start : start + int(record["length"])])
            sample = wanted.pop(found.key)
            assert found.features is not None and sample.features is not None
            assert found.meta == sample.meta and np.array_equal(found.features, sample.features)
            assert np.array_equal(found.segments, sample.segments)
    assert not wanted


def small_samples(count: int) -> list[Sample]:
    """64 x 512 float16 (64 KiB) and a description."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        meta: dict[str, Any] = {
            "id": f"clip-{number:05d}", "sentence": f"am tag {number} regnet es", "language": "de", "fps": 25.0,
            "pseudo_glosses": ["tag", "regnen"], "frame_stride": 2, "frames": 2 * ROWS, "signer": "s1",
            "source": f"clip-{number:05d}.mp4", "split": "train",
        }  # fmt: skip
        features = rng.standard_normal((ROWS, WIDTH), np.float32).astype(np.float16)
        segments = np.array([[0, 40], [50, 2 * ROWS]], np.int32)
        made.append(Sample(key=sample_key(meta["id"]), meta=meta, segments=segments, features=features))
    return made


LITDATA = """
import json, shutil, sys, time
from pathlib import Path
import numpy as np, torch
from litdata import StreamingDataset
from litdata.streaming.writer import BinaryWriter

folder, part, parts = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
features = np.load(folder / "features.npy")[part::parts].copy()
metas = json.loads((folder / "metas.json").read_text())[part::parts]
segments = np.array([[0, 40], [50, 2 * features.shape[1]]], np.int32)
for number, order in enumerate(sys.stdin):
    place = folder / f"lit-{part}-{number // 2}"
    if order == "tidy\\n":
        if number == 1:
            for row, sample in enumerate(StreamingDataset(str(place))):
                assert sample["json"] == metas[row] and np.array_equal(sample["features"].numpy(), features[row])
        shutil.rmtree(place)
        print("tidied", flush=True)
        continue
    place.mkdir()
    cpu = time.process_time()
    writer = BinaryWriter(str(place), chunk_bytes="64MB")
    for row, meta in enumerate(metas):
        writer[row] = {
            "json": meta, "segments": torch.from_numpy(segments), "features": torch.from_numpy(features[row])
        }
    writer.done()
    writer.merge()
    print(time.process_time() - cpu, flush=True)
"""
"""In litdata's interpreter: write every `parts`-th sample at each `go` and tell the CPU seconds; delete at `tidy`."""


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-writer"]:
        as_writer(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
