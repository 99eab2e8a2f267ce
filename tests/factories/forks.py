"""Forked ranks and processes: they share the imports of this process, so a run takes seconds less."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from factories.ranks import environment_of, fork, free_port

from sage_scale.training import distributed

TIME_OUT_S = 1200.0


def fork_ranks(world: int, work: Callable[[], Any]) -> list[Any]:
    """Run `work` in `world` forked ranks; returns the JSON value of each rank. SystemExit where one fails."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:

        def rank_of(rank: int) -> None:
            torch.set_num_threads(1)
            os.environ.update(environment_of(rank, world, port))
            with (Path(folder) / f"{rank}.err").open("w") as quiet:
                os.dup2(quiet.fileno(), 1)
                os.dup2(quiet.fileno(), 2)
                found = work()
            (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
            distributed.close()

        children = {fork(partial(rank_of, rank)): rank for rank in range(world)}
        failed = wait_for(set(children))
        if failed is not None:
            rank = children[failed]
            sys.exit(f"rank {rank} of {world} failed:\n" + (Path(folder) / f"{rank}.err").read_text()[-4000:])
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]


def in_fork(work: Callable[[], object]) -> None:
    """Run `work` in a forked process, so that its threads are not this one's. SystemExit where it fails."""
    if wait_for({fork(work)}) is not None:
        sys.exit("preparing failed")


def wait_for(children: set[int]) -> int | None:
    """Wait for all of them; the first that failed, or None. Where one fails, or time is out, the others are ended."""
    until = time.monotonic() + TIME_OUT_S
    left, failed = set(children), None
    while left:
        for child in sorted(left):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                left.discard(child)
                if status and failed is None:
                    failed, until = child, min(until, time.monotonic() + 2)
        if left and time.monotonic() > until:
            failed = failed or min(left)
            for child in left:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return failed
