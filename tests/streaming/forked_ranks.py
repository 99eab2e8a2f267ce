"""Jobs of real processes that are forked from one that has torch loaded: sixty-four of them start in seconds.

python forked_ranks.py TASK WORK_FOLDER     the tasks are the functions below; what they find is printed as JSON
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from factories.datasets import stream_recipe
from factories.ranks import fork_all

from sage_scale.streaming import open_stream


def fork_job(world, work, folder):
    """Run `work(rank, world)` in `world` processes joined by gloo; what rank 0 returns."""
    meeting, answer = folder / "meeting", folder / "answer.json"
    meeting.unlink(missing_ok=True)

    def rank_of(rank):
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
        found = work(rank, world)
        if rank == 0:
            answer.write_text(json.dumps(found))
        dist.barrier()

    assert fork_all(world, rank_of) == [0] * world
    return json.loads(answer.read_text())


def fingerprints(batch):
    """[position, key, sha256 of the clip's draw, segments and frames] of every clip."""
    rows = []
    for number in range(len(batch.keys)):
        clip = batch.select([number])
        sha = hashlib.sha256()
        for name, value in sorted(vars(clip.video).items()):
            if value is not None:
                sha.update(name.encode() + value.numpy().tobytes())
        rows.append([int(clip.positions_B[0]), clip.keys[0], sha.hexdigest()])
    return rows


def steps_of(url, rank, world, *, workers, batch, micro, steps, state):
    """Global batches, each clip by a hash of all its bytes, gathered from every rank, and the state after them."""
    stream = open_stream(
        url, stream_recipe("frames"), rank=rank, world=world, batch_size=batch, workers=workers
    )
    if state:
        stream.load_state_dict(state)
    batches = iter(stream)
    found = []
    for _ in range(steps):
        whole = next(batches)
        clips = len(whole.keys)
        parts = [whole.select(slice(at, at + micro)) for at in range(0, clips, micro)] if micro else [whole]
        own = [row for part in parts for row in fingerprints(part)]
        every = [None] * world
        dist.all_gather_object(every, own)
        found.append(sorted(row for part in every for row in part))
    batches.close()
    return {"steps": found, "state": stream.state_dict()}


def grid(folder):
    """Every layout over the same steps: 1, 2, 3, 4, 7 ranks by 0, 1, 3 workers by micro-batches, then a chain."""
    url = folder / "set"
    layouts = [
        (world, workers, (0, 1, 2)[(world + workers) % 3])
        for world in (1, 2, 3, 4, 7)
        for workers in (0, 1, 3)
    ]
    found = {}
    for world, workers, micro in layouts:

        def work(rank, world, workers=workers, micro=micro):
            return steps_of(url, rank, world, workers=workers, batch=9, micro=micro, steps=6, state=None)

        found[f"{world} ranks, {workers} workers, micro-batches of {micro}"] = fork_job(world, work, folder)
    chain, state = [], None
    for world, workers, micro in ((7, 0, 1), (1, 3, 0), (3, 1, 2), (2, 0, 0), (4, 0, 1), (1, 0, 2)):

        def link(rank, world, workers=workers, micro=micro, state=state):
            return steps_of(url, rank, world, workers=workers, batch=9, micro=micro, steps=1, state=state)

        answer = fork_job(world, link, folder)
        chain += answer["steps"]
        state = answer["state"]
    return {"layouts": found, "chain": chain, "state": state}


def assignment(folder):
    """Sixty-four ranks share an epoch of ten thousand shards: how often each clip is read, and by how many a batch."""

    def work(rank, world):
        began = time.perf_counter()
        batch = 1000
        recipe = stream_recipe("features", lanes=64)
        stream = open_stream(folder / "wide", recipe, rank=rank, world=world, batch_size=batch, epochs=1)
        opened = time.perf_counter() - began
        times_S = torch.zeros(stream.samples, dtype=torch.int32)
        at_P = torch.full((stream.samples,), -1, dtype=torch.int64)
        misplaced = 0
        begin = 0
        for request in stream._requests(0, 0):
            times_S[torch.from_numpy(request.samples_B)] += 1
            at_P[torch.from_numpy(request.positions_B)] = torch.from_numpy(request.samples_B)
            inside = (request.positions_B >= begin) & (request.positions_B < request.position)
            misplaced += int((~inside).sum()) + (
                request.position - begin != min(batch, stream.samples - begin)
            )
            begin = request.position
        bad = torch.tensor([misplaced])
        dist.all_reduce(times_S)
        dist.all_reduce(at_P, op=dist.ReduceOp.MAX)
        dist.all_reduce(bad)
        slowest = torch.tensor([opened])
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        alone = open_stream(folder / "wide", recipe, batch_size=batch)
        order_P = next(alone._requests(0, 0)).samples_B
        return {
            "clips": stream.samples,
            "once": bool((times_S == 1).all()),
            "misplaced": int(bad),
            "first_batch_equal": bool(np.array_equal(at_P[:batch].numpy(), order_P)),
            "order": hashlib.sha256(at_P.numpy().tobytes()).hexdigest(),
            "wanted": hashlib.sha256(alone.order.epoch(0)[0].astype(np.int64).tobytes()).hexdigest(),
            "slowest_open_s": round(float(slowest), 2),
        }

    return fork_job(64, work, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"grid": grid, "assignment": assignment}[sys.argv[1]](Path(sys.argv[2]))))
