"""Resuming in an index of 10,000 shards, and memory over an epoch of a million samples.

    python benchmarks/stream_scale.py [--shards 10000] [--clips 100] [--batch 256]

Writes one real shard and an index that names it 10,000 times (hard links), so that every read is real and few bytes
are. In fresh processes: the time from the first line of `open_stream` to the first batch of a run resumed in the
middle, which must be the batch of the uninterrupted order; and resident memory along a whole epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from common import parse

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from factories.datasets import make_wide_dataset, stream_recipe


def resident_mb() -> float:
    """Resident memory of this process, MB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith("VmRSS"))


def resume(url: str, batch: int, step: int) -> dict[str, object]:
    """Open, go to a step, and take its batch; the time it took, and what the batch holds."""
    from sage_scale.streaming import open_stream

    began, cpu = time.perf_counter(), time.process_time()
    stream = open_stream(url, stream_recipe("features"), batch_size=batch)
    opened = time.perf_counter()
    stream.load_state_dict({**stream.state_dict(), "epoch": 1, "position": step * batch})
    first = next(iter(stream))
    ready, used = time.perf_counter(), time.process_time() - cpu
    wanted = stream.order.epoch(1)[0][step * batch : (step + 1) * batch]
    keys = stream.dataset.catalog.keys(wanted)
    assert first.keys == keys and first.positions_B[0] == step * batch, "not the uninterrupted run's batch"
    return {
        "open_s": opened - began,
        "first_batch_s": ready - began,
        "cpu_s": used,
        "samples": stream.samples,
    }


def memory(url: str, batch: int) -> dict[str, object]:
    """Resident memory at every twentieth of an epoch, and the rate."""
    from sage_scale.streaming import open_stream

    stream = open_stream(url, stream_recipe("features"), batch_size=batch, epochs=1)
    seen, marks, began = 0, [], time.perf_counter()
    times_S = np.zeros(stream.samples, np.int8)
    order_P = stream.order.epoch(0)[0]
    for number, part in enumerate(stream):
        seen += len(part.keys)
        times_S[order_P[part.positions_B]] += 1
        if number % (stream.steps_per_epoch // 20) == 0:
            marks.append(round(resident_mb(), 1))
    assert (times_S == 1).all(), "a sample was lost or doubled"
    return {"samples": seen, "memory_mb": marks, "samples_per_s": seen / (time.perf_counter() - began)}


def fresh(task: str, url: Path, batch: int, step: int) -> dict[str, object]:
    """The answer of a task in a new process."""
    command = [sys.executable, __file__, "--task", task, "--url", url, "--batch", batch, "--step", step]
    return json.loads(subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--step", type=int, default=1000, help="where it is resumed")
    parser.add_argument("--task", choices=["resume", "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parse(parser, shards=40, clips=20, batch=8, step=50)
    if options.task == "resume":
        print(json.dumps(resume(options.url, options.batch, options.step)))
    elif options.task == "memory":
        print(json.dumps(memory(options.url, options.batch)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            url = make_wide_dataset(Path(folder), options.shards, options.clips)
            tries = [fresh("resume", url, options.batch, options.step) for _ in range(3)]
            epoch = fresh("memory", url, options.batch, 0)
        best = min(tries, key=lambda row: float(str(row["first_batch_s"])))
        marks = epoch["memory_mb"]
        assert isinstance(marks, list)
        print(f"{options.shards:,} shards, {epoch['samples']:,} samples, batch {options.batch}")
        print(f"resumed at step {options.step:,} of epoch 1, best of 3: index open after {best['open_s']:.2f} s, "
              f"first batch after {best['first_batch_s']:.2f} s ({best['cpu_s']:.2f} s of processor time)")  # fmt: skip
        print(f"one epoch: {epoch['samples_per_s']:,.0f} samples/s; resident memory, MB, along it: {marks}")
        print(f"growth from the second mark to the last: {marks[-1] - marks[1]:.1f} MB")


if __name__ == "__main__":
    main()
