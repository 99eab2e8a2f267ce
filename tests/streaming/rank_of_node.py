"""Forked gloo ranks that open a stream once a node: `python rank_of_node.py URL FOLDER WORLD HOSTS [RANK THAT DIES]`.

What each rank holds is written to FOLDER/RANK.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from factories.datasets import stream_recipe
from factories.ranks import fork_all

from sage_scale.streaming import OncePerNode, open_datasets, open_stream, per_node


def gather(value: object) -> list:
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def rank_of(rank: int, url: str, folder: Path, world: int, hosts: int, dying: int) -> None:
    own = f"{per_node._node()} {rank % hosts}"
    per_node._node = lambda: own
    if rank == dying:
        place = "_listening" if rank < hosts else "_received"
        setattr(per_node, place, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    once = OncePerNode(gather)
    datasets = open_datasets(url, once)
    recipe = stream_recipe("features")
    stream = open_stream(datasets, recipe, rank=rank, world=world, batch_size=4, epochs=1, once=once)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    found = {
        "state": stream.state_dict()["digest"],
        "keys": [key for batch in stream for key in batch.keys],
        "mapped": sum("memfd:sage-scale-index" in line for line in maps),
        "columns": sorted({"length", "frames", "segments"} & set(vars(stream.dataset.catalog.samples))),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()


if __name__ == "__main__":
    url, folder, world, hosts, *dying = sys.argv[1:]
    codes = fork_all(
        int(world),
        lambda rank: rank_of(rank, url, Path(folder), int(world), int(hosts), int((dying or [-1])[0])),
    )
    print(json.dumps(codes))
