"""One job reads a file once: the ranks read different files at the same time and hand each to all.

A checkpoint of mBART-large with its optimizer is 7 GB. 64 ranks that each read it whole would ask object storage
for half a terabyte before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import torch.distributed as dist

from sage_scale.errors import SageError
from sage_scale.training import distributed
from sage_scale.training.distributed import Ranks


def read_together(read: Callable[[str], bytes], names: Sequence[str], ranks: Ranks) -> Iterator[bytes]:
    """The files `names` in turn, on every rank (a collective: every rank takes all of them).

    Rank r reads files r, r + W, ... with `read`, one ahead in a thread, so that one file of each rank is in memory
    beside the one that is given. Where a rank cannot read its file, every rank raises that rank's error.
    """
    if ranks.world == 1:
        yield from map(read, names)
        return
    group = dist.new_group(backend="gloo")  # NCCL moves nothing that lies in host memory
    mine = iter(names[ranks.rank :: ranks.world])
    with ThreadPoolExecutor(1, "checkpoint file") as thread:

        def begin() -> Future[bytes] | None:
            name = next(mine, None)
            return None if name is None else thread.submit(read, name)

        ahead = begin()
        for number in range(len(names)):
            owner = number % ranks.world
            data, failure = b"", None
            if owner == ranks.rank:
                assert ahead is not None
                try:
                    data = ahead.result()
                except SageError as error:
                    failure = error
                ahead = begin()
            yield _from(owner, data, failure, group)
    dist.destroy_process_group(group)


def _from(owner: int, data: bytes, failure: SageError | None, group: dist.ProcessGroup) -> bytes:
    """`owner`'s data on every rank, or its failure raised on every rank."""
    size, failure = distributed.from_rank(owner, (len(data), failure), group)
    if failure is not None:
        raise failure
    if dist.get_rank() == owner:
        body = (
            torch.frombuffer(bytearray(data), dtype=torch.uint8)
            if data
            else torch.empty(0, dtype=torch.uint8)
        )
    else:
        body = torch.empty(size, dtype=torch.uint8)
    if size:
        dist.broadcast(body, owner, group=group)
    return data if dist.get_rank() == owner else body.numpy().tobytes()
