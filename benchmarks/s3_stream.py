"""Claim: a stream from S3 gives at least 80% of parallel boto3 GETs of the same bytes, and hides 50 ms of latency.

    python benchmarks/s3_stream.py [--samples 16384] [--rounds 3] [--server ceph|moto] [--share] [--skip-latency]

The server is Ceph's RADOS gateway (a production S3 server) where its programs are installed, else moto, which is
Python and slow. Samples are 64 x 512 float16 features (64 KiB). First an epoch of each way must equal the epoch
from a folder, byte for byte; then all are timed in turn, round after round, and the best round counts. boto3 fetches
the same tars with 16 threads, in whole tars and in ranges of 8 MiB, whichever is faster, and throws the bytes away;
sage_scale fetches them in blocks (kept in memory, or through an empty node-local cache), checks, decodes and packs
them in its global order.
The server runs on the same machine. It gets half of the cores and the clients the other half, boto3 and sage_scale
alike, as if it were another machine (--share lets all share all cores: then what a client computes slows the server).
Before each run some memory is touched and freed: on a virtual machine the first touch of a page that the host had taken
back costs ten times its copy, which is neither side's doing.

Then every request waits 50 ms in a proxy, a step takes 100 ms, and the share of it spent waiting is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import mmap
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import boto3
import torch
from botocore.config import Config

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from common import parse
from loaders import BATCH, make_recipe, make_samples, write_ours
from servers.ceph import Gateway, ceph_gateway, missing_programs
from servers.faults import fault_proxy
from servers.moto import S3Server, moto_server

from sage_scale.storage import open_store
from sage_scale.streaming import Stream, open_stream

BUCKET, PARALLEL, RANGE_BYTES = "bench-stream", 16, 8 << 20
LANES, WINDOW = 16, 64
"""A quarter of the recipe's 64 and 256: with those the whole of so small a dataset would be in use at once, which is a
cold start and nothing else. So 0.2 of its 1.1 GB are, in blocks of 8 MiB.
"""
LATENCY_S, STEP_S = 0.05, 0.1
SLOW, SLOW_BATCHES = "sage_scale, sample by sample", 64
"""Fifty times as many requests: compared and timed once, over so many batches."""


@contextlib.contextmanager
def server_of(kind: str) -> Iterator[S3Server]:
    """The chosen server, with the environment that leads to it."""
    missing = missing_programs()
    if kind == "moto" or missing:
        if missing and kind != "moto":
            print(f"{', '.join(missing)} not installed: moto instead of Ceph, a server in Python, slow")
        context: contextlib.AbstractContextManager[S3Server] = moto_server()
    else:
        context = ceph_gateway()
    with context as server:
        os.environ.update(server.environment())
        yield server


def divide_cores(server: S3Server) -> None:
    """The first half of the cores for the gateway's processes, the others for this one and its children."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or not isinstance(server, Gateway):
        print("server and clients share the cores")
        return
    for process in server.processes.values():
        for thread in os.listdir(f"/proc/{process.pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores[: len(cores) // 2])
    os.sched_setaffinity(0, cores[len(cores) // 2 :])
    print(f"cores: {len(cores) // 2} for the server, {len(cores) - len(cores) // 2} for the clients")


def client():
    """A boto3 client as a careful user makes it."""
    config = Config(
        max_pool_connections=PARALLEL,
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.session.Session().client("s3", config=config)


def with_boto3(sizes: dict[str, int], piece: int) -> Callable[[], int]:
    """All bytes of the tars by parallel ranged GETs of at most `piece` bytes."""
    s3 = client()
    ranges = [
        (name, begin, min(begin + piece, size))
        for name, size in sizes.items()
        for begin in range(0, size, piece)
    ]

    def get(part: tuple[str, int, int]) -> int:
        name, begin, end = part
        answer = s3.get_object(Bucket=BUCKET, Key=f"set/{name}", Range=f"bytes={begin}-{end - 1}")
        return len(answer["Body"].read())

    def run() -> int:
        with ThreadPoolExecutor(PARALLEL) as threads:
            return sum(threads.map(get, ranges))

    return run


def stream_of(
    cache: Path, *, workers: int = 0, keep: str = "disk", url: str = f"s3://{BUCKET}/set"
) -> Stream:
    """One epoch of the global order; blocks are kept in this folder, in memory, or nowhere."""
    recipe = make_recipe()
    settings = dataclasses.replace(
        recipe.stream,
        lanes=LANES,
        window=WINDOW,
        cache_gb=recipe.stream.cache_gb if keep == "disk" else 0.0,
        memory_mb=recipe.stream.memory_mb if keep == "memory" else 0,
        cache_dir=str(cache),
    )
    recipe = dataclasses.replace(recipe, stream=settings)
    stream = open_stream(url, recipe, batch_size=BATCH, epochs=1, workers=workers)
    assert stream.dataset.plan is not None and stream.dataset.plan.keep == keep
    return stream


def assert_equal(stream: Stream, folder: Path, batches: int | None = None) -> None:
    """The epoch, or its first batches, that the same shards give from a folder."""
    wanted = stream_of(folder, url=str(folder))
    for batch, same in itertools.islice(zip(stream, wanted, strict=True), batches):
        assert batch.keys == same.keys and batch.metas == same.metas
        assert torch.equal(batch.video.features_FC, same.video.features_FC)


@dataclasses.dataclass
class Timed:
    """One epoch."""

    seconds: float
    own_cpu: float
    server_cpu: float
    bytes: int
    note: str = ""


def timed(work: Callable[[], tuple[int, str]], server: S3Server) -> Timed:
    """Wall time, CPU time of this process and its ended children, CPU time of the server."""
    before, theirs, began = _own_cpu(), _server_cpu(server), time.perf_counter()
    size, note = work()
    seconds = time.perf_counter() - began
    return Timed(seconds, _own_cpu() - before, _server_cpu(server) - theirs, size, note)


def warm_memory(size: int) -> None:
    """Have the kernel hold that many bytes of free memory that the host has given."""
    child = os.fork()
    if child == 0:
        room = mmap.mmap(-1, size)
        for page in range(0, size, mmap.PAGESIZE):
            room[page] = 1
        os._exit(0)
    os.waitpid(child, 0)


def _own_cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def _server_cpu(server: S3Server) -> float:
    if not isinstance(server, Gateway):
        return float("nan")
    ticks = 0
    for process in server.processes.values():
        fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def epoch(stream: Stream, batches: int | None = None) -> tuple[int, str]:
    """Read it to its end, or so many batches of it."""
    for _ in itertools.islice(stream, batches):
        pass
    counts = stream.counts
    over = counts.fetched / counts.bytes if counts.bytes else 0.0
    return (
        counts.bytes,
        f"{counts.requests} requests, {over:.2f} bytes fetched a byte delivered, {counts.hedges} hedges",
    )


def throughput(server: S3Server, folder: Path, scratch: Path, rounds: int) -> None:
    """The first table."""
    store = open_store(f"s3://{BUCKET}/set")
    sizes = {entry.name: entry.size for entry in store.list() if entry.name.endswith(".tar")}
    caches = iter(scratch / f"cache-{number}" for number in range(10_000))

    def ours(
        workers: int = 0, keep: str = "disk", batches: int | None = None
    ) -> Callable[[], tuple[int, str]]:
        def run() -> tuple[int, str]:
            place = next(caches)
            result = epoch(stream_of(place, workers=workers, keep=keep), batches)
            shutil.rmtree(place, ignore_errors=True)
            return result

        return run

    warm = scratch / "warm"
    for workers, keep in ((0, "memory"), (0, "disk"), (2, "disk")):
        assert_equal(stream_of(next(caches), workers=workers, keep=keep), folder)
    assert_equal(stream_of(next(caches), keep="nothing"), folder, SLOW_BATCHES)
    assert_equal(stream_of(warm), folder)
    assert_equal(stream_of(warm), folder)
    print("each way gives the epoch of the folder, byte for byte\n")
    ways: dict[str, Callable[[], tuple[int, str]]] = {
        "boto3, whole tars": lambda: (with_boto3(sizes, 1 << 40)(), ""),
        "boto3, ranges of 8 MiB": lambda: (with_boto3(sizes, RANGE_BYTES)(), ""),
        "sage_scale, blocks in memory": ours(keep="memory"),
        "sage_scale, empty cache": ours(),
        "sage_scale, empty cache, 2 workers": ours(workers=2),
        SLOW: ours(keep="nothing", batches=SLOW_BATCHES),
        "sage_scale, full cache": lambda: epoch(stream_of(warm)),
    }
    runs: dict[str, list[Timed]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            if number and name == SLOW:
                continue
            warm_memory(3 * sum(sizes.values()))
            runs[name].append(timed(way, server))
    best = {name: min(each, key=lambda run: run.seconds) for name, each in runs.items()}
    ceiling = max(run.bytes / run.seconds for name, run in best.items() if name.startswith("boto3"))
    print(f"{'best of ' + str(rounds):36s}{'MB/s':>8s}{'of boto3':>10s}{'CPU s/GB':>10s}{'server':>8s}")
    for name, run in best.items():
        rate, gigabytes = run.bytes / run.seconds, run.bytes / 1e9
        print(
            f"{name:36s}{rate / 1e6:8.0f}{rate / ceiling:10.2f}{run.own_cpu / gigabytes:10.2f}"
            f"{run.server_cpu / gigabytes:8.2f}  {run.note}"
        )


def latency(server: S3Server, scratch: Path, steps: int) -> None:
    """The second table: what a trainer waits for behind 50 ms."""
    print(
        f"\nevery request waits {LATENCY_S * 1e3:.0f} ms, a step takes {STEP_S * 1e3:.0f} ms, {steps} steps"
    )
    print(f"{'':36s}{'first batch':>12s}{'waiting':>10s}{'worst':>10s}")
    with fault_proxy(server.host, server.port) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.endpoint
        for name, workers, keep in (
            ("sage_scale, blocks in memory", 0, "memory"),
            ("sage_scale, empty cache", 0, "disk"),
            ("sage_scale, empty cache, 2 workers", 2, "disk"),
            (SLOW, 0, "nothing"),
        ):
            proxy.rules.clear()
            stream = stream_of(scratch / f"late-{workers}-{keep}", workers=workers, keep=keep)
            proxy.add("latency", seconds=LATENCY_S, times=1 << 60)
            batches: Any = iter(stream)
            began = time.perf_counter()
            next(batches)
            first, waits = time.perf_counter() - began, []
            for _ in range(steps):
                time.sleep(STEP_S)
                began = time.perf_counter()
                next(batches)
                waits.append(time.perf_counter() - began)
            batches.close()
            print(
                f"{name:36s}{first * 1e3:9.0f} ms{sum(waits) / (steps * STEP_S):10.1%}{max(waits) * 1e3:7.0f} ms"
                f"  {stream.counts.requests} requests, {stream.counts.hedges} hedges",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--samples", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--server", choices=("ceph", "moto"), default="ceph")
    parser.add_argument("--skip-latency", action="store_true")
    parser.add_argument("--share", action="store_true", help="let server and clients share all cores")
    options = parse(parser, samples=512, rounds=1, steps=3, server="moto")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, server_of(options.server) as server:
        scratch = Path(name)
        print(f"server: {'Ceph RADOS gateway' if isinstance(server, Gateway) else 'moto'} on this machine")
        client().create_bucket(Bucket=BUCKET)
        folder = write_ours(scratch, make_samples(options.samples))
        store = open_store(f"s3://{BUCKET}/set")
        for path in sorted(folder.iterdir()):
            store.put(path.name, path)
        if options.share:
            print("server and clients share the cores")
        else:
            divide_cores(server)
        throughput(server, folder, scratch, options.rounds)
        if not options.skip_latency:
            latency(server, scratch, min(options.steps, options.samples // BATCH - 2))


if __name__ == "__main__":
    main()
