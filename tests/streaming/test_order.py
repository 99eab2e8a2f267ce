"""The global order: properties over random datasets, and its quality as a shuffle."""

from fractions import Fraction

import numpy as np
import pytest
from factories.properties import many
from hypothesis import strategies as st

from sage_scale.errors import UsageError
from sage_scale.streaming.order import (
    PERMUTE_BLOCKS,
    block_limit,
    check_world,
    cut_blocks,
    dataset_order,
    lane_lengths,
    random_words,
    rank_part,
)

shards = st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=30), max_size=12)


def columns(sizes):
    shard_S = np.repeat(np.arange(len(sizes)), [len(shard) for shard in sizes]).astype(np.int64)
    return shard_S, np.array([size for shard in sizes for size in shard], dtype=np.int64)


def make_order(sizes, lanes=8, window=16, seed=0, block_bytes=500):
    shard_S, bytes_S = columns(sizes)
    return dataset_order(shard_S, bytes_S, lanes=lanes, window=window, block_bytes=block_bytes, seed=seed)


@many(shards, st.integers(1, 900))
def test_blocks_are_the_greedy_runs_of_each_shard(sizes, limit):
    expected, start = [0], 0
    for shard in sizes:  # the definition, one sample after another
        room = 0
        for size in shard:
            if room and room + size > limit:
                expected.append(start)
                room = 0
            room += size
            start += 1
        expected.append(start)
    assert cut_blocks(*columns(sizes), limit).tolist() == expected


@many(shards, st.integers(1, 70), st.integers(1, 40), st.integers(0, 2**63), st.integers(0, 5))
def test_each_sample_once_an_epoch(sizes, lanes, window, seed, epoch):
    order = make_order(sizes, lanes, window, seed)
    assert sorted(order.epoch(epoch).tolist()) == list(range(sum(map(len, sizes))))


@many(st.integers(0, 500), st.integers(1, 70))
def test_lanes_are_equal_to_within_one_and_position_p_is_sample_p_div_L_of_lane_p_mod_L(samples, lanes):
    lengths = lane_lengths(samples, lanes)
    assert lengths.sum() == samples and lengths.max() - lengths.min() <= 1
    assert np.all(np.diff(lengths) <= 0)
    places = {(p % lanes, p // lanes) for p in range(samples)}
    assert places == {(lane, i) for lane, length in enumerate(lengths) for i in range(length)}


@many(shards, st.integers(1, 40), st.integers(0, 3))
def test_no_sample_moves_by_a_window_within_its_lane(sizes, window, epoch):
    lanes = 3
    order = make_order(sizes, lanes, window)
    moved = order.epoch(epoch)
    words = random_words(len(order.cuts) - 1, seed=order.seed, epoch=epoch, purpose=PERMUTE_BLOCKS)
    blocks = [
        np.arange(order.cuts[block], order.cuts[block + 1]) for block in np.argsort(words, kind="stable")
    ]
    sequence = np.concatenate([np.zeros(0, np.int64), *blocks])
    begin = 0
    for lane, length in enumerate(lane_lengths(order.samples, lanes)):
        place = {sample: i for i, sample in enumerate(sequence[begin : begin + length].tolist())}
        for i, sample in enumerate(moved[lane::lanes].tolist()):
            assert abs(place[sample] - i) < window
        begin += length


@many(shards, st.integers(1, 40), st.integers(0, 400))
def test_the_ranks_partition_every_global_batch(sizes, batch_size, position):
    order = make_order(sizes)
    epoch = order.epoch(0)
    lane_P = np.arange(len(epoch)) % order.lanes
    position = min(position, len(epoch))
    whole = epoch[position : position + batch_size].tolist()
    for world in (1, 2, 3, 4, 7):
        parts = [rank_part(lane_P, position, batch_size, rank, world) for rank in range(world)]
        assert epoch[np.sort(np.concatenate(parts))].tolist() == whole
        for rank, part in enumerate(parts):
            assert all(lane_P[p] % world == rank for p in part)


def test_epochs_and_seeds_differ_and_repeat():
    sizes = [[10] * 25] * 8
    first = make_order(sizes).epoch(0)
    assert np.array_equal(first, make_order(sizes).epoch(0))
    for other in (make_order(sizes).epoch(1), make_order(sizes, seed=1).epoch(0)):
        assert np.mean(first == other) < 0.05  # a random permutation of 200 agrees in one place on average


def test_the_random_words_are_philox_4x64_10():
    # Philox by its definition (Salmon et al. 2011, section 3.3); numpy steps the counter first.
    multipliers, weyl, mask = (
        (0xD2E7470EE14C6C93, 0xCA5A826395121157),
        (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B),
        2**64 - 1,
    )
    c, k = [1, 2, 3, 4], [11, 5]
    for _ in range(10):
        high, low = zip(*(divmod(m * x, 2**64) for m, x in zip(multipliers, (c[0], c[2]))))
        c = [high[1] ^ c[1] ^ k[0], low[1], high[0] ^ c[3] ^ k[1], low[0]]
        k = [(a + b) & mask for a, b in zip(k, weyl)]
    assert random_words(4, seed=11, epoch=5, purpose=2, lane=3, source=4).tolist() == c


@many(shards, st.integers(1, 9), st.integers(1, 40), st.integers(0, 9), st.integers(0, 3))
def test_the_order_is_the_construction_of_its_docstring(sizes, lanes, window, seed, epoch):
    order = make_order(sizes, lanes, window, seed)
    blocks = [list(range(a, b)) for a, b in zip(order.cuts[:-1].tolist(), order.cuts[1:].tolist())]
    words = random_words(len(blocks), seed=seed, epoch=epoch, purpose=1).tolist()
    sequence = [sample for _, block in sorted(zip(words, blocks)) for sample in block]
    epoch_P = [-1] * len(sequence)
    for lane in range(lanes):
        length = len(range(lane, len(epoch_P), lanes))
        part, sequence = sequence[:length], sequence[length:]
        draws = random_words(length, seed=seed, epoch=epoch, purpose=2, lane=lane).tolist()
        keys = [i + window * Fraction(u >> 32, 2**32) if length > window else u for i, u in enumerate(draws)]
        for j, i in enumerate(sorted(range(length), key=keys.__getitem__)):
            epoch_P[j * lanes + lane] = part[i]
    assert order.epoch(epoch).tolist() == epoch_P


@pytest.mark.parametrize("samples", [480, 4096, 65536])
def test_shuffling_is_close_to_a_full_shuffle(samples):
    """64 KiB samples, 64 lanes, window 256: the defaults of the recipe."""
    shard_S = np.arange(samples) // 256
    bytes_S = np.full(samples, 1 << 16)
    order = dataset_order(shard_S, bytes_S, lanes=64, window=256, block_bytes=8 << 20, seed=0)
    epoch = order.epoch(0)
    # Spearman's rank correlation of place in the dataset and place in the epoch: 0 in a full shuffle.
    assert abs(np.corrcoef(epoch, np.arange(samples))[0, 1]) < 4 / np.sqrt(len(order.cuts))
    # Distance of neighbours in the dataset: a full shuffle gives a third of the samples.
    assert abs(np.abs(np.diff(epoch)).mean() / (samples / 3) - 1) < 0.1
    # Pairs from one shard in a global batch of 64, against what a full shuffle would give by chance.
    batches = shard_S[epoch[: samples // 64 * 64]].reshape(-1, 64)
    same = np.mean([(np.bincount(b) ** 2).sum() - 64 for b in batches]) / (64 * 63)
    chance = ((np.bincount(shard_S) ** 2).sum() - samples) / (samples * (samples - 1))
    assert same < 1.35 * chance


def test_a_new_epoch_mixes_the_batches_anew():
    shard_S, bytes_S = np.arange(4096) // 256, np.full(4096, 1 << 16)
    order = dataset_order(shard_S, bytes_S, lanes=64, window=256, block_bytes=8 << 20, seed=0)
    batch_of = [np.empty(4096, dtype=int) for _ in range(2)]
    for epoch in range(2):
        batch_of[epoch][order.epoch(epoch)] = np.arange(4096) // 64
    together = batch_of[0][:, None] == batch_of[0][None]
    again = (batch_of[1][:, None] == batch_of[1][None])[together].mean()
    assert again < 2.5 * 64 / 4096 + 64 / 4096  # pairs of one batch meet again about as often as by chance


def test_more_ranks_than_lanes_are_refused():
    check_world(63, 64, 64)
    with pytest.raises(UsageError, match=r"stream\.lanes"):
        check_world(0, 65, 64)


def test_a_small_dataset_has_small_blocks():
    assert block_limit(1 << 40, 64, 8 << 20) == 8 << 20
    assert block_limit(64 * 4 * 1000, 64, 8 << 20) == 1000
    assert block_limit(0, 64, 8 << 20) == 1
