"""Precision, recall and F1 of pseudo-glosses, against counting by hand, clip by clip."""

from __future__ import annotations

import numpy as np
import pytest

from sage_scale.evaluation.stage1_scores import PresenceCounts, frequency_control


def by_hand(found: list[set[int]], there: list[set[int]], glosses: int) -> dict[str, float]:
    def f1(pairs):
        hits = sum(len(f & t) for f, t in pairs)
        return 200 * hits / max(sum(len(f) + len(t) for f, t in pairs), 1)

    pairs = list(zip(found, there, strict=True))
    each = [
        f1([(f & {gloss}, t & {gloss}) for f, t in pairs])
        for gloss in range(glosses)
        if any(gloss in t for t in there)
    ]
    hits = sum(len(f & t) for f, t in pairs)
    return {
        "precision": 100 * hits / max(sum(map(len, found)), 1),
        "recall": 100 * hits / max(sum(map(len, there)), 1),
        "f1": f1(pairs),
        "macro_f1": sum(each) / len(each),
    }


@pytest.mark.parametrize("seed", range(8))
def test_scores_are_those_of_sets(seed):
    rng = np.random.default_rng(seed)
    presence = rng.random((13, 9))
    there = rng.random((13, 9)) < 0.3
    there[:, 4] = False  # found now and then, and never there
    counts = PresenceCounts.of(presence, there, 0.6)
    expected = by_hand(
        [set(np.flatnonzero(row > 0.6)) for row in presence], [set(np.flatnonzero(row)) for row in there], 9
    )
    scores = counts.scores()
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert scores["clips"] == 13 and scores["occurring"] == there.any(0).sum()
    parts = PresenceCounts.of(presence[:5], there[:5], 0.6) + PresenceCounts.of(presence[5:], there[5:], 0.6)
    assert parts.scores() == scores


def test_nothing_found_and_nothing_there_is_zero_not_an_error():
    assert PresenceCounts.none(3).scores()["f1"] == 0
    nothing = PresenceCounts.of(np.zeros((2, 3)), np.ones((2, 3), bool), 0.2).scores()
    assert nothing["precision"] == nothing["recall"] == nothing["macro_f1"] == 0


@pytest.mark.parametrize("seed", range(6))
def test_guessing_by_frequency_takes_the_best_number_of_glosses(seed):
    """No other number of the most frequent ones has a better micro F1 on the training clips."""
    rng = np.random.default_rng(seed)
    training = [sorted(set(rng.zipf(1.6, 6).clip(1, 12) - 1)) for _ in range(40)]
    got = frequency_control(training, training, 12)["f1"]
    counts = np.bincount([c for row in training for c in row], minlength=12)
    order = np.argsort(-counts, kind="stable")
    there = [set(row) for row in training]
    every = [by_hand([set(order[:k])] * 40, there, 12)["f1"] for k in range(1, 13)]
    assert got == pytest.approx(max(every))
