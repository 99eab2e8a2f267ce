"""Several datasets as one stream: whose turn it is at each position, as a pure function.

A mixture has a fixed epoch length E, whatever the sizes of its sources. Source s gets q_s of the E positions,
the largest-remainder share of its weight (Hamilton's method), at the times (j + 1/2) / q_s, so that any
stretch of the epoch holds nearly its share. The n-th draw of a source, counted from the start of training, is
position n mod S_s of its own epoch n div S_s: small sources repeat, large ones go on where the last epoch
stopped, and neither loses or doubles a sample. A draw belongs to the lane of its own source, so that a rank
keeps reading few lanes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sage_scale.errors import UsageError
from sage_scale.streaming.order import Integers, Order


def temperature_weights(sizes: Sequence[float], temperature: float) -> NDArray[np.float64]:
    """Weights proportional to size ** (1 / temperature): 1 is proportional, large ones near to uniform."""
    if temperature <= 0:
        raise UsageError(f"temperature={temperature}: must be positive")
    weights = np.asarray(sizes, dtype=np.float64) ** (1.0 / temperature)
    return weights / weights.sum()


def quotas(weights: Sequence[float], length: int) -> Integers:
    """Positions of each source among `length`: rounded down, the rest to the largest remainders."""
    weights_s = np.asarray(weights, dtype=np.float64)
    if not len(weights_s) or not np.all(weights_s > 0):
        raise UsageError(f"mixture weights {list(weights)}: each must be positive")
    exact = weights_s / math.fsum(weights) * length
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(whole - exact, kind="stable")
    whole[order[: length - int(whole.sum())]] += 1
    return whole


def schedule(quotas_s: Integers) -> Integers:
    """(E,) int64: the source of each position; source s occurs quotas_s[s] times, evenly spread."""
    sources = np.repeat(np.arange(len(quotas_s)), quotas_s)
    draws = np.concatenate([np.arange(quota) for quota in quotas_s.tolist()])
    return sources[np.lexsort((sources, (2 * draws + 1) / (2 * quotas_s[sources])))]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """The order of several datasets. One dataset alone is the mixture whose epoch is its own."""

    orders: tuple[Order, ...]
    """The order of each source."""
    weights: tuple[float, ...]
    """Share of each source, in any unit."""
    length: int
    """E, positions of an epoch."""

    @property
    def lanes(self) -> int:
        """Lanes of every source."""
        return self.orders[0].lanes

    def describe(self) -> str:
        """What makes this order another one, for the digest of a stream's state."""
        sources = " + ".join(
            f"{weight!r} of {order.describe()}" for weight, order in zip(self.weights, self.orders)
        )
        return f"{self.length} of ({sources})"

    def epoch(self, epoch: int) -> tuple[Integers, Integers]:
        """Sample (E,) and lane (E,) of each position; samples are numbered through all sources."""
        if len(self.orders) == 1 and self.length == self.orders[0].samples:
            return self.orders[0].epoch(epoch), np.arange(self.length) % self.lanes
        quotas_s = quotas(self.weights, self.length)
        source_P = schedule(quotas_s)
        sample_P, lane_P = np.empty(self.length, dtype=np.int64), np.empty(self.length, dtype=np.int64)
        offset = 0
        for number, order in enumerate(self.orders):
            draws = epoch * int(quotas_s[number]) + np.arange(quotas_s[number])
            places = np.flatnonzero(source_P == number)
            own_epochs, own_positions = np.divmod(draws, order.samples)
            for own in np.unique(own_epochs).tolist():
                chosen = own_epochs == own
                sample_P[places[chosen]] = offset + order.epoch(own)[own_positions[chosen]]
            lane_P[places] = own_positions % order.lanes
            offset += order.samples
        return sample_P, lane_P
