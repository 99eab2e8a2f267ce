"""Claim: SIGKILL of ranks and loader workers at random times harms no cache, leaks nothing and changes no sample.

    python tests/campaigns/stream_kills.py [--kills 50] [--server moto|ceph] [--seed 0]

Two ranks stream one dataset from a real S3 server through one node-local cache that is too small for all of it, so that
blocks come and go; rank 0 reads with two loader workers, rank 1 with threads. After each step a rank notes the sha256
of its batch and saves the stream's state. Every so often one rank, or one worker of rank 0, gets SIGKILL. A rank that
died is started again from its last state; the other goes on meanwhile. Checked are

- every batch against an undisturbed run's, byte for byte, before and after every kill;
- that a rank whose worker was killed ends by itself, with one line, and that orphaned workers end;
- every file of the cache against the shard, the cache's bound, and that no `.part` outlives the next process;
- /dev/shm, and the number of open descriptors of each rank.

Prints one table and ends with code 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

sys.path.extend(map(str, (Path(__file__).parents[1], Path(__file__).parents[2] / "benchmarks")))
from common import parse
from factories.processes import kill, kill_one, wait_until
from loaders import make_recipe, make_samples, write_ours
from servers.ceph import ceph_gateway
from servers.moto import moto_server

from sage_scale.errors import SageError
from sage_scale.storage import open_store
from sage_scale.streaming import Batch, Stream, open_stream
from sage_scale.streaming.cache import BlockCache

WORLD, BATCH, SAMPLES = 2, 32, 768
WORKERS = (2, 0)
"""Loader workers of each rank."""
BLOCK_MB, CACHE_GB = 0.5, 0.04
STEP_S = 0.02
"""A step of a trainer."""
END_S = 30.0
"""Nothing may take longer to notice that it is over."""
forking = multiprocessing.get_context("fork")
"""The parent has no threads, and torch takes seconds to import."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--server", choices=("moto", "ceph"), default="moto")
    settings = parse(parser, kills=1)
    torch.set_num_threads(1)
    server_of = ceph_gateway if settings.server == "ceph" else moto_server
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch, server_of() as server:
        os.environ.update(server.environment())
        return run(Path(scratch), settings.kills, random.Random(settings.seed))


def run(scratch: Path, wanted: int, chance: random.Random) -> int:
    """All of it; the exit code."""
    folder = write_ours(scratch, make_samples(SAMPLES))
    upload(folder)
    expected = {rank: undisturbed(folder, rank) for rank in range(WORLD)}
    shm = set(os.listdir("/dev/shm"))
    kills: Counter[str] = Counter()
    wrong: list[str] = []
    job = Job(scratch)
    try:
        while kills.total() < wanted:
            kills[job.kill_something(chance)] += 1
            wrong += job.heal()
        for rank in range(WORLD):  # and then each goes on for a while
            wrong += job.steps_more(rank, 5)
    finally:
        job.end()
    wrong += job.orphans()
    steps, resumed = 0, 0
    for rank in range(WORLD):
        rows = [line.split() for line in (scratch / f"log-{rank}").read_text().splitlines()]
        # A line whose writer was killed in the middle of it is no batch that was handed out.
        rows = [row for row in rows if len(row) == 4 and len(row[2]) == 64]
        steps += len(rows)
        resumed += len(rows) - len({tuple(row[:2]) for row in rows})
        for epoch, position, digest, _ in rows:
            if expected[rank](int(epoch), int(position)) != digest:
                wrong.append(f"rank {rank}, epoch {epoch}, position {position}: another batch")
        most = max(int(row[3]) for row in rows)
        if most > 200:
            wrong.append(f"rank {rank} had {most} descriptors open")
    files, size = check_cache(scratch / "cache", folder, wrong)
    left = set(os.listdir("/dev/shm")) - shm
    if left:
        wrong.append(f"/dev/shm holds {sorted(left)}")
    print(
        f"{'kills':>6}{'of ranks':>10}{'of workers':>12}{'batches':>9}{'twice':>7}{'blocks':>8}{'MB':>6}  result"
    )
    result = "; ".join(wrong[:5]) if wrong else "every batch equal, nothing left behind"
    print(
        f"{kills.total():>6}{kills['rank']:>10}{kills['worker']:>12}{steps:>9}{resumed:>7}{files:>8}{size / 1e6:>6.0f}"
        f"  {result}"
    )
    return 1 if wrong else 0


class Job:
    """The running ranks."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.ranks: list[multiprocessing.process.BaseProcess] = []
        self.sessions: list[int] = []
        for rank in range(WORLD):
            self.ranks.append(self.start(rank))

    def start(self, rank: int) -> multiprocessing.process.BaseProcess:
        process = forking.Process(target=stream_for_ever, args=(self.scratch, rank))
        process.start()
        self.sessions.append(process.pid or 0)
        return process

    def kill_something(self, chance: random.Random) -> str:
        """At a random moment, one time in four while it starts: a rank, or one of its workers."""
        rank = chance.randrange(WORLD)
        if chance.random() < 0.75:
            self.steps_more(rank, 1)
        time.sleep(chance.uniform(0, 0.7))
        pid = self.ranks[rank].pid or 0
        workers = [other for other in session(pid) if other != pid]
        if workers and chance.random() < 0.7:
            kill_one(workers, chance)
            self.must_end = rank
            return "worker"
        self.ranks[rank].kill()
        self.must_end = rank
        return "rank"

    def heal(self) -> list[str]:
        """Start what died again; whatever does not end by itself is wrong."""
        rank = self.must_end
        self.ranks[rank].join(END_S)
        wrong = []
        if self.ranks[rank].is_alive():
            os.kill(self.ranks[rank].pid or 0, signal.SIGUSR1)  # where it hangs, to stderr
            time.sleep(1)
            wrong.append(f"rank {rank} hangs after its worker was killed")
            self.ranks[rank].kill()
            self.ranks[rank].join()
        self.ranks[rank] = self.start(rank)
        return wrong

    def steps_more(self, rank: int, steps: int) -> list[str]:
        """The rank goes on."""
        log = self.scratch / f"log-{rank}"
        before = log.stat().st_size if log.exists() else 0
        longer = wait_until(
            lambda: log.exists() and log.stat().st_size > before + steps * 70, END_S, pause=0.1
        )
        return [] if longer else [f"rank {rank} does not go on"]

    def end(self) -> None:
        for process in self.ranks:
            process.kill()
            process.join()

    def orphans(self) -> list[str]:
        """Workers of killed ranks see for themselves that they are alone."""
        wait_until(lambda: not any(session(pid) for pid in self.sessions), END_S, pause=0.2)
        left = [pid for leader in self.sessions for pid in session(leader)]
        for pid in left:
            kill(pid)
        return [f"processes {left} did not end"] if left else []


def session(leader: int) -> list[int]:
    """Living processes of a rank: itself and its workers."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) == leader and fields[0] != "Z":
                    found.append(int(folder.name))
    return found


def stream_for_ever(scratch: Path, rank: int) -> None:
    """A rank: goes on from its state, notes each batch."""
    os.setsid()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    torch.set_num_threads(1)
    stream = stream_of("s3://kills/set", rank, workers=WORKERS[rank], cache=scratch / "cache")
    state = scratch / f"state-{rank}"
    if state.exists():
        stream.load_state_dict(json.loads(state.read_text()))
    with open(scratch / f"log-{rank}", "a", buffering=1) as log:
        log.write("\n")  # ends what a killed predecessor began
        try:
            for batch in stream:
                open_now = len(os.listdir("/proc/self/fd"))
                log.write(f"{batch.epoch} {batch.position} {digest_of(batch)} {open_now}\n")
                fresh = scratch / f"state-{rank}.new"
                fresh.write_text(json.dumps(stream.state_dict()))
                fresh.replace(state)
                time.sleep(STEP_S)
        except SageError as error:
            assert "a loader worker was killed" in str(error), error
            os._exit(1)


def stream_of(url: str | Path, rank: int, *, workers: int = 0, cache: Path | None = None) -> Stream:
    recipe = make_recipe()
    settings = dataclasses.replace(
        recipe.stream,
        lanes=8,
        window=16,
        block_mb=BLOCK_MB,
        cache_gb=CACHE_GB,
        cache_dir=str(cache or ""),
        memory_mb=0,
    )
    recipe = dataclasses.replace(recipe, stream=settings)
    stream = open_stream(url, recipe, rank=rank, world=WORLD, batch_size=BATCH, workers=workers)
    assert stream.dataset.plan is not None and stream.dataset.plan.keep == "disk"
    return stream


def undisturbed(folder: Path, rank: int):
    """Digest of the batch before a position of an epoch, as the folder gives it."""
    known: dict[tuple[int, int], str] = {}
    stream = iter(stream_of(folder, rank))

    def digest(epoch: int, position: int) -> str:
        while (epoch, position) not in known:
            batch = next(stream)
            known[batch.epoch, batch.position] = digest_of(batch)
        return known[epoch, position]

    return digest


def digest_of(batch: Batch) -> str:
    sha = hashlib.sha256(" ".join(batch.keys).encode() + batch.positions_B.tobytes())
    for name, value in sorted(vars(batch.video).items()):
        if value is not None:
            sha.update(name.encode() + value.numpy().tobytes())
    return sha.hexdigest()


def check_cache(cache: Path, folder: Path, wrong: list[str]) -> tuple[int, int]:
    """Number and size of the blocks; what is not as it must be goes to `wrong`."""
    BlockCache(cache, "0" * 16, 1)  # the next process that opens it
    files = [path for path in cache.rglob("*") if path.is_file() and path.name != "ledger"]
    for path in files:
        match = re.fullmatch(r"(\d+)-([0-9a-f]+)-([0-9a-f]+)", path.name)
        if not match:
            wrong.append(f"{path.name} is left in the cache")
            continue
        begin, end = int(match[2], 16), int(match[3], 16)
        if path.read_bytes() != (folder / f"{match[1]}.tar").read_bytes()[begin:end]:
            wrong.append(f"{path.name} of the cache is not what the shard holds")
    size = sum(path.stat().st_size for path in files)
    if size > CACHE_GB * 1e9:
        wrong.append(f"the cache holds {size} bytes")
    return len(files), size


def upload(folder: Path) -> None:
    import boto3

    boto3.session.Session().client("s3").create_bucket(Bucket="kills")
    store = open_store("s3://kills/set")
    for path in sorted(folder.iterdir()):
        store.put(path.name, path)


if __name__ == "__main__":
    sys.exit(main())
