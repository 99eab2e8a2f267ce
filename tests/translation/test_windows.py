"""A recording is cut at its rests, whatever they are; without rests no window is longer than training's clips."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.translation.windows import Cutter, Limits, Window

LIMITS = Limits(fps=25.0, longest=150, shortest=20)


def cut(speeds: np.ndarray, limits: Limits = LIMITS) -> list[Window]:
    """All windows of a recording; the cutter must never need more than a window and its rests."""
    cutter, windows = Cutter(limits), []
    for speed in speeds.tolist():
        window = cutter.push(speed)
        windows += [window] if window else []
        assert cutter.count - cutter.first <= limits.longest + 6 * limits.pad
    return windows + cutter.finish()


def recording(pieces: list[tuple[int, int]], seed: int = 0) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Speeds of pieces of (rest, signing) frames and a last rest, and the intervals of signing."""
    rng, parts, intervals, at = np.random.default_rng(seed), [], [], 0
    for rest, signing in pieces:
        parts += [np.zeros(rest), rng.uniform(0.5, 3.0, signing)]
        intervals.append((at + rest, at + rest + signing))
        at += rest + signing
    return np.concatenate([*parts, np.zeros(20)]), intervals


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(14, 400), st.integers(30, 140)), min_size=1, max_size=8))
def test_each_stretch_of_signing_is_one_window(pieces):
    speeds, intervals = recording(pieces)
    windows = cut(speeds)
    assert len(windows) == len(intervals)
    for window, (start, end) in zip(windows, intervals):
        # The smoothing of the speed reaches three frames.
        assert abs(window.signing_start - start) <= 3 and abs(window.signing_end - end) <= 3
        assert window.start <= window.signing_start < window.signing_end <= window.end
        assert window.signing_start - window.start <= LIMITS.pad
        assert window.end - window.signing_end <= LIMITS.pad
    assert all(one.end <= other.start for one, other in itertools.pairwise(windows))


@given(
    st.lists(st.sampled_from([0.0, 0.02, 0.3, 1.0, 4.0]), max_size=600),
    st.integers(1, 4),
    st.integers(40, 150),
)
def test_windows_are_disjoint_bounded_and_on_the_grid(speeds, grid, longest):
    limits = dataclasses.replace(LIMITS, grid=grid, longest=longest)
    after = 0
    for window in cut(np.repeat(speeds, 3), limits):
        assert after <= window.start < window.end <= 3 * len(speeds)
        assert window.start % grid == 0
        assert window.end % grid == 0 or window.end == 3 * len(speeds)
        assert window.end - window.start <= longest + 2 * limits.pad + grid
        after = window.end


def test_without_a_pause_windows_end_at_the_stillest_moment():
    speeds = np.ones(1000)
    speeds[[120, 240]] = 0.4  # slow, but no rest
    windows = cut(speeds)
    assert [window.end for window in windows[:2]] == [120, 240]
    assert windows[-1].end == 1000
    assert all(one.end == other.start for one, other in itertools.pairwise(windows)), "nothing is left out"


def test_nothing_that_moves_gives_no_window():
    assert cut(np.zeros(5000)) == []
    assert cut(np.zeros(0)) == []


def test_a_short_sign_is_joined_with_the_next_unless_the_pause_is_long():
    joined, _ = recording([(20, 10), (12, 60)])
    assert len(cut(joined)) == 1
    apart, _ = recording([(20, 10), (40, 60)])
    assert len(cut(apart)) == 2


def test_a_slow_signer_after_a_long_rest_is_not_a_rest():
    """The threshold follows the signing of the recording, not its rests."""
    speeds, intervals = recording([(3000, 60), (30, 60)])
    assert len(cut(0.3 * speeds)) == len(intervals)
