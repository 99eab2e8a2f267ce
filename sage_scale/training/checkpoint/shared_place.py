"""The proof, before the first step, that every host reads and rank 0 writes one place of checkpoints.

Ranks of several hosts write their parts of a checkpoint side by side. Where each host has a folder of its own, that
would show at the first save only, an epoch in.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

from sage_scale.errors import UsageError
from sage_scale.storage import NotFound, open_store
from sage_scale.training.distributed import Ranks, broadcast_object, run_on_all_ranks, run_on_rank0

WAIT_S = 30.0
"""Time for a shared file system to show a new file on other hosts, seconds."""
_EVERY_S = 0.5
_TRIAL = "trial"


def check_shared(
    url: str | Path,
    key: str,
    ranks: Ranks,
    wait_s: float = WAIT_S,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write an object as rank 0 and read it as the first rank of each host, then delete it (a collective).

    Raises UsageError naming `key` (`pretrain.checkpoints`) if a host does not see it within `wait_s`, StorageError if
    the store refuses it to rank 0 or to a host.
    """
    name = f"{_TRIAL}-{broadcast_object(secrets.token_hex(8))}"
    made: list[Path] = []

    def write() -> None:
        store = open_store(url)
        if path := store.local_path(name):
            made.extend(folder for folder in path.parents if not folder.exists())
        store.put(name, b"")

    run_on_rank0(write)
    try:
        line = run_on_all_ranks(lambda: _look(url, name, key, ranks, wait_s, sleep))
    finally:
        run_on_rank0(lambda: open_store(url).delete(name))
    if line is not None:
        with contextlib.suppress(OSError):  # not empty: it stays
            for folder in made:
                folder.rmdir()
        raise UsageError(line)


def _look(
    url: str | Path, name: str, key: str, ranks: Ranks, wait_s: float, sleep: Callable[[float], None]
) -> str | None:
    """Returns why this rank, the first of its host, does not see the object; None where it does."""
    if int(os.environ.get("LOCAL_RANK", ranks.local_rank)) != 0:
        return None
    store = open_store(url)
    path = store.local_path(name)
    end = time.monotonic() + wait_s
    while True:
        if path is not None:
            with contextlib.suppress(OSError):
                os.listdir(
                    path.parent
                )  # else an NFS client may remember for a minute that the name is not there
        with contextlib.suppress(NotFound):
            store.get(name)
            return None
        if time.monotonic() > end:
            return (
                f"rank {ranks.rank} on {socket.gethostname()} does not see what rank 0 writes to {store.url}: set "
                f"{key}=s3://bucket/prefix, or give --run a place that all hosts share"
            )
        sleep(_EVERY_S)
