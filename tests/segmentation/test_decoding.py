"""Decoders of probabilities: the published ones against their definition written out, and properties of all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.config import from_mapping
from sage_scale.errors import RecipeError
from sage_scale.segmentation import decoding
from sage_scale.segmentation.decoding import DECODERS, averaged_windows, likeliest, peaks, runs, thresholds
from sage_scale.segmentation.rules import (
    B,
    I,
    O,
    decode_oib,
    labels_to_segments,
    minimum_length,
    parse_letters,
    plain_rule,
    sage_rule,
    split_long,
    trim_rests,
)


@st.composite
def probabilities(draw, most: int = 80) -> np.ndarray:
    """Rows of O, I, B: smooth as a network's, or each frame for itself."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    total, smooth = draw(st.integers(1, most)), draw(st.integers(1, 9))
    scores = rng.normal(0, draw(st.floats(0.1, 4)), (total + smooth - 1, 3))
    scores = np.stack([np.convolve(column, np.ones(smooth) / smooth, "valid") for column in scores.T], 1)
    p = np.exp(scores * np.sqrt(smooth))
    return (p / p.sum(1, keepdims=True)).astype(np.float32)


def signs(labels: np.ndarray) -> list[tuple[int, int]]:
    """[first, end) of each sign: B, then I."""
    begins = np.flatnonzero(labels == B).tolist()
    ends = [begin + 1 + int(np.argmax(np.append(labels[begin + 1 :], O) != I)) for begin in begins]
    return list(zip(begins, ends))


@pytest.mark.parametrize("name", DECODERS)
@settings(deadline=None)
@given(p=probabilities(), fps=st.sampled_from([25.0, 29.97, 50.0]))
def test_labels_of_any_decoder_are_signs_that_begin_with_b(name, p, fps) -> None:
    labels = DECODERS[name](p, fps, 0.4, 0.16)
    assert labels.dtype == np.int8 and labels.shape == (len(p),)
    found = signs(labels)
    assert all(end <= following for (_, end), (following, _) in itertools.pairwise(found))
    covered = np.zeros(len(p), bool)
    for begin, end in found:
        covered[begin:end] = True
    if name != "hands-on":  # the paper's decoder leaves short runs of I without a B
        assert (covered == (labels != O)).all()


def published_2023(p: np.ndarray, begin: float, outside: float) -> list[tuple[int, int]]:
    """The state machine in the words of the published one, with whole percents and the classes by name."""
    found: list[tuple[int, int]] = []
    percent = np.round(p.astype(np.float64), 2) * 100
    start, may_restart = -1, False
    for frame in range(len(p)):
        p_o, p_b = percent[frame, O], percent[frame, B]
        if start < 0:
            start, may_restart = (frame, False) if p_b > 100 * begin else (-1, False)
        elif may_restart and (p_b > 100 * begin or p_o > 100 * outside):
            found.append((start, frame))
            start, may_restart = (-1 if p_o > 100 * outside else frame), False
        elif p_b < 100 * begin:
            may_restart = True
    return [*found, (start, len(p))] if start >= 0 else found


@settings(deadline=None)
@given(p=probabilities(), begin=st.sampled_from([0.35, 0.5, 0.6]))
def test_thresholds_are_the_published_state_machine(p, begin) -> None:
    labels = thresholds(p, begin)
    if (np.round(p[:, B].astype(np.float64), 2) >= begin).any():
        assert signs(labels) == published_2023(p, begin, 0.5)
    else:
        inside = np.round(p[:, I].astype(np.float64), 2) > 0.5
        assert ((labels != O) == inside).all()


@settings(deadline=None)
@given(p=probabilities())
def test_runs_merge_touching_signs_and_drop_those_under_three_frames(p) -> None:
    inside = "".join("x" if row.argmax() != O else "." for row in p)
    expected, start = [], 0
    for piece in inside.split("."):
        if len(piece) >= 3:
            expected.append((start, start + len(piece)))
        start += len(piece) + 1
    assert signs(runs(p)) == expected
    assert ((runs(p, least=1) != O) == (p.argmax(1) != O)).all()


@settings(deadline=None)
@given(p=probabilities())
def test_likeliest_loses_only_an_i_without_b_before_it(p) -> None:
    labels, best = likeliest(p), p.argmax(1)
    begun = False
    for label, kind, before in zip(labels, best, [O, *best[:-1]]):
        if kind == O:
            begun = False
        elif kind == B:
            begun = True
        expected = O if not begun else B if kind == B and before != B else I
        assert label == expected


@settings(deadline=None)
@given(p=probabilities(), gap_s=st.sampled_from([0.0, 0.16, 0.5]), threshold=st.sampled_from([0.3, 0.4, 0.6]))
def test_peaks_begin_signs_and_nothing_else_is_lost(p, gap_s, threshold) -> None:
    fps = 25.0
    labels = peaks(p, fps, threshold, gap_s)
    p = p.astype(np.float64)
    inside = p[:, O] < 0.5
    assert not (labels[~inside] != O).any()
    begins = np.flatnonzero(labels == B)
    top = [
        frame
        for frame in begins.tolist()
        if 0 < frame < len(p) - 1
        and p[frame - 1, B] <= p[frame, B] > p[frame + 1, B]
        and p[frame, B] >= threshold
    ]
    first_frames = np.flatnonzero(inside & ~np.concatenate([[False], inside[:-1]]))
    apart = [frame for frame in top if frame not in first_frames]  # those may begin a run without a peak
    assert (np.diff(apart) >= gap_s * fps - 0.5).all()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]])))
    for start, end in edges.reshape(-1, 2).tolist():
        run = labels[start:end]
        first = int(np.argmax(run == B)) if (run == B).any() else end - start
        assert not run[:first].any() and (run[first:] != O).all()
        if first > 0:  # waits for a peak, or is one frame
            assert start + first in top or end - start == 1
        elif start not in top:
            assert (run[1:] == I).all() and end - start >= 2


def test_peaks_lie_on_the_top_of_a_broad_bump() -> None:
    bump = np.exp(-0.5 * ((np.arange(40) - 20) / 4) ** 2) * 0.9
    p = np.stack([0.05 + 0 * bump, 0.95 - bump, bump], 1)
    assert np.flatnonzero(peaks(p, 25.0) == B).tolist() == [20]
    assert np.flatnonzero(thresholds(p) == B).tolist() == [17]


LETTERS = st.text("OIB", min_size=1, max_size=80)


@settings(deadline=None)
@given(text=LETTERS)
def test_sage_unhalved_only_leaves_the_halving_out(text) -> None:
    labels = parse_letters(text)
    halved, whole = labels_to_segments(labels), labels_to_segments(labels, "sage-unhalved")
    assert halved.tolist() == [list(part) for part in split_long(whole.tolist(), 10)]
    assert (whole[1:, 0] >= whole[:-1, 1]).all()


@settings(deadline=None)
@given(text=LETTERS, rule=st.sampled_from(["sage", "sage-unhalved", "plain"]))
def test_trimmed_rests_are_all_that_goes(text, rule) -> None:
    labels = parse_letters(text)
    kept = labels_to_segments(labels, rule)
    trimmed = labels_to_segments(labels, rule, rests=False)
    assert (trimmed[:, 0] < trimmed[:, 1]).all() and (trimmed[1:, 0] >= trimmed[:-1, 1]).all()
    before, after = (
        {frame for start, end in some.tolist() for frame in range(start, end)} for some in (kept, trimmed)
    )
    signed = {frame for frame in before if labels[frame] != O}
    if signed:
        assert signed <= after <= before
        assert all(labels[start] != O and labels[end - 1] != O for start, end in trimmed.tolist())
    else:
        assert trimmed.tolist() == kept.tolist()


def test_segments_by_length() -> None:
    assert minimum_length([(0, 3), (3, 7)], 4) == [(3, 7)]
    assert split_long([(0, 3), (3, 14)], 5) == [(0, 3), (3, 8), (8, 11), (11, 14)]
    assert trim_rests([(0, 4), (4, 6)], parse_letters("OBIOOO")) == [(1, 3)]
    assert sage_rule(parse_letters("BIIII" * 3), 4, 10) == [(0, 5), (5, 10), (10, 15)]
    assert plain_rule(parse_letters("BIOBII"), 4, 10) == [(0, 3), (3, 6)]


@settings(deadline=None)
@given(total=st.integers(1, 300), window=st.integers(8, 64), shift=st.floats(-1, 1))
def test_windows_of_one_function_average_to_it(total, window, shift) -> None:
    """What does not depend on the window comes out as it was; what does is a mean with most weight in the middle."""
    values = np.random.default_rng(total).normal(size=(total, 3))
    seen: list[tuple[int, int]] = []

    def predict(start: int, end: int) -> np.ndarray:
        seen.append((start, end))
        return values[start:end] + shift * (len(seen) % 2)

    mean = averaged_windows(predict, total, window, step=max(1, window // 2))
    assert max(end - start for start, end in seen) <= window
    assert (mean - values >= min(0, shift) - 1e-9).all() and (mean - values <= max(0, shift) + 1e-9).all()


def test_the_hands_on_decoder_is_one_of_them() -> None:
    p = np.eye(3)[parse_letters("OIIIBBIO").astype(int)]
    assert DECODERS["hands-on"](p, 25.0, 0.4, 0.16).tolist() == decode_oib(p).tolist()
    assert set(DECODERS) | {"own"} == set(decoding_choices())


def decoding_choices() -> tuple[str, ...]:
    from typing import get_args, get_type_hints

    from sage_scale.config import Segmentation

    return get_args(get_type_hints(Segmentation)["decoding"])


def test_keys_of_decoding_are_checked() -> None:
    with pytest.raises(RecipeError, match="decoding_threshold"):
        from_mapping({"segmentation": {"decoding_threshold": 1.5}})
    with pytest.raises(RecipeError, match="decoding_gap_s"):
        from_mapping({"segmentation": {"decoding_gap_s": -0.1}})
    plain = from_mapping({"name": "x"})
    spelt = {"decoding": "own", "decoding_gap_s": decoding.GAP_S, "decoding_threshold": decoding.PEAK}
    same = from_mapping({"name": "x", "segmentation": {**spelt, "trim_rests": False, "weights": ""}})
    assert plain.dataset_fingerprint() == same.dataset_fingerprint()
