"""Captions and signing: the dynamic programme against all assignments, and known shifts undone."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_scale.corpora.alignment import Alignment, Caption, align, place, text_term

WEIGHTS = Alignment(reach_s=4.0)


@st.composite
def problems(draw):
    """A few pieces and captions at any times, and a text term for each caption and run."""
    at, pieces = 0.0, []
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 15)), max_size=5)):
        pieces.append((at + gap / 10, at + (gap + length) / 10))
        at = pieces[-1][1]
    rows = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(2, 40), st.integers(1, 30)), max_size=3))
    captions = [Caption(start_s=a / 10, end_s=(a + b) / 10, letters=n) for a, b, n in sorted(rows)]
    seed = draw(st.none() | st.integers(0, 9))
    rng = np.random.default_rng(seed)
    terms = None if seed is None else [-3 * rng.random((len(pieces),) * 2) for _ in captions]
    return captions, np.array(pieces).reshape(-1, 2), terms


def energy(caption, pieces, first, after, per_letter_s, weights) -> float:
    """E of the module's docstring, in plain numbers."""
    start, end = pieces[first][0], pieces[after - 1][1]
    if abs(start - caption.start_s) > weights.reach_s or abs(end - caption.end_s) > weights.reach_s:
        return -math.inf

    def pause(boundary: int) -> float:
        if boundary in (0, len(pieces)):
            return 1.0
        silences = [b[0] - a[1] for a, b in itertools.pairwise(pieces)]
        none = max(weights.least_pause_s, 1.5 * statistics.median(silences))
        return min(max((silences[boundary - 1] - none) / weights.whole_pause_s, 0.0), 1.0)

    wanted = math.sqrt((caption.end_s - caption.start_s) * max(caption.letters * per_letter_s, 0.1))
    moves = (start - caption.start_s) ** 2 + (end - caption.end_s) ** 2
    pauses = 2 - pause(first) - pause(after) + sum(map(pause, range(first + 1, after)))
    return (
        -moves / (2 * weights.spread_s**2)
        - math.log((end - start) / wanted) ** 2 / (2 * weights.length**2)
        - weights.pause * pauses
    )


def test_progress_is_told_caption_by_caption():
    captions = [Caption(start_s=3.0 * n, end_s=3.0 * n + 2, letters=10) for n in range(8)]
    pieces, shares = np.array([[3 * n + 0.5, 3 * n + 2.4] for n in range(8)]), list[float]()
    align(captions, pieces, Alignment(reach_s=9.0), progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) == 8 * (2 * 4 + 4)


def best_of_all(captions, pieces, terms, weights) -> float:
    """The largest sum over every assignment of disjoint runs in order, or none, to the captions."""
    per_letter_s = (
        float(np.median([(c.end_s - c.start_s) / c.letters for c in captions])) if captions else 0.0
    )
    runs = [None, *itertools.combinations(range(len(pieces) + 1), 2)]
    best = -math.inf
    for chosen in itertools.product(runs, repeat=len(captions)):
        taken = [run for run in chosen if run]
        if any(b[0] < a[1] for a, b in itertools.pairwise(taken)):
            continue
        covered = {piece for run in taken for piece in range(*run)}
        total = -weights.skip * sum(end - start for n, (start, end) in enumerate(pieces) if n not in covered)
        for number, run in enumerate(chosen):
            if run is None:
                total -= weights.alone
            else:
                total += energy(captions[number], pieces, *run, per_letter_s, weights)
                total += terms[number][run[0], run[1] - 1] if terms else 0.0
        best = max(best, total)
    return best


@given(problems(), st.sampled_from([0.5, 12.0]))
@settings(max_examples=60, deadline=None)
def test_no_assignment_is_better(problem, alone):
    captions, pieces, terms = problem
    weights = Alignment(reach_s=4.0, alone=alone)
    text = None if terms is None else lambda number, low, high: terms[number][low:high, low:high]
    found = place(captions, captions, pieces, weights, text)
    per_letter_s = (
        float(np.median([(c.end_s - c.start_s) / c.letters for c in captions])) if captions else 0.0
    )
    covered = {piece for new in found if new for piece in range(new.first, new.after)}
    total = -weights.skip * sum(
        end - start for n, (start, end) in enumerate(pieces.tolist()) if n not in covered
    )
    for number, (caption, new) in enumerate(zip(captions, found, strict=True)):
        own = energy(caption, pieces.tolist(), new.first, new.after, per_letter_s, weights) if new else -alone
        if new:
            own += terms[number][new.first, new.after - 1] if terms else 0.0
            assert new.score == pytest.approx(math.exp(min(own, 0.0)))
            assert (new.start_s, new.end_s) == (pieces[new.first, 0], pieces[new.after - 1, 1])
        total += own
    placed = [new for new in found if new]
    assert all(a.after <= b.first for a, b in itertools.pairwise(placed))
    assert total == pytest.approx(best_of_all(captions, pieces.tolist(), terms, weights), abs=1e-9)


def signing(seed: int, sentences: int = 12) -> tuple[np.ndarray, list[tuple[float, float]], list[int]]:
    """Pieces of made signing with rests between sentences, the sentences' times, and letters of each."""
    rng = random.Random(seed)
    at, pieces, times, letters = 1.0, [], [], []
    for _ in range(sentences):
        begun, count = at, rng.randint(3, 12)
        for _ in range(count):
            length = rng.uniform(0.2, 0.6)
            pieces.append((at, at + length))
            at += length + rng.uniform(0.0, 0.2)
        times.append((begun, pieces[-1][1]))
        letters.append(count * rng.randint(5, 7))
        at += rng.uniform(0.5, 1.5)
    return np.array(pieces), times, letters


@pytest.mark.parametrize("shift", [-3.0, -1.0, 0.0, 2.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_shifted_and_stretched_captions_return_to_their_signing(shift, seed):
    pieces, times, letters = signing(seed)
    jitter = random.Random(seed)
    captions = [
        Caption(
            start_s=max(0.0, a * 1.01 + shift + jitter.gauss(0, 0.2)), end_s=b * 1.01 + shift + 0.3, letters=n
        )
        for (a, b), n in zip(times, letters)
    ]
    found = align(captions, pieces)
    near = [
        new and abs(new.start_s - a) < 0.5 and abs(new.end_s - b) < 0.5 for new, (a, b) in zip(found, times)
    ]
    assert sum(map(bool, near)) >= 11


def test_text_decides_where_times_do_not():
    """Three equal sentences in the reach of one caption: the one whose visual tokens are the caption's is taken."""
    pieces = np.array([(t + s, t + s + 0.3) for t in (0.0, 2.0, 4.0) for s in (0.0, 0.4)])
    caption = Caption(start_s=2.0, end_s=2.7, letters=10)
    tokens = np.stack([np.arange(6), np.arange(1, 7)], axis=1)
    for wanted in range(3):
        similarity_MN = np.full((2, 6), 0.1)
        similarity_MN[0, 2 * wanted] = similarity_MN[1, 2 * wanted + 1] = 0.9
        (new,) = place(
            [caption], [caption], pieces, Alignment(),
            lambda number, low, high, s=similarity_MN: text_term(s[:, low:high], tokens[: high - low], 10.0),
        )  # fmt: skip
        assert new is not None and (new.first, new.after) == (2 * wanted, 2 * wanted + 2)


def test_similarity_of_runs_is_maxsim_in_both_directions():
    rng = np.random.default_rng(0)
    similarity_MN = rng.uniform(-1, 1, (3, 7))
    tokens = np.array([(0, 2), (2, 3), (3, 6), (6, 7)])
    term = text_term(similarity_MN, tokens, 2.0)
    wanted = np.full((4, 4), -np.inf)
    for a, b in itertools.combinations_with_replacement(range(4), 2):
        part = similarity_MN[:, tokens[a, 0] : tokens[b, 1]]
        wanted[a, b] = part.max(0).mean() + part.max(1).mean()
    wanted = 2.0 * (wanted - wanted.max())
    assert np.allclose(term[np.triu_indices(4)], wanted[np.triu_indices(4)])


def test_captions_without_signing_and_signing_without_captions():
    pieces = np.array([(10.0, 11.0), (30.0, 31.0), (31.1, 32.0)])
    captions = [Caption(start_s=t, end_s=t + 1, letters=10) for t in (9.5, 20.0, 50.0)]
    found = align(captions, pieces)
    assert [new and (new.first, new.after) for new in found] == [(0, 1), None, None]
    assert align(captions, np.zeros((0, 2))) == [None] * 3 and align([], pieces) == []


def test_overlapping_captions_become_disjoint_in_their_order():
    pieces, times, letters = signing(7)
    captions = [
        Caption(start_s=a - 0.5, end_s=b + 2.5, letters=n) for (a, b), n in zip(times, letters)
    ]  # each reaches into the next
    found = [new for new in align(captions, pieces) if new]
    assert len(found) == len(times)
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(found))
