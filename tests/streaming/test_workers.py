"""Loader workers that are killed: one clear line while a batch is waited for, and nothing left in shared memory."""

import os
import signal
import subprocess
import sys
import time

import pytest
from factories.datasets import stream_recipe

from sage_scale.errors import SageError
from sage_scale.streaming import open_stream, workers


def test_a_killed_worker_is_one_line_and_only_where_a_batch_is_waited_for(frames_dataset):
    stream = open_stream(frames_dataset[0], stream_recipe("frames"), batch_size=3, workers=2)
    batches = iter(stream)
    next(batches)
    children = f"/proc/self/task/{os.getpid()}/children"
    with open(children) as file:
        worker = int(file.read().split()[-1])
    os.kill(worker, signal.SIGKILL)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:  # the trainer's own work: no signal handler may raise into it
        time.sleep(0.01)
    with pytest.raises(SageError, match=rf"a loader worker was killed \(process {worker}\).*stream\.workers"):
        for _ in batches:
            pass


def test_what_killed_workers_left_in_shared_memory_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "SHARED_MEMORY", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    own = os.getpid()
    for name in (
        f"torch_{gone.pid}_1_1",
        f"torch_{gone.pid}_2_0",
        f"torch_{own}_3_0",
        "torch_x_1_1",
        "sem.1",
    ):
        (tmp_path / name).write_bytes(b"")
    an_hour_ago = time.time() - 3600
    for name in (f"torch_{gone.pid}_1_1", f"torch_{own}_3_0", "torch_x_1_1", "sem.1"):
        os.utime(tmp_path / name, (an_hour_ago, an_hour_ago))
    workers.sweep_shared_memory()
    left = {f"torch_{gone.pid}_2_0", f"torch_{own}_3_0", "torch_x_1_1", "sem.1"}
    assert (
        set(os.listdir(tmp_path)) == left
    )  # one that is new may be another's, whose process is not seen here
    workers.sweep_shared_memory([gone.pid])
    assert set(os.listdir(tmp_path)) == left - {f"torch_{gone.pid}_2_0"}
