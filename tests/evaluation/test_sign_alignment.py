"""Alignment of visual tokens with gold signs, against counting by hand, and on aligners whose accuracy is known."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from sage_scale.evaluation.sign_alignment import AlignmentCounts, clip_counts, matches


def test_a_clip_by_hand():
    """Five tokens: right, wrong, without a sign, with a sign that has no pseudo-gloss, and one of two signs."""
    pseudo = ["Norden", "Regen", "stark"]
    signs = np.array([[0, 10], [10, 20], [30, 40], [40, 44], [44, 60]], float)
    glosses = ["NORD", "REGEN", "PALM", "NORD", "STARK"]
    segments = np.array([[0, 9], [8, 20], [21, 29], [30, 41], [40, 52]])
    similarity = np.array([[0.9, 0.1, 0.2], [0.5, 0.4, 0.1], [1, 0, 0], [0, 1, 0], [0.1, 0.2, 0.3]])
    counts = clip_counts(similarity, pseudo, segments, signs, glosses)
    assert counts == AlignmentCounts(1, 5, 4, 3, 2, Fraction(1))
    scores = (counts + counts).scores()
    assert scores["accuracy"] == pytest.approx(200 / 3) and scores["chance"] == pytest.approx(100 / 3)
    assert (scores["clips"], scores["tokens"], scores["signed"], scores["scored"]) == (2, 10, 8, 6)


def test_a_perfect_aligner_is_right_and_a_random_one_by_chance():
    rng = np.random.default_rng(0)
    right, guessed = AlignmentCounts(), AlignmentCounts()
    for _ in range(400):
        words = [f"wort{letter}" for letter in "abcdefgh"[: rng.integers(2, 9)]]
        edges = np.cumsum(rng.integers(3, 9, len(words) + 1))
        segments = np.stack([edges[:-1], edges[1:]], 1)
        arguments = (words, segments, segments.astype(float), [word.upper() for word in words])
        right += clip_counts(np.eye(len(words)), *arguments)
        guessed += clip_counts(rng.random((len(words), len(words))), *arguments)
    assert right.scores()["accuracy"] == 100 and right.scored == right.tokens
    found = guessed.scores()
    assert found["accuracy"] == pytest.approx(found["chance"], abs=4) and 10 < found["chance"] < 30


def test_nothing_to_score_is_zero():
    none = clip_counts(np.zeros((0, 2)), ["a", "b"], np.zeros((0, 2), int), np.zeros((0, 2)), [])
    assert none == AlignmentCounts(clips=1) and none.scores()["accuracy"] == 0
    silent = clip_counts(np.zeros((1, 0)), [], np.array([[0, 5]]), np.array([[0.0, 5.0]]), ["NORD"])
    assert (silent.signed, silent.scored) == (1, 0)


@pytest.mark.parametrize(
    ("gloss", "word", "same"),
    [
        ("NORD", "Norden", True), ("SUED", "Süden", True), ("SÜD", "süden", True), ("MAESSIG", "mäßig", True),
        ("loc-NORD", "norden", True), ("MORGEN1A^", "morgen", True), ("NICHT-MEHR", "mehr", True), ("IX", "ix", True),
        ("REGEN", "regnen", False), ("NACHT", "Nachmittag", False), ("MITTWOCH", "Mittag", False),
        ("IN", "innen", False), ("123", "zwei", False), ("", "norden", False), ("STRASSE", "Straße", True),
    ],
)  # fmt: skip
def test_a_gloss_matches_its_word_and_no_other(gloss, word, same):
    assert matches(gloss, word) is same
