"""Streaming through a real S3 server that fails: every sample once, equal to a folder's; or one clear error in time.

The dataset has about thirty blocks, so that each epoch is some thirty requests that a fault can strike.
"""

from __future__ import annotations

import signal
import threading
import time

import pytest
import torch
from factories.datasets import make_stream_dataset, stream_recipe

from sage_scale.errors import SageError, StorageError
from sage_scale.storage import open_store, s3
from sage_scale.streaming import open_stream

pytestmark = pytest.mark.system
PLAN = [("train", 40), ("train", 3), ("train", 37)]
BATCH = 7
WAYS = [
    pytest.param("disk", 0, id="cache"),
    pytest.param("disk", 2, id="workers"),
    pytest.param("memory", 0, id="memory"),
    pytest.param("nothing", 2, id="nothing-workers"),
]
"""Where blocks are kept, and loader workers."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("faults")
    make_stream_dataset(place / "set", "features", PLAN)
    return place / "set"


@pytest.fixture
def remote(folder, monkeypatch):
    """Copies the dataset into a bucket; time-outs are short, so that silence is noticed within a test."""
    monkeypatch.setattr(s3, "SINGLE_READ_TIMEOUT_S", 1)
    monkeypatch.setattr(s3, "SINGLE_CONNECT_TIMEOUT_S", 1)

    def upload(bucket):
        store = open_store(bucket.url)
        for path in sorted(folder.iterdir()):
            store.put(path.name, path)
        return bucket.url

    return upload


def recipe_of(tmp_path, keep="disk", give_up_after_s=60.0, **settings):
    return stream_recipe(
        "features",
        **{
            "block_mb": 0.012,
            "cache_gb": 0.05 if keep == "disk" else 0.0,
            "memory_mb": 10 if keep == "memory" else 0,
            "cache_dir": str(tmp_path / "cache"),
            "give_up_after_s": give_up_after_s,
            **settings,
        },
    )


def epochs_of(data, recipe, workers=0, epochs=1):
    return open_stream(data, recipe, batch_size=BATCH, workers=workers, epochs=epochs)


def kept(stream):
    return stream.dataset.plan.keep


def assert_same(stream, wanted):
    count = 0
    for batch, same in zip(stream, wanted, strict=True):
        assert batch.keys == same.keys and batch.metas == same.metas
        assert torch.equal(batch.video.features_FC, same.video.features_FC)
        count += len(batch.keys)
    return count


@pytest.mark.parametrize(("keep", "workers"), WAYS)
@pytest.mark.parametrize("server", ["s3", "ceph"])
def test_whatever_fails_on_the_way_each_sample_comes_once(
    server, keep, workers, remote, folder, behind_proxy, request, tmp_path
):
    bucket = request.getfixturevalue(server)
    url = remote(bucket)
    proxy = behind_proxy(bucket)
    recipe = recipe_of(tmp_path, keep)
    stream = epochs_of(url, recipe, workers)
    assert kept(stream) == keep
    tars = {"path": r"\.tar"}
    rules = [
        proxy.add("status", times=3, skip=2, **tars),
        proxy.add("status", times=2, skip=4, status=500, code="InternalError", **tars),
        proxy.add("reset", at=900, times=2, skip=1, **tars),
        proxy.add("refuse", times=2, skip=3, **tars),
        proxy.add("truncate", at=1500, times=2, skip=1, **tars),
        proxy.add("corrupt", at=700, times=2, skip=2, **tars),
        proxy.add("stall", at=600, seconds=3.0, skip=1, **tars),
        proxy.add("latency", seconds=0.3, times=5, **tars),
    ]
    assert assert_same(stream, epochs_of(folder, recipe)) == 80
    assert all(rule.hits for rule in rules), [(rule.action, rule.hits) for rule in rules]
    assert (
        stream.counts.retries + stream.counts.hedges >= 5 and stream.counts.requests > stream.counts.retries
    )
    # What came in spite of it is what the cache holds: a second epoch needs the network no more.
    if keep == "disk" and not workers:
        again = epochs_of(url, recipe)
        assert assert_same(again, epochs_of(folder, recipe)) == 80
        assert again.counts.requests <= 2


@pytest.mark.parametrize(("keep", "workers"), WAYS)
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_dies_or_falls_silent_and_comes_back_costs_time_alone(
    stop, keep, workers, remote, folder, ceph, tmp_path
):
    recipe = recipe_of(tmp_path, keep)
    stream = epochs_of(remote(ceph), recipe, workers)
    gateway = ceph.server.processes["rgw"]

    back = threading.Event()

    def come_back():
        time.sleep(2.0)
        if stop == signal.SIGSTOP:
            gateway.send_signal(signal.SIGCONT)
        else:
            gateway.wait()
            ceph.server.start_gateway()
        back.set()
        threading.Event().wait()  # the server dies with the thread that started it

    def with_outage():
        for number, batch in enumerate(stream):
            if number == 0:
                gateway.send_signal(stop)
                threading.Thread(target=come_back, daemon=True).start()
            yield batch

    try:
        assert assert_same(with_outage(), epochs_of(folder, recipe)) == 80
    finally:
        assert back.wait(60)


@pytest.mark.parametrize(("keep", "workers"), WAYS)
@pytest.mark.parametrize("silent", [False, True])
def test_a_server_that_stays_away_is_one_clear_error_in_time(
    silent, keep, workers, remote, s3, behind_proxy, monkeypatch, tmp_path
):
    url = remote(s3)
    proxy = behind_proxy(s3)
    half = {"cache_gb": 0.0002} if keep == "disk" else {}  # of the dataset; the rest has to be fetched
    recipe = recipe_of(tmp_path, keep, give_up_after_s=3.0, lanes=1, window=4, **half)
    stream = epochs_of(url, recipe, workers, epochs=50)
    assert kept(stream) == keep
    batches = iter(stream)
    next(batches)
    proxy.add("latency" if silent else "refuse", times=1 << 60, seconds=60.0)
    began = time.monotonic()
    with pytest.raises(StorageError, match=r"given up after 3 s \(stream\.give_up_after_s\)") as error:
        for _ in batches:
            began = time.monotonic()
    assert "\n" not in str(error.value) and url in str(error.value)
    assert isinstance(error.value, SageError) and time.monotonic() - began < 15


def test_a_run_resumed_in_the_middle_of_an_epoch_goes_on_from_the_cache(
    remote, folder, s3, behind_proxy, tmp_path
):
    url = remote(s3)
    recipe = recipe_of(tmp_path)
    whole = list(epochs_of(folder, recipe, epochs=2))
    first = epochs_of(url, recipe, epochs=2)
    batches = iter(first)
    assert_same([next(batches) for _ in range(5)], whole[:5])
    batches.close()
    proxy = behind_proxy(s3)
    for workers in (0, 2):  # and as another job, through the same cache
        resumed = epochs_of(url, recipe, workers, epochs=2)
        resumed.load_state_dict(first.state_dict())
        assert_same(resumed, whole[5:])
    fetched = [path for _, path in proxy.seen if path.endswith(".tar")]
    blocks = len(resumed.dataset.plan.cuts) - 1
    assert len(fetched) <= blocks < 60 and sum(len(batch.keys) for batch in whole) == 160


def test_a_full_disk_is_told_once_and_the_epoch_goes_on(remote, folder, s3, tmp_path, monkeypatch, caplog):
    import errno

    from sage_scale.streaming import cache

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    url, recipe = remote(s3), recipe_of(tmp_path)
    monkeypatch.setattr(cache.os, "write", full)
    assert assert_same(epochs_of(url, recipe), epochs_of(folder, recipe)) == 80
    told = [record.getMessage() for record in caplog.records if "cache is off" in record.getMessage()]
    assert len(told) == 1 and "the disk is full" in told[0] and "stream.cache_dir" in told[0]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "ledger"]
