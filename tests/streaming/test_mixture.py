"""Mixtures: shares, sources that neither lose nor double a sample, independence of the layout."""

import numpy as np
import pytest
from factories.properties import many
from hypothesis import strategies as st

from sage_scale.errors import UsageError
from sage_scale.streaming.mixture import Mixture, quotas, schedule, temperature_weights
from sage_scale.streaming.order import dataset_order

weights = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


def source(samples, number, lanes=4):
    return dataset_order(
        np.arange(samples) // 5,
        np.full(samples, 10),
        lanes=lanes,
        window=6,
        block_bytes=50,
        seed=3,
        source=number,
    )


@many(weights, st.integers(1, 500))
def test_quotas_are_the_largest_remainders(weights, length):
    shares = quotas(weights, length)
    exact = np.array(weights) / sum(weights) * length
    assert shares.sum() == length
    assert np.all(np.abs(shares - exact) < 1 + 1e-9)


@many(weights, st.integers(1, 300))
def test_any_stretch_of_the_epoch_holds_its_share(weights, length):
    shares = quotas(weights, length)
    turns = schedule(shares)
    assert np.array_equal(np.bincount(turns, minlength=len(shares)), shares)
    for number, share in enumerate(shares):
        drift = np.cumsum(turns == number) - share / length * np.arange(1, length + 1)
        assert np.abs(drift).max() <= len(weights)


def test_the_nth_draw_of_a_source_is_position_n_of_its_own_epochs():
    sizes = (7, 40, 23)
    orders = tuple(source(size, number) for number, size in enumerate(sizes))
    mixture = Mixture(orders=orders, weights=(1.0, 1.0, 2.0), length=30)
    drawn = np.concatenate([mixture.epoch(epoch)[0] for epoch in range(5)])
    offset = 0
    for size, order in zip(sizes, orders):
        own = drawn[(drawn >= offset) & (drawn < offset + size)] - offset
        alone = np.concatenate([order.epoch(epoch) for epoch in range(len(own) // size + 1)])
        assert own.tolist() == alone[: len(own)].tolist()
        offset += size


def test_a_draw_belongs_to_the_lane_of_its_source():
    orders = (source(9, 0), source(31, 1))
    mixture = Mixture(orders=orders, weights=(1.0, 3.0), length=24)
    lane_of = [dict(zip(order.epoch(0).tolist(), np.arange(order.samples) % 4)) for order in orders]
    samples, lanes = mixture.epoch(0)
    for sample, lane in zip(samples.tolist(), lanes.tolist()):
        assert lane == (lane_of[0][sample] if sample < 9 else lane_of[1][sample - 9])


def test_one_source_alone_is_its_own_order():
    order = source(17, 0)
    samples, lanes = Mixture(orders=(order,), weights=(1.0,), length=17).epoch(2)
    assert np.array_equal(samples, order.epoch(2)) and np.array_equal(lanes, np.arange(17) % 4)


def test_temperature_one_is_proportional_and_a_high_one_uniform():
    assert temperature_weights([1, 3], 1.0).tolist() == [0.25, 0.75]
    assert np.allclose(temperature_weights([1, 1000], 1e6), 0.5, atol=1e-4)
    assert np.allclose(temperature_weights([16, 81], 4.0), [0.4, 0.6])


def test_a_weight_of_zero_is_refused():
    with pytest.raises(UsageError, match="positive"):
        quotas([1.0, 0.0], 10)
