"""Scores of segments, each beside another formulation: sets of frames, all assignments, clips one by one."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from factories.properties import many
from hypothesis import strategies as st

from sage_scale.segmentation.scores import (
    COUNTS,
    OVERLAPS,
    TOLERANCES,
    bootstrap_intervals,
    clip_counts,
    evenly_spaced,
    matched_segments,
    matches,
    overlap_table,
    scores,
)

TOTAL = 14
Spans = list[tuple[int, int]]


@st.composite
def disjoint(draw: st.DrawFn) -> Spans:
    """Sorted segments that touch or do not, of a clip of TOTAL frames."""
    cuts = sorted(draw(st.sets(st.integers(0, TOTAL), max_size=8)))
    return [pair for pair in itertools.pairwise(cuts) if draw(st.booleans())]


overlapping = st.lists(
    st.tuples(st.integers(0, TOTAL - 1), st.integers(1, TOTAL)).filter(lambda span: span[0] < span[1]),
    max_size=5,
)


def counted(predicted: Spans, gold: Spans) -> dict[str, float]:
    return dict(zip(COUNTS, clip_counts(np.array(predicted), np.array(gold), TOTAL).tolist(), strict=True))


def score(predicted: Spans, gold: Spans) -> dict[str, float]:
    counts = clip_counts(np.array(predicted), np.array(gold), TOTAL)
    return {name: float(value) for name, value in scores(counts, 25.0).items()}


def most_pairs(allowed: list[list[bool]]) -> int:
    """The largest number of allowed pairs, by trying every way to give rows a column or none."""
    columns = len(allowed[0]) if allowed else 0
    best = 0
    for choice in itertools.product(range(-1, columns), repeat=len(allowed)):
        used = [column for column in choice if column >= 0]
        if len(set(used)) == len(used) and all(
            column < 0 or allowed[row][column] for row, column in enumerate(choice)
        ):
            best = max(best, len(used))
    return best


def overlap(a: tuple[int, int], b: tuple[int, int]) -> Fraction:
    left, right = set(range(*a)), set(range(*b))
    return Fraction(len(left & right), len(left | right))


@many(disjoint(), overlapping)
def test_segments_match_as_the_best_of_all_assignments(predicted, gold):
    predicted = predicted[:4]
    counts = counted(predicted, gold)
    for least in OVERLAPS:
        allowed = [[overlap(a, b) >= Fraction(least) for b in gold] for a in predicted]
        assert counts[f"segments_{round(100 * least)}"] == most_pairs(allowed)


@many(st.lists(st.lists(st.sampled_from([0.0, 0.3, 0.6, 1.0]), min_size=4, max_size=4), max_size=4))
def test_any_table_of_overlaps_is_matched_with_most_pairs(table):
    pairs = matched_segments(np.array(table).reshape(-1, 4), 0.5)
    assert len({row for row, _ in pairs}) == len({column for _, column in pairs}) == len(pairs)
    assert all(table[row][column] >= 0.5 for row, column in pairs)
    assert len(pairs) == most_pairs([[value >= 0.5 for value in row] for row in table])


@many(disjoint(), overlapping)
def test_frames_are_scored_as_two_classes(predicted, gold):
    """The confusion of two sets of frames, counted frame by frame."""
    ours = {frame for span in predicted for frame in range(*span)}
    theirs = {frame for span in gold for frame in range(*span)}
    both = []
    for mine, their in ((ours, theirs), (set(range(TOTAL)) - ours, set(range(TOTAL)) - theirs)):
        precision = len(mine & their) / len(mine) if mine else 0.0
        recall = len(mine & their) / len(their) if their else 0.0
        both.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    assert score(predicted, gold)["frame_macro_f1"] == pytest.approx(sum(both) / 2)


@many(disjoint(), overlapping)
def test_onsets_match_as_the_best_of_all_assignments(predicted, gold):
    counts = counted(predicted, gold)
    ours = sorted({start for start, _ in predicted if start})[:4]
    theirs = sorted({start for start, _ in gold if start})
    assert counts["gold_onsets"] == len(theirs)
    for tolerance in TOLERANCES:
        best = most_pairs([[abs(a - b) <= tolerance for b in theirs] for a in ours])
        assert matches(ours, theirs, tolerance) == best
        if len(ours) == counts["predicted_onsets"]:
            assert counts[f"onsets_{tolerance}"] == best


@many(disjoint())
def test_an_annotation_scores_itself_perfectly(gold):
    found = score(gold, gold)
    if gold:
        assert found["segment_f1_75"] == found["ratio"] == 1 and found["boundary_error_ms"] == 0
    if any(start for start, _ in gold):
        assert found["onset_f1_1"] == 1
    assert found["frame_macro_f1"] == (1 if 0 < sum(end - start for start, end in gold) < TOTAL else 0.5)


def test_boundaries_of_matched_segments_are_compared_in_milliseconds():
    """(1 + 0) and (0 + 2) frames off at 25 frames a second; the third pair overlaps by less than a half."""
    found = score([(0, 5), (6, 10), (11, 14)], [(1, 5), (6, 8), (13, 14)])
    assert found["boundary_error_ms"] == pytest.approx(40 * 3 / 4)


def test_annotation_between_frames_counts_by_its_own_times():
    """People's times are milliseconds: overlaps take them as they are, frames and onsets the nearest frame."""
    counts = dict(zip(COUNTS, clip_counts(np.array([[2, 4]]), np.array([[1.6, 4.4], [5.1, 5.3]]), 8)))
    assert counts["segments_50"] == 1 and counts["segments_75"] == 0  # 2 of 2.8 frames
    assert counts["gold_frames"] == 3 and counts["gold_onsets"] == 2  # the short one is a frame long
    assert overlap_table(np.array([[2, 4]]), np.array([[1.6, 4.4]])) == pytest.approx(np.array([[2 / 2.8]]))


@many(st.integers(0, 20), st.integers(1, 60))
def test_even_spacing_gives_equal_steps(count, total):
    spaced = evenly_spaced(count, total)
    assert len(spaced) == count and (np.diff(spaced) >= 0).all()
    assert np.abs(np.diff([0, *spaced, total]) - total / (count + 1)).max() <= 1


@many(st.lists(st.tuples(disjoint(), overlapping), min_size=1, max_size=4))
def test_scores_of_clips_are_those_of_one_long_clip(clips):
    """Micro averages: but for the first frames, the clips could stand one after the other, apart."""
    each = sum(clip_counts(np.array(a), np.array(b), TOTAL) for a, b in clips)
    apart = 4 * TOTAL
    joined = [
        [
            (start + apart * place, end + apart * place)
            for place, spans in enumerate(side)
            for start, end in spans
        ]
        for side in zip(*clips, strict=True)
    ]
    long = clip_counts(np.array(joined[0]), np.array(joined[1]), apart * len(clips))
    for name, one, other in zip(COUNTS, each, long, strict=True):
        if name not in ("frames",) and "onset" not in name:
            assert one == other, name


def test_intervals_are_those_of_resampled_clips_one_by_one():
    """The same percentiles as of a loop that draws clips with replacement, within the noise of drawing."""
    chance = np.random.default_rng(7)
    spans = [np.sort(chance.choice(40, (2, 8), replace=False), axis=1).reshape(2, 4, 2) for _ in range(30)]
    counts_CK = np.array([clip_counts(a, b, 40) for a, b in spans])
    drawn = [
        float(scores(counts_CK[chance.integers(0, 30, 30)].sum(0), 25.0)["frame_macro_f1"])
        for _ in range(2000)
    ]
    low, high = bootstrap_intervals(counts_CK, 25.0)["frame_macro_f1"]
    assert (low, high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.01)
    assert low < float(scores(counts_CK.sum(0), 25.0)["frame_macro_f1"]) < high


def test_intervals_repeat_and_narrow_with_the_number_of_clips():
    chance = np.random.default_rng(1)
    spans = [np.sort(chance.choice(40, (2, 8), replace=False), axis=1).reshape(2, 4, 2) for _ in range(160)]
    counts_CK = np.array([clip_counts(a, b, 40) for a, b in spans])
    few, again, all_ = (
        bootstrap_intervals(part, 25.0) for part in (counts_CK[:10], counts_CK[:10], counts_CK)
    )
    assert few == again
    widths = [found["frame_macro_f1"][1] - found["frame_macro_f1"][0] for found in (few, all_)]
    assert widths[0] > 2.5 * widths[1]  # by the square root of 16
    one = bootstrap_intervals(counts_CK[:1], 25.0)["frame_macro_f1"]
    assert one[0] == one[1]
