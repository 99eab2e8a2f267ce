"""Looking ahead: every block is named in time, once, and the cache that is asked for is large enough."""

from collections import OrderedDict
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from factories.properties import many
from hypothesis import strategies as some

from sage_scale.streaming.order import dataset_order, rank_part
from sage_scale.streaming.prefetch import (
    MAX_PREFETCH_STEPS,
    ReadPlan,
    blocks_in_use,
    cut_at_gaps,
    host_share,
    with_prefetch,
)


@dataclass
class Step:
    epoch: int
    samples_B: np.ndarray
    prefetch_A: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def made_order(samples, shards, lanes, window, block, seed=0):
    rng = np.random.default_rng(seed)
    shard_S = np.sort(rng.integers(0, shards, samples))
    bytes_S = rng.integers(50, 150, samples)
    order = dataset_order(shard_S, bytes_S, lanes=lanes, window=window, block_bytes=block, seed=seed)
    return order, bytes_S


def steps_of(order, batch, rank, world, epochs=2):
    for epoch in range(epochs):
        sample_P = order.epoch(epoch)
        lane_P = np.arange(len(sample_P)) % order.lanes
        for position in range(0, len(sample_P), batch):
            yield Step(epoch, sample_P[rank_part(lane_P, position, batch, rank, world)])


@many(
    some.integers(1, 120),
    some.integers(1, 5),
    some.integers(1, 8),
    some.integers(1, 40),
    some.integers(1, 30),
    some.sampled_from([0, 500, 10**9]),
)
def test_each_block_is_named_once_an_epoch_before_it_is_needed(samples, shards, lanes, batch, block, horizon):
    order, bytes_S = made_order(samples, shards, lanes, 16, 100 * block)
    world = min(2, lanes)
    for rank in range(world):
        plain = list(steps_of(order, batch, rank, world))
        told = list(with_prefetch(iter(plain), order.cuts, bytes_S, horizon))
        assert len(told) == len(plain)
        named = []
        for before, after in zip(plain, told):
            assert np.array_equal(before.samples_B, after.samples_B)
            named += (np.searchsorted(order.cuts, after.prefetch_A, side="right") - 1).tolist()
            needed = np.searchsorted(order.cuts, after.samples_B, side="right") - 1
            assert set(needed.tolist()) <= set(named)
        of_epochs = [
            {
                int(block)
                for step in plain
                if step.epoch == epoch
                for block in np.searchsorted(order.cuts, step.samples_B, side="right") - 1
            }
            for epoch in (0, 1)
        ]
        assert len(named) == sum(map(len, of_epochs))


def test_the_look_ahead_reaches_as_far_as_its_bytes_and_no_farther():
    order, bytes_S = made_order(20_000, 20, 8, 64, 2_000)
    pulled = 0

    def counted():
        nonlocal pulled
        for step in steps_of(order, 8, 0, 1, epochs=100_000):  # endless, as training is
            pulled += 1
            yield step

    told = with_prefetch(counted(), order.cuts, bytes_S, 20_000)
    size_K = np.add.reduceat(bytes_S, order.cuts[:-1])
    reached, ahead = set(), 0
    for number in range(1, 500):
        step = next(told)
        assert number <= pulled <= number + MAX_PREFETCH_STEPS
        reached |= set((np.searchsorted(order.cuts, step.prefetch_A, side="right") - 1).tolist())
        reached -= set((np.searchsorted(order.cuts, step.samples_B, side="right") - 1).tolist())
        ahead = max(ahead, sum(int(size_K[block]) for block in reached))
    assert 20_000 <= ahead <= 20_000 + 8 * 2_000 + 64 * 100  # what one step more may name


@pytest.mark.parametrize("window", [16, 128])
def test_a_cache_of_the_blocks_in_use_fetches_every_byte_once(window):
    """Least-recently-used eviction, simulated over a real epoch. A block that two lanes share is two, hours apart."""
    order, bytes_S = made_order(40_000, 40, 16, window, 3_000)
    size_K = np.add.reduceat(bytes_S, order.cuts[:-1])
    block_P = np.searchsorted(order.cuts, order.epoch(0), side="right") - 1

    def fetched(limit):
        held, size, total = OrderedDict(), 0, 0
        for block in block_P.tolist():
            if block in held:
                held.move_to_end(block)
                continue
            held[block] = int(size_K[block])
            size, total = size + held[block], total + held[block]
            while size > limit:
                size -= held.popitem(last=False)[1]
        return total / int(bytes_S.sum())

    enough = blocks_in_use(order.cuts, bytes_S, lanes=16, window=window)
    assert enough < bytes_S.sum() / 4
    assert 1.0 <= fetched(enough) <= 1.0 + 15 * size_K.max() / bytes_S.sum()
    assert fetched(enough // 8) > 3


def test_blocks_are_cut_where_nothing_is_wanted_between():
    shard = np.array([0, 0, 0, 0, 1, 1, 1])
    offset = np.array([0, 10, 500, 510, 0, 10, 5])
    length = np.full(7, 10)
    cuts = cut_at_gaps(np.array([0, 4, 7]), shard, offset, length, gap=100)
    assert cuts.tolist() == [0, 2, 4, 6, 7]
    assert cut_at_gaps(np.array([0]), shard[:0], offset[:0], length[:0], gap=1).tolist() == [0]


def test_each_dataset_of_a_mixture_gets_its_own_blocks():
    reading = ReadPlan(cuts=np.array([0, 3, 5, 9]), cache_bytes=7)
    parts = [reading.part(0, 5), reading.part(5, 5), reading.part(5, 9)]
    assert [part.cuts.tolist() for part in parts] == [[0, 3, 5], [0], [0, 4]]
    assert all(part.cache_bytes == 7 for part in parts)
    assert replace(reading, cuts=None).part(2, 4).cuts is None


def test_a_host_counts_its_own_ranks(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    assert host_share(64) == 1.0
    monkeypatch.setenv("LOCAL_SIZE", "8")
    assert host_share(64) == 1 / 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert host_share(64) == 1 / 16 and host_share(2) == 1.0


def test_blocks_are_kept_where_there_is_room_for_them(features_dataset):
    """13 + 1 + 20 + 7 clips of some 4 kB on 2 lanes with a window of 2: about 160 kB, of which 40 kB are in use."""
    from factories.datasets import stream_recipe

    from sage_scale.streaming import open_evaluation, open_stream

    url = features_dataset[0]

    def reading(workers=0, world=1, **stream):
        settings = {"lanes": 2, "window": 2, "block_mb": 0.008, "cache_gb": 0.0, "memory_mb": 0, **stream}
        recipe = stream_recipe("features", **settings)
        return open_stream(url, recipe, batch_size=4, workers=workers, world=world).dataset.plan

    assert reading().keep == "nothing"
    assert reading(cache_gb=1.0).keep == reading(cache_gb=1.0, memory_mb=1).keep == "disk"
    larger = {"cache_gb": 0.0001}  # the dataset is larger than that, its blocks in use are not
    assert reading(**larger, memory_mb=1).keep == "memory"
    assert reading(**larger, memory_mb=1, workers=2).keep == reading(**larger).keep == "disk"
    assert 0 < reading(**larger).prefetch_bytes < 50_000
    assert reading(**larger, window=200).keep == reading(cache_gb=0.00001).keep == "nothing"
    evaluation = open_evaluation(url, stream_recipe("features", cache_gb=0.0), "dev", batch_size=4)
    assert evaluation.dataset.plan.keep == "memory"
