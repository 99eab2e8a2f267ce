"""Readers over a network: blocks and coalesced ranges, bytes damaged on the way, shards and servers that are away."""

import contextlib
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from networks import Network, read

from sage_scale.cli.main import run
from sage_scale.errors import StorageError
from sage_scale.storage import open_store
from sage_scale.streaming import open_stream
from sage_scale.streaming.object_reader import ObjectReader, coalesce
from sage_scale.streaming.order import cut_blocks
from sage_scale.streaming.prefetch import ReadPlan
from sage_scale.streaming.readers import DamagedSample, FileReader


@pytest.fixture
def catalog(features_dataset):
    url, recipe, _ = features_dataset
    return open_stream(url, recipe, batch_size=4).dataset.catalog


@pytest.fixture
def wanted(catalog):
    reader = FileReader(catalog, [open_store(catalog.url).local_path(name) for name in catalog.shards])
    return read(reader, range(len(catalog)))[0]


@pytest.fixture
def plan(catalog, tmp_path):
    """Blocks of about four samples, with a cache that holds all of them."""
    table = catalog.samples
    cuts = cut_blocks(table.unit, table.length, 4 * int(table.length.max()))
    return ReadPlan(
        cuts=cuts, keep="disk", cache_dir=str(tmp_path / "cache"), cache_bytes=1 << 30, give_up_after_s=20
    )


def settle(reader):
    """Wait until what is under way lies in the cache."""
    end = time.monotonic() + 10
    while reader._blocks._requests and time.monotonic() < end:
        time.sleep(0.01)


def test_ranged_reads_give_the_bytes_of_local_ones_in_fewer_requests(catalog, wanted):
    network = Network(catalog.url)
    picked = np.random.default_rng(0).permutation(len(catalog)).tolist()
    found, retries = read(ObjectReader(catalog, network), picked)
    assert found == [wanted[sample] for sample in picked] and retries == 0
    assert len(network.requests) == 4  # one for each shard of the split, since all neighbours are asked for


def test_every_byte_is_fetched_once_and_never_again(catalog, wanted, plan):
    network = Network(catalog.url)
    reader = ObjectReader(catalog, network, plan)
    order = np.random.default_rng(1).permutation(len(catalog))
    for samples in np.array_split(order, 12):
        assert read(reader, samples.tolist()) == ([wanted[sample] for sample in samples], 0)
    blocks = len(plan.cuts) - 1
    assert len(network.requests) == len(set(network.requests)) == blocks < len(catalog) / 2
    spent = reader.counts()
    assert spent.requests == blocks and spent.fetched == sum(length for _, _, length in network.requests)
    assert spent.node_misses >= blocks and spent.node_hits > 0 and reader.counts().requests == 0
    settle(reader)
    # A second epoch, in another process as far as the reader knows, asks for nothing.
    again = ObjectReader(catalog, network, plan)
    assert read(again, order.tolist())[0] == [wanted[sample] for sample in order]
    assert len(network.requests) == blocks and again.counts().node_misses == 0


def test_blocks_in_memory_are_fetched_once_an_epoch_and_go_when_they_are_used(catalog, wanted, plan):
    network = Network(catalog.url)
    reader = ObjectReader(catalog, network, replace(plan, keep="memory", memory_bytes=10**9))
    for epoch in (1, 2):
        order = np.random.default_rng(epoch).permutation(len(catalog))
        for samples in np.array_split(order, 12):
            assert read(reader, samples.tolist()) == ([wanted[sample] for sample in samples], 0)
            settle(reader)
        assert len(network.requests) == epoch * (len(plan.cuts) - 1)
        assert reader._blocks._memory.size == 0
    reader = ObjectReader(catalog, network, replace(plan, keep="memory", memory_bytes=40_000))
    for samples in np.array_split(order, 12):  # too little room: blocks are fetched again, and none is wrong
        assert read(reader, samples.tolist()) == ([wanted[sample] for sample in samples], 0)
        assert reader._blocks._memory.size <= 40_000
    assert not os.path.exists(plan.cache_dir)


def test_what_is_named_ahead_is_there_before_it_is_needed(catalog, wanted, plan):
    network = Network(catalog.url)
    network.slow = dict.fromkeys(range(100), 0.1)
    reader = ObjectReader(catalog, network, plan)
    reader.prefetch(plan.cuts[:-1])
    settle(reader)
    asked = len(network.requests)
    assert read(reader, range(len(catalog)))[0] == wanted
    assert len(network.requests) == asked == len(plan.cuts) - 1
    assert 1 < network.most_under_way <= 16


def test_a_read_that_is_given_up_releases_its_blocks_wherever_it_is_collected(catalog, plan):
    reader = ObjectReader(catalog, Network(catalog.url), replace(plan, keep="memory", memory_bytes=10**9))
    reads = reader.read(range(5))
    next(reads)
    with reader._blocks._lock, reader._blocks._memory._lock:
        del reads  # as garbage collection may, in the midst of a call
    assert read(reader, range(5))[1] == 0


def test_a_cold_start_does_not_wait_for_all_blocks(catalog, wanted, plan, monkeypatch):
    monkeypatch.setattr("sage_scale.streaming.object_reader.COALESCE_GAP", 0)
    monkeypatch.setattr("sage_scale.streaming.blocks.COLD_BYTES", 3 * int(catalog.samples.length.max()))
    network = Network(catalog.url)
    reader = ObjectReader(catalog, network, plan)
    first = plan.cuts[:-1].tolist()
    assert read(reader, first)[0] == [wanted[sample] for sample in first]
    lengths = catalog.samples.length
    assert sum(length for _, _, length in network.requests) < 1.1 * sum(lengths[first])
    for _ in range(20):  # but that is an exception: soon blocks are waited for
        read(reader, first)
    assert reader.counts().fetched > lengths.sum()


def test_a_byte_flipped_on_the_way_is_fetched_again(catalog, wanted, plan):
    for how in (None, plan, replace(plan, keep="memory", memory_bytes=10**9)):
        network = Network(catalog.url, flip_every=3)
        found, retries = read(ObjectReader(catalog, network, how), range(39))
        assert found == wanted and retries > 0


def test_bytes_that_stay_damaged_are_refused(catalog, plan):
    for how in (None, plan):
        found, _ = read(ObjectReader(catalog, Network(catalog.url, flip_every=1), how), [5])
        assert isinstance(found[0], DamagedSample) and catalog.key(5) in str(found[0])


def test_a_damaged_file_of_the_cache_is_dropped_and_fetched_again(catalog, wanted, plan):
    network = Network(catalog.url)
    reader = ObjectReader(catalog, network, plan)
    assert read(reader, range(39))[0] == wanted
    files = sorted(os.scandir(reader._blocks._disk._blocks), key=lambda entry: entry.name)
    with open(files[0].path, "r+b") as file:  # the disk's fault
        file.write(b"?" * 600)
    os.truncate(files[1].path, 5)  # the file system's after a power cut
    found, retries = read(reader, range(39))
    assert found == wanted and retries >= 1
    before = len(network.requests)
    assert read(reader, range(39)) == (wanted, 0) and read(reader, range(39)) == (wanted, 0)
    assert len(network.requests) <= before + 1


def test_a_cache_that_holds_too_little_is_never_wrong(catalog, wanted, plan):
    small = replace(plan, cache_bytes=int(3 * catalog.samples.length.max() * 4))
    reader = ObjectReader(catalog, Network(catalog.url), small)
    rng = np.random.default_rng(2)
    for _ in range(15):
        samples = rng.permutation(39)[:13].tolist()
        assert read(reader, samples) == ([wanted[sample] for sample in samples], 0)
        assert bytes_in(reader._blocks._disk._blocks) <= small.cache_bytes


def bytes_in(folder):
    """Bytes of the files of a folder; one that is evicted meanwhile has none."""
    total = 0
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            total += entry.stat().st_size
    return total


def test_a_shard_that_is_missing_or_cut_off_is_named(catalog, plan, tmp_path):
    for name in ("dataset.json", "index.json", *catalog.shards):
        (tmp_path / name).write_bytes(open_store(catalog.url).get(name))
    table = catalog.samples
    last = int(np.flatnonzero(table.unit == table.unit[-1])[-1])
    os.truncate(tmp_path / catalog.shard(last), int(table.offset[last]) + 700)
    (tmp_path / catalog.shard(0)).unlink()
    for how in (None, plan):
        found, _ = read(ObjectReader(catalog, Network(tmp_path), how), [0, last, last - 1])
        assert isinstance(found[0], DamagedSample) and "missing" in str(found[0])
        assert isinstance(found[1], DamagedSample) and "cut off" in str(found[1])
        assert isinstance(found[2], bytes)


def test_a_server_that_is_away_is_no_damage_and_ends_in_time(catalog, plan):
    for how in (ReadPlan(give_up_after_s=0.7), replace(plan, give_up_after_s=0.7)):
        network = Network(catalog.url, down=True)
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"away; given up after 0\.7 s \(stream\.give_up_after_s\)"):
            read(ObjectReader(catalog, network, how), [5])
        assert 0.6 < time.monotonic() - began < 3
        assert 2 <= len(network.requests) <= 12  # it was asked again, and was left some peace


def test_neighbours_share_a_request_and_all_are_covered():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(1, 30))
        shard, length = rng.integers(0, 3, n), rng.integers(1, 50, n)
        offset = rng.integers(0, 1000, n)
        spans = coalesce(shard, offset, length, gap=10, limit=200)
        assert sorted(member for span in spans for member in span.members) == list(range(n))
        for span in spans:
            assert span.end - span.begin <= 200
            for member in span.members:
                assert shard[member] == span.shard
                assert span.begin <= offset[member] and offset[member] + length[member] <= span.end
    assert len(coalesce(np.zeros(4, int), np.array([0, 60, 10, 131]), np.full(4, 50), 10, 200)) == 2


@pytest.mark.parametrize("kind", ["features_dataset", "frames_dataset"])
def test_a_pipe_or_a_device_in_the_place_of_a_shard_is_named_at_once(kind, request, tmp_path):
    url, recipe, _ = request.getfixturevalue(kind)
    for number, what in enumerate(("a FIFO", "a character device")):
        copy = tmp_path / str(number)
        shutil.copytree(url, copy)
        tar = copy / "000000.tar"
        tar.unlink()
        os.mkfifo(tar) if what == "a FIFO" else tar.symlink_to("/dev/zero")
        with pytest.raises(StorageError, match=what):
            list(open_stream(copy, recipe, batch_size=4, epochs=1))
        for verb in (
            ["shards", "verify"],
            ["shards", "index"],
            ["shards", "ls", "--samples"],
            ["shards", "repair"],
        ):
            before = time.monotonic()
            assert run([*verb[:2], str(copy), *verb[2:]]) in (0, 1, 4) and time.monotonic() - before < 10
