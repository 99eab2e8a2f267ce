"""One GET and one parse of an index a node. Ranks are threads here, and nodes have names."""

from __future__ import annotations

import dataclasses
import logging
import mmap
import os
import pickle
import threading
from collections import Counter

import numpy as np
import pytest
from factories.datasets import make_stream_dataset, stream_recipe

from sage_scale.errors import DatasetError, NoDataset, SageError
from sage_scale.shards.layout import INDEX_JSON
from sage_scale.storage.folder import FolderStore
from sage_scale.streaming import OncePerNode, open_datasets, open_stream, per_node

PLANS = {
    "one": ([("train", 13), ("train", 20)], ()),
    "two": ([("train", 9), ("dev", 4), ("train", 11)], (2,)),
}


@pytest.fixture(scope="module")
def urls(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("sets")
    for name, (plan, mute) in PLANS.items():
        make_stream_dataset(
            root / name,
            "features",
            plan,
            mute,
            prefix=name,
            languages=("de", "fr") if name == "two" else ("de",),
        )
    return [str(root / name) for name in PLANS]


@pytest.fixture
def gets(monkeypatch) -> Counter[str]:
    """Reads of index.json, by URL."""
    counts: Counter[str] = Counter()
    read = FolderStore.read

    def counted(self, name, parse):
        counts[self.url] += name == INDEX_JSON
        return read(self, name, parse)

    monkeypatch.setattr(FolderStore, "read", counted)
    return counts


@pytest.fixture
def job(monkeypatch):
    """Runs `work(rank, gather)` in `world` threads on so many hosts; returns results, or the errors raised."""
    hosts = 1
    monkeypatch.setattr(per_node, "_node", lambda: f"host {rank_here() % hosts}")

    def run(world, work, on=1):
        nonlocal hosts
        hosts = on
        barrier, slots, found = threading.Barrier(world, timeout=20), [None] * world, [None] * world

        def rank_of(rank):
            def gather(value):
                slots[rank] = pickle.dumps(value)
                barrier.wait()
                gathered = [pickle.loads(slot) for slot in slots]
                barrier.wait()
                return gathered

            try:
                found[rank] = work(rank, gather)
            except SageError as error:
                found[rank] = error
            except BaseException:
                barrier.abort()
                raise

        threads = [
            threading.Thread(target=rank_of, args=(rank,), name=f"rank {rank}") for rank in range(world)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    return run


def rank_here() -> int:
    return int(threading.current_thread().name.split()[-1])


def opened(urls, world=1, rank=0, once=None, **settings):
    """What a rank's stream is: digest, mixture, keys and batches."""
    recipe = stream_recipe("features")
    recipe = dataclasses.replace(recipe, stream=dataclasses.replace(recipe.stream, **settings))
    given = {} if once is None else {"once": once}
    datasets = open_datasets(urls, **given)
    stream = open_stream(datasets, recipe, rank=rank, world=world, batch_size=6, epochs=2, **given)
    catalog = stream.dataset.catalog
    return {
        "state": stream.state_dict(),
        "order": [[part.tolist() for part in stream.order.epoch(epoch)] for epoch in range(3)],
        "keys": catalog.keys(np.arange(len(catalog))),
        "urls": catalog.shard_urls,
        "left_out": catalog.left_out,
        "languages": catalog.samples.language.tolist(),
        "parts": [(part.url, len(part), part.samples.hash.tobytes()) for part in catalog.parts],
        "batches": [(batch.keys, batch.video.features_FC.numpy().tobytes()) for batch in stream],
        "datasets": [
            (dataset.digest, dataset.splits, dataset.info, dataset.units[:]) for dataset in datasets
        ],
    }


def in_job(urls, **settings):
    return lambda rank, gather: opened(urls, 4, rank, OncePerNode(gather), **settings)


SETTINGS = [
    {},
    {"fraction": 0.6},
    {"mix": "dataset", "weights": (3.0, 1.0), "epoch_samples": 50},
    {"mix": "language", "temperature": 2.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("hosts", [1, 3])
def test_each_node_reads_an_index_once_and_every_rank_has_the_stream_it_would_have_alone(
    urls, gets, job, hosts, settings
):
    found = job(4, in_job(urls, **settings), on=hosts)
    assert gets == {url: hosts for url in urls}
    assert found == [opened(urls, 4, rank, **settings) for rank in range(4)]


def test_the_tables_of_a_node_are_one_sealed_file_of_this_user_that_is_gone_after_them(urls, job):
    names = [name for name in os.listdir("/proc/self/fd")]

    def work(rank, gather):
        once = OncePerNode(gather)
        made = once(lambda allocate: {"a": allocate(80_000), "b": np.arange(7.0), "c": np.zeros((0, 3))}, "x")
        gather(None)
        return made, once

    found = job(3, work)
    arrays = [made for made, _ in found]
    for made in arrays[1:]:
        assert all(np.array_equal(made[name], arrays[0][name]) for name in "abc")
    addresses = {made["a"].__array_interface__["data"][0] for made in arrays}
    assert len(addresses) == 3  # each its own mapping, read-only
    for made in arrays:
        for array in made.values():
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 1
    del found, arrays, made, array
    assert len(os.listdir("/proc/self/fd")) <= len(names) + 1


def test_nobody_can_change_shorten_or_lengthen_a_sealed_file():
    memory = per_node._Memory.new(10_000)
    memory.content[:] = 7
    memory.seal(9_000)
    for size in (10, 20_000):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.descriptor, size)
    with pytest.raises(PermissionError):
        mmap.mmap(memory.descriptor, 9_000, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        os.pwrite(memory.descriptor, b"x", 0)
    assert os.fstat(memory.descriptor).st_mode & 0o777 == 0o600
    assert per_node._Memory.received(os.dup(memory.descriptor), 9_000).content.sum() == 7 * 9_000


def foreign(kind):
    """A descriptor that the first rank never passed, of the size it announced."""

    def received(address, count):
        descriptors = []
        for _ in range(count):
            descriptor = os.memfd_create("foreign", os.MFD_ALLOW_SEALING)
            os.fchmod(descriptor, 0o644 if kind == "mode" else 0o600)
            os.ftruncate(descriptor, 4096 if kind == "size" else foreign.sizes[len(descriptors)])
            if kind != "unsealed":
                per_node.fcntl.fcntl(descriptor, per_node.fcntl.F_ADD_SEALS, 6)
            descriptors.append(descriptor)
        return descriptors

    return received


@pytest.mark.parametrize("kind", ["mode", "size", "unsealed", "bytes"])
def test_what_the_first_rank_did_not_pass_is_never_read(urls, gets, job, monkeypatch, caplog, kind):
    chosen = per_node.OncePerNode._chosen

    def noted(self, offers, where):
        offer = chosen(self, offers, where)
        foreign.sizes = offer.sizes
        return offer

    monkeypatch.setattr(per_node.OncePerNode, "_chosen", noted)
    monkeypatch.setattr(per_node, "_received", foreign(kind))
    found = job(3, lambda rank, gather: opened(urls, 3, rank, OncePerNode(gather)))
    assert found == [opened(urls, 3, rank) for rank in range(3)]
    (line,) = [
        record.getMessage() for record in caplog.records if "read the index themselves" in record.getMessage()
    ]
    assert line.startswith("2 of the 3 ranks on ")
    assert ("other bytes than it announced" in line) == (kind == "bytes")


@pytest.mark.parametrize("fault", ["no memfd", "no room", "late", "foreign user", "half the room"])
def test_where_nothing_can_be_shared_ranks_read_it_themselves_and_one_line_says_why(
    urls, gets, job, monkeypatch, caplog, fault
):
    new, made = per_node._Memory.new.__func__, []

    def failing(cls, size):
        made.append(size)
        if fault == "no memfd":
            raise OSError(38, os.strerror(38))
        if fault == "no room" or (fault == "half the room" and len(made) > 2):
            raise OSError(28, os.strerror(28))
        return new(cls, size)

    def late(address, count):
        if rank_here() == 2:
            raise TimeoutError("timed out")
        return received(address, count)

    received = per_node._received
    caplog.set_level(logging.WARNING)
    if fault == "late":
        monkeypatch.setattr(per_node, "_received", late)
    elif fault == "foreign user":
        monkeypatch.setattr(per_node, "_peer", lambda connection: os.getuid() + 1)
    else:
        monkeypatch.setattr(per_node._Memory, "new", classmethod(failing))
    found = job(3, lambda rank, gather: opened(urls, 3, rank, OncePerNode(gather)))
    expected = {"late": 2}.get(fault, 3)
    assert gets == {url: expected for url in urls}
    assert found == [opened(urls, 3, rank) for rank in range(3)]
    (line,) = [
        record.getMessage() for record in caplog.records if "read the index themselves" in record.getMessage()
    ]
    why = {"no memfd": "Function not implemented", "late": "timed out", "foreign user": "another user"}
    assert why.get(fault, "No space left on device") in line
    assert line.startswith("1 of the 3 ranks on " if fault == "late" else "2 of the 3 ranks on ")


def test_an_error_of_any_node_is_raised_by_every_rank(urls, job, tmp_path):
    for hosts in (1, 2):
        found = job(4, in_job([*urls, str(tmp_path / "nowhere")]), on=hosts)
        assert {type(error) for error in found} == {NoDataset} and len({str(error) for error in found}) == 1
        found = job(4, in_job(urls, fraction=1e-9), on=hosts)
        assert {str(error) for error in found} == {str(found[0])} and "stream.fraction" in str(found[0])


def test_a_dataset_that_changes_while_nodes_open_it_ends_the_job(urls, job, monkeypatch):
    read = FolderStore.read

    def changing(self, name, parse):
        other = FolderStore(self.root.parent / "two") if rank_here() == 1 else self
        return read(other, name, parse)

    monkeypatch.setattr(FolderStore, "read", changing)
    found = job(4, in_job(urls[:1]), on=2)
    assert {type(error) for error in found} == {DatasetError}
    assert "different versions" in str(found[0]) and urls[0] in str(found[0])
