"""Batches in shared memory: the same bytes as without, never overwritten while held, nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np
import psutil
import pytest
import torch
from test_features import assert_equal

from sage_scale.errors import SageError
from sage_scale.streaming import buffers, open_stream, workers
from sage_scale.streaming.buffers import MAX_BUFFERS, BatchHandle, SharedBatchBuffer

SIZE = 1 << 18


@pytest.fixture(autouse=True)
def frames_and_features_lie_on_it(monkeypatch):
    monkeypatch.setattr(buffers, "LEAST_BYTES", 3000)


@pytest.mark.parametrize(("kind", "batch_size"), [("features", 12), ("frames", 5)])
def test_batches_of_workers_are_those_of_one_process(request, kind, batch_size):
    """Frames come with their backgrounds."""
    url, recipe, _ = request.getfixturevalue(f"{kind}_dataset")
    alone = open_stream(url, recipe, batch_size=batch_size, epochs=2)
    by_workers = open_stream(url, recipe, batch_size=batch_size, epochs=2, workers=2)
    for batch, wanted in zip(by_workers, alone, strict=True):
        assert_equal(batch, wanted)


def test_batches_that_are_kept_stay_as_they_were(features_dataset):
    url, recipe, _ = features_dataset
    draw, kept, wrong = random.Random(1), [], 0
    wanted = [batch.video.features_FC for batch in open_stream(url, recipe, batch_size=12, epochs=12)]
    for number, batch in enumerate(open_stream(url, recipe, batch_size=12, epochs=12, workers=2)):
        view = batch.video.features_FC[1:][::2]  # while a view is left the buffer must not be freed
        kept.append((number, view))
        del batch
        if len(kept) > 5:
            place, view = kept.pop(draw.randrange(len(kept)))
            wrong += not torch.equal(view, wanted[place][1:][::2])
    assert wrong == 0


def test_buffers_are_used_again_and_only_when_the_trainer_has_dropped_them(features_dataset):
    url, recipe, _ = features_dataset
    shared = SharedBatchBuffer(1)
    pool = shared.pool(0)
    reader = open_stream(url, recipe, batch_size=12, epochs=40)
    reader.dataset.allocate_by(pool.take)
    requests = list(reader._requests(0, 0))

    def sent(request):
        return pickle.loads(pickle.dumps(BatchHandle.of(reader.dataset[request], pool))).unpack()

    held = [sent(request) for request in requests[:6]]
    assert len({batch.video.features_FC.data_ptr() for batch in held}) == 6
    del held
    counts = []
    for request in requests[6:]:
        sent(request)
        counts.append(len(pool._buffers))
    assert (
        len(counts) > 100 and counts[-1] <= counts[len(counts) // 2] + 1
    )  # of every size there is one by then


def test_a_forks_copies_give_no_room_back():
    shared = SharedBatchBuffer(1)
    pool = shared.pool(0)
    place = pool.reference(pool.take(SIZE))
    tensor = shared.tensor(place)
    if os.fork() == 0:
        del tensor
        os._exit(0)
    os.wait()
    assert shared._flags[place.flag] == 1
    del tensor
    assert shared._flags[place.flag] == 0


def test_workers_have_parts_of_their_own_and_a_full_one_goes_the_allocators_way(monkeypatch):
    monkeypatch.setattr(buffers, "PART_BYTES", MAX_BUFFERS + 4 * SIZE)
    shared = SharedBatchBuffer(2)
    first, second = shared.pool(0), shared.pool(1)
    taken = [pool.take(2 * SIZE) for pool in (first, second, first)]
    for value, array in enumerate(taken):
        array[:] = value
    places = [pool.reference(array) for pool, array in zip((first, second, first), taken)]
    assert places[2] is None and places[0].offset != places[1].offset
    for value in (0, 1):
        assert (shared.tensor(places[value]).numpy() == value).all()


def test_what_finds_no_room_needs_no_shared_memory_of_torchs(features_dataset, monkeypatch):
    url, recipe, _ = features_dataset
    monkeypatch.setattr(buffers, "PART_BYTES", MAX_BUFFERS)

    def full(*_):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_new_using_fd_cpu", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    shared = SharedBatchBuffer(1)
    reader = open_stream(url, recipe, batch_size=12, epochs=1)
    for request, wanted in zip(list(reader._requests(0, 0)), reader, strict=True):
        handle = ForkingPickler.dumps(BatchHandle.of(reader.dataset[request], shared.pool(0)))
        assert_equal(pickle.loads(handle).unpack(), wanted)
    forwarding = workers.WorkerDataset(reader.dataset, None)
    error = forwarding.__getitems__(next(reader._requests(0, 0)))
    assert isinstance(error, SageError) and "/dev/shm" in str(error) and "stream.workers" in str(error)


@pytest.mark.system
def test_workers_end_after_a_trainer_that_was_killed_though_nobody_reads_their_pipe(frames_dataset):
    url, recipe, _ = frames_dataset
    read, write = os.pipe()
    trainer = os.fork()
    if trainer == 0:
        buffers.LEAST_BYTES = 1 << 40  # all goes through the pipe, which is full after 64 KiB
        batches = iter(open_stream(url, recipe, batch_size=8, epochs=50, workers=2))
        next(batches)
        workers = [child.pid for child in psutil.Process().children()]
        time.sleep(1)
        os.write(write, json.dumps(workers).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(trainer, 0)
    workers = json.loads(os.read(read, 1000))
    assert len(workers) == 2
    end = time.monotonic() + 60
    while time.monotonic() < end and any(map(_runs, workers)):
        time.sleep(0.1)
    left = [worker for worker in workers if _runs(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left


def _runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_without_a_shared_buffer_batches_go_torchs_way(features_dataset, monkeypatch):
    url, recipe, _ = features_dataset
    assert buffers.shared_buffer_for(2, "spawn") is None and buffers.shared_buffer_for(2, "fork") is not None
    monkeypatch.delattr(os, "memfd_create")
    assert buffers.shared_buffer_for(2, "fork") is None
    monkeypatch.setattr(workers, "shared_buffer_for", lambda workers, context: None)
    alone = open_stream(url, recipe, batch_size=12, epochs=1)
    for batch, wanted in zip(
        open_stream(url, recipe, batch_size=12, epochs=1, workers=2), alone, strict=True
    ):
        assert_equal(batch, wanted)


def test_nothing_of_it_has_a_name(features_dataset):
    url, recipe, _ = features_dataset
    before = set(os.listdir("/dev/shm"))
    for batch in open_stream(url, recipe, batch_size=12, epochs=3, workers=2):
        mine = {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("torch_")}
        assert not mine and np.isfinite(batch.video.features_FC.float().sum())
