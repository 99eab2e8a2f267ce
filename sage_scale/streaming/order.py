"""The global order of samples: pure functions of (dataset, recipe, seed, epoch) and nothing else.

Ranks, workers, micro-batches and nodes are not arguments of the order; they only divide the reading.

1. *Blocks*: runs of consecutive samples of one shard, of at most `block_bytes` (`cut_blocks`), each read from an object
   store at once. A small dataset has smaller blocks, so that each lane still gets several (`block_limit`).
2. The blocks are permuted by (seed, epoch), concatenated, and cut into L *lanes*, equal to within one sample, the
   longer ones first.
3. Each lane is shuffled in a moving window of w samples: sample i of a lane gets the key i + w u, u uniform in [0, 1),
   and the lane is sorted by it. No sample moves by w positions or more, so a reader holds at most w of a lane. A lane
   of at most w samples is shuffled whole.
4. Position p of the epoch is sample p div L of lane p mod L. A step takes B positions in a row.
5. Rank r of W owns the lanes l with l mod W = r (`rank_part`); W > L is refused.

Random numbers are raw 64-bit words of Philox-4x64-10 (Salmon et al., 2011), key (seed, epoch), counter (_, purpose,
lane, source), in integer arithmetic with stable sorts: the same order on every platform and every numpy, and any lane
of any epoch is computed without the others. An epoch of 10^6 samples takes 0.1 s.

Shape letters: S samples of a dataset, K blocks, P positions of an epoch, B samples of a batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_scale.config import check_lanes
from sage_scale.errors import UsageError

Integers = NDArray[np.int64]
Column = NDArray[np.integer[Any]]
"""Integers of any size, such as a column of the index; sums of them take an int64."""

BLOCKS_PER_LANE = 4
"""A dataset is cut into at least this many blocks a lane (as far as samples allow), however small it is."""

PERMUTE_BLOCKS, SHUFFLE_LANE = 1, 2
"""Purposes of random words: no two draws of one order share a counter."""

_WORD = np.uint64((1 << 64) - 1)


def random_words(
    count: int, *, seed: int, epoch: int, purpose: int, lane: int = 0, source: int = 0
) -> NDArray[np.uint64]:
    """Returns `count` 64-bit words of Philox-4x64-10; the same arguments give the same words everywhere."""
    key = np.array([seed & int(_WORD), epoch], dtype=np.uint64)
    counter = np.array([0, purpose, lane, source], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def block_limit(total_bytes: int, lanes: int, block_bytes: int) -> int:
    """Returns the largest block in bytes: `block_bytes`, or less if a lane would get under `BLOCKS_PER_LANE` blocks."""
    return max(1, min(block_bytes, total_bytes // (BLOCKS_PER_LANE * lanes)))


def cut_blocks(shard_S: Column, bytes_S: Column, limit: int) -> Integers:
    """Returns (K + 1,) int64: block k is the samples [cuts[k], cuts[k + 1]).

    `shard_S` numbers each sample's shard (equal numbers in a row), `bytes_S` is its size. A block never
    crosses a shard, takes as many samples as fit into `limit` bytes, and has at least one.
    """
    samples = len(shard_S)
    if samples == 0:
        return np.zeros(1, dtype=np.int64)
    ends_S = np.cumsum(bytes_S, dtype=np.int64)
    starts_S = ends_S - bytes_S
    first = np.flatnonzero(np.r_[True, shard_S[1:] != shard_S[:-1]])
    last = np.r_[first[1:], samples]
    cuts = []
    while len(first):  # one round gives the next block of every shard
        cuts.append(first)
        after = np.searchsorted(ends_S, starts_S[first] + limit, side="right")
        first = np.maximum(after, first + 1)
        first, last = first[first < last], last[first < last]
    return np.append(np.sort(np.concatenate(cuts)), samples).astype(np.int64)


def lane_lengths(samples: int, lanes: int) -> Integers:
    """Returns (L,) int64: samples of each lane, equal to within one, longer first."""
    return samples // lanes + (np.arange(lanes) < samples % lanes).astype(np.int64)


def lanes_in_turn(length: int, lanes: int) -> Column:
    """Returns (length,): the lane of each position of an order of one source, in few bytes."""
    return np.resize(np.arange(lanes, dtype=np.min_scalar_type(lanes)), length)


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of one dataset: its blocks and the three recipe constants."""

    cuts: Integers
    """(K + 1,) block boundaries of `cut_blocks`."""
    lanes: int
    """L."""
    window: int
    """w, samples."""
    seed: int
    """Seed of the order."""
    source: int = 0
    """Number of the dataset in a mixture, so that equal datasets are not shuffled alike."""

    @property
    def samples(self) -> int:
        """S, and as many positions in an epoch."""
        return int(self.cuts[-1])

    def epoch(self, epoch: int) -> Integers:
        """Returns (S,) int64: the sample at each position of the epoch; each sample once."""
        order_P = np.empty(self.samples, dtype=np.int64)
        words = random_words(
            len(self.cuts) - 1, seed=self.seed, epoch=epoch, purpose=PERMUTE_BLOCKS, source=self.source
        )
        permuted = np.argsort(words, kind="stable")
        lengths_K = np.diff(self.cuts)[permuted]
        ends_K = np.cumsum(lengths_K)
        begins_K = ends_K - lengths_K
        shift_K = self.cuts[:-1][permuted] - begins_K
        begin = 0
        for lane, length in enumerate(lane_lengths(self.samples, self.lanes).tolist()):
            if (
                length
            ):  # lane by lane: the blocks of all lanes in their order would take another 16 bytes a sample
                end = begin + length
                first, last = np.searchsorted(ends_K, (begin, end - 1), side="right").tolist()
                own = slice(first, last + 1)
                inside = np.minimum(ends_K[own], end) - np.maximum(begins_K[own], begin)
                part = np.repeat(shift_K[own], inside) + np.arange(begin, end)
                order_P[lane :: self.lanes] = part[self._shuffle(length, epoch, lane)]
                begin = end
        return order_P

    def describe(self) -> str:
        """Returns the text that identifies this order, for the digest of a stream's state."""
        cuts = hashlib.sha256(self.cuts.astype("<i8").tobytes()).hexdigest()
        constants = f"seed={self.seed} lanes={self.lanes} window={self.window} source={self.source}"
        return f"order 1 {constants} cuts={cuts}"

    def _shuffle(self, length: int, epoch: int, lane: int) -> Integers:
        keys = random_words(
            length, seed=self.seed, epoch=epoch, purpose=SHUFFLE_LANE, lane=lane, source=self.source
        )
        if length > self.window:  # i + w u in fixed point with 32 fractional bits; w and i stay below 2^31
            keys = (np.arange(length, dtype=np.uint64) << np.uint64(32)) + np.uint64(self.window) * (
                keys >> np.uint64(32)
            )
        return np.argsort(keys, kind="stable")


def dataset_order(
    shard_S: Column,
    bytes_S: Column,
    *,
    lanes: int,
    window: int,
    block_bytes: int,
    seed: int,
    source: int = 0,
) -> Order:
    """Returns the order of a dataset whose samples lie in the given shards and have the given sizes in bytes."""
    if not 1 <= window < 1 << 31:
        raise UsageError(f"stream.window={window}: must be between 1 and 2^31 - 1")
    if lanes < 1:
        raise UsageError(f"stream.lanes={lanes}: must be at least 1")
    limit = block_limit(int(np.sum(bytes_S)), lanes, block_bytes)
    return Order(
        cuts=cut_blocks(shard_S, bytes_S, limit), lanes=lanes, window=window, seed=seed, source=source
    )


def check_world(rank: int, world: int, lanes: int) -> None:
    """Raises UsageError for a rank outside the world, and for more ranks than lanes."""
    if not 0 <= rank < world:
        raise UsageError(f"rank {rank} is not one of {world} ranks")
    check_lanes(world, lanes)


def rank_part(lane_P: Column, position: int, batch_size: int, rank: int, world: int) -> Integers:
    """Returns the positions of rank `rank` in the step that starts at `position`; may be of any size, also empty.

    `lane_P` is the lane that each position of the epoch belongs to.
    """
    end = min(position + batch_size, len(lane_P))
    return position + np.flatnonzero(lane_P[position:end] % world == rank)
