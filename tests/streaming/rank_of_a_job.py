"""One real process of a job: streams its part, gathers every rank's over gloo, rank 0 writes the global batches.

python rank_of_a_job.py URL RANK WORLD PORT WORKERS BATCH_SIZE STEPS STATE OUT
"""

import hashlib
import json
import sys
from pathlib import Path

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from factories.datasets import stream_recipe

from sage_scale.streaming import open_stream


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


def run(url, rank, world, workers, batch_size, steps, state):
    stream = open_stream(
        url, stream_recipe("frames"), rank=rank, world=world, batch_size=batch_size, workers=workers
    )
    if state:
        stream.load_state_dict(state)
    batches = iter(stream)
    found = []
    for _ in range(steps):
        parts = [fingerprints(next(batches))]
        if world > 1:
            own, parts = parts[0], [None] * world
            dist.all_gather_object(parts, own)
        found.append(sorted(row for part in parts for row in part))
    batches.close()
    return {"steps": found, "state": stream.state_dict()}


if __name__ == "__main__":
    url, rank, world, port, workers, batch_size, steps, state, out = sys.argv[1:]
    if int(world) > 1:
        dist.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=int(world)
        )
    result = run(url, int(rank), int(world), int(workers), int(batch_size), int(steps), json.loads(state))
    if rank == "0":
        Path(out).write_text(json.dumps(result))
    if int(world) > 1:
        dist.destroy_process_group()
