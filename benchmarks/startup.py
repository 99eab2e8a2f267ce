"""Start of a node's ranks: seconds, memory and GETs until the first batch's request, at 10,000 and 100,000 shards.

    python benchmarks/startup.py [--ranks 4] [--alone]

Writes an index.json of random records, serves it by HTTP as an object store does (and counts GETs), and starts ranks
that meet over gloo, as a job's do. Each opens the dataset and the stream of its training split with `OncePerNode`, and
orders its first epoch. `--alone` opens it in each rank for itself, as a job without `OncePerNode` would. Memory is what
opening adds to a rank with torch loaded: `kept` afterwards, `peak` meanwhile, by its proportional share (Pss) summed
over the ranks for the node, sampled every 50 ms, and by its own high-water mark (VmHWM) for the largest rank.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from common import parse

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from factories.datasets import make_stream_dataset, stream_recipe
from factories.ranks import environment_of, free_port

CASES = ((10_000, 640_000), (10_000, 10_000_000), (100_000, 6_400_000))


def write_index(folder: Path, shards: int, samples: int) -> Path:
    """Writes index.json of a dataset with `samples` clips, of which 2% are dev and test, in one-split shards."""
    from sage_scale.shards import PlannedUnit, open_dataset
    from sage_scale.shards.index import RECORD
    from sage_scale.shards.index_json import index_json

    make_stream_dataset(folder / "one", "features", [("train", 4)])
    opened, each = open_dataset(folder / "one"), samples // shards
    rng, records = np.random.default_rng(0), np.zeros(each * shards, RECORD)
    records["key"] = rng.integers(0, 2**64, len(records), np.uint64)
    records["hash"] = rng.integers(0, 256, (len(records), 16), np.uint8)
    records["length"] = rng.integers(2, 200, len(records)) * 512
    records["frames"], records["segments"] = (
        rng.integers(20, 400, len(records)),
        rng.integers(1, 20, len(records)),
    )
    records["flags"] = 1
    lengths = records["length"].astype(np.int64).reshape(shards, each)
    records["offset"] = (np.cumsum(lengths, 1) - lengths + 1024).reshape(-1)
    splits = ["train"] * (shards - shards // 50) + ["dev", "test"] * (shards // 100)
    units = [
        dataclasses.replace(opened.units[0], unit=unit, samples=each, split=split)
        for unit, split in enumerate(splits)
    ]
    plan = tuple(PlannedUnit(split=split, clips=each) for split in splits)
    path = folder / "index.json"
    path.write_bytes(index_json(dataclasses.replace(opened.info, units=plan), units, records))
    return path


class Served:
    """An HTTP server that answers every GET with a file, as an object store."""

    def __init__(self, path: Path) -> None:
        self.gets = 0
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.gets += 1
                self.send_response(200)
                self.send_header("Content-Length", str(path.stat().st_size))
                self.send_header("ETag", '"1"')
                self.end_headers()
                with path.open("rb") as file:
                    while piece := file.read(1 << 20):
                        self.wfile.write(piece)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def memory_of(process: int | str, name: str, file: str) -> float:
    """A figure of a process, MB."""
    lines = Path(f"/proc/{process}/{file}").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(name + ":"))


def rank(alone: bool) -> None:
    """A rank: says when it has torch loaded, opens when it may, says what that took, and ends when it may."""
    import torch.distributed as dist

    from sage_scale.streaming import OncePerNode, open_datasets, open_stream

    def gather(value: Any) -> list[Any]:
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, value)
        return gathered

    dist.init_process_group("gloo")
    gather(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = memory_of("self", "VmRSS", "status")
    print("loaded", flush=True)
    sys.stdin.readline()
    began, used = time.perf_counter(), time.process_time()
    given: dict[str, Any] = {} if alone else {"once": OncePerNode(gather)}
    datasets = open_datasets("s3://bucket/set", **given)
    opened = time.perf_counter()
    world: dict[str, Any] = {"rank": dist.get_rank(), "world": dist.get_world_size()}
    stream = open_stream(datasets, stream_recipe("features"), batch_size=256, **world, **given)
    requests = stream._requests(0, 0)
    next(requests)
    given.clear()
    told = {
        "open_s": opened - began, "ready_s": time.perf_counter() - began, "cpu_s": time.process_time() - used,
        "kept_mb": memory_of("self", "VmRSS", "status") - before,
        "peak_mb": memory_of("self", "VmHWM", "status") - before,
        "digest": stream.state_dict()["digest"],
    }  # fmt: skip
    print(json.dumps(told), flush=True)
    sys.stdin.readline()
    os._exit(0)


def measure(path: Path, ranks: int, alone: bool) -> dict[str, Any]:
    """The figures of one node."""
    served, port = Served(path), free_port()
    environment = os.environ | {
        "AWS_ENDPOINT_URL": served.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1",
    }  # fmt: skip
    command = [sys.executable, __file__, "--rank", *(["--alone"] if alone else [])]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(
            command, env=environment | environment_of(n, ranks, port), stdin=pipe, stdout=pipe, text=True
        )
        for n in range(ranks)
    ]

    def node_mb() -> float:
        return sum(memory_of(process.pid, "Pss", "smaps_rollup") for process in started)

    def say() -> None:
        for process in started:
            assert process.stdin is not None
            print(file=process.stdin, flush=True)

    def hear() -> list[str]:
        return [process.stdout.readline() for process in started if process.stdout is not None]

    assert hear() == ["loaded\n"] * ranks
    before, peak, ended = node_mb(), [0.0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.05):
            peak[0] = max(peak[0], node_mb())

    thread = threading.Thread(target=sample)
    thread.start()
    say()
    told = [json.loads(line) for line in hear()]
    ended.set()
    thread.join()
    kept = node_mb()
    say()
    for process in started:
        process.wait()
    assert len({row["digest"] for row in told}) == 1
    largest = max(told, key=lambda row: row["peak_mb"] / row["kept_mb"])
    return {
        "gets": served.gets,
        "open_s": max(row["open_s"] for row in told),
        "ready_s": max(row["ready_s"] for row in told),
        "cpu_s": sum(row["cpu_s"] for row in told),
        "node_kept_mb": kept - before,
        "node_peak_mb": max(peak[0], kept) - before,
        "rank_ratio": largest["peak_mb"] / largest["kept_mb"],
        "digest": told[0]["digest"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--alone", action="store_true", help="each rank opens the dataset for itself")
    parser.add_argument("--case", type=int, action="append", help="number of a case, from 0")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parse(parser, ranks=2, case=[-1])
    if options.rank:
        rank(options.alone)
    columns = ("shards", "samples", "ranks", "GETs", "index open, s", "first request, s", "CPU of all, s",
               "node keeps, MB", "node's peak, MB", "of kept", "largest rank's, of kept")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for number in options.case or range(len(CASES)):
        shards, samples = CASES[number] if number >= 0 else (200, 20_000)
        with tempfile.TemporaryDirectory() as folder:
            found = measure(write_index(Path(folder), shards, samples), options.ranks, options.alone)
        kept, peak = found["node_kept_mb"], found["node_peak_mb"]
        print(f"| {shards:,} | {samples:,} | {options.ranks} | {found['gets']} | {found['open_s']:.2f} | "
              f"{found['ready_s']:.2f} | {found['cpu_s']:.2f} | {kept:,.0f} | {peak:,.0f} | {peak / kept:.2f} | "
              f"{found['rank_ratio']:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
