"""Intervals and tests against sacrebleu's own, against published tables, and against simulation."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest as SacrebleusTest

from sage_scale.errors import UsageError
from sage_scale.evaluation import significance
from sage_scale.evaluation.metrics import score, score_as
from sage_scale.evaluation.significance import (
    bootstrap_interval,
    difference_over_seeds,
    over_seeds,
    paired_over_seeds,
    paired_test,
)

WORDS = ["am", "tag", "regen", "schnee", "wind", "norden", "süden", "sonne", "viel", "wenig", "und", ","]


def texts(seed: int, clips: int, share: float = 0.6) -> tuple[list[str], list[str]]:
    """Returns hypotheses and references; each word of a hypothesis is right with probability `share`."""
    rng = random.Random(seed)
    references = [rng.choices(WORDS, k=rng.randint(4, 12)) for _ in range(clips)]
    hypotheses = [
        [word if rng.random() < share else rng.choice(WORDS) for word in reference]
        for reference in references
    ]
    return [" ".join(row) for row in hypotheses], [" ".join(row) for row in references]


@pytest.mark.parametrize(("metric", "theirs"), [("bleu4", BLEU(force=True)), ("chrf", CHRF())])
def test_an_interval_is_sacrebleus(metric, theirs):
    hypotheses, references = texts(1, 60)
    wanted = theirs.corpus_score(hypotheses, [references], n_bootstrap=400)
    ours = bootstrap_interval(hypotheses, references, "de", metric, samples=400)
    assert ours.value == pytest.approx(wanted.score)
    assert (ours.high - ours.low) / 2 == pytest.approx(wanted._ci, rel=1e-4)
    assert ours.low < ours.value < ours.high


@pytest.mark.parametrize("share", [0.6, 0.63, 0.7])
def test_a_paired_test_is_sacrebleus(share, monkeypatch):
    monkeypatch.setattr(significance, "_CHUNK", 7000)  # in pieces, as of a large set
    a, references = texts(2, 70)
    b, _ = texts(2, 70, share)
    metrics = {"BLEU": BLEU(force=True), "chrF": CHRF()}
    _, wanted = SacrebleusTest([("a", a), ("b", b)], metrics, [references], "ar", significance.TRIALS)()
    for metric, name in (("bleu4", "BLEU"), ("chrf", "chrF2")):
        ours = paired_test(b, a, references, "de", metric, samples=300)
        assert ours.p == pytest.approx(wanted[name][1].p_value if a != b else 1.0, abs=1e-9)
        assert ours.difference == pytest.approx(wanted[name][1].score - wanted[name][0].score)
        assert ours.low <= ours.difference <= ours.high


def test_p_is_two_sided(monkeypatch):
    """Of 60 pairs of equal translators, at most a share of 1 in 20 differs with p < 0.05."""
    monkeypatch.setattr(significance, "TRIALS", 400)
    found = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        one, other = (["a" if right else "b" for right in rng.random(50) < 0.5] for _ in range(2))
        found += paired_test(one, other, ["a"] * 50, "de", "rouge_l", samples=10).p < 0.05
    assert found <= 9  # P(more) < 0.002 at 5 %, 0.08 at 10 %, the rate of a one-sided p


def test_every_figure_of_score_has_an_interval_and_a_preset_its_own():
    hypotheses, references = texts(3, 20)
    plain = score(hypotheses, references, "de")
    for metric, value in plain.items():
        if isinstance(value, float):
            found = bootstrap_interval(hypotheses, references, "de", metric, samples=20)
            assert found.value == pytest.approx(value) and found.low <= found.high
    sage = bootstrap_interval(hypotheses, references, "de", "bleu4", samples=20, preset="sage")
    assert sage.value == pytest.approx(score_as("sage", hypotheses, references, "de")["bleu4"])
    with pytest.raises(UsageError, match="no metric 'bleu9': one of bleu1"):
        bootstrap_interval(hypotheses, references, "de", "bleu9")
    with pytest.raises(UsageError, match="no scoring preset"):
        paired_test(hypotheses, hypotheses, references, "de", preset="nobody")


def test_several_languages_are_resampled_together():
    german, chinese = texts(4, 15), (["明天北京天气很好"] * 5, ["明天上海天气不好"] * 5)
    languages = ["de"] * 15 + ["zh"] * 5
    hypotheses, references = ([*g, *c] for g, c in zip(german, chinese))
    found = bootstrap_interval(hypotheses, references, languages, samples=50)
    assert found.value == pytest.approx(score(hypotheses, references, languages)["bleu4"])


def test_an_interval_covers_the_truth_as_often_as_it_says():
    """ROUGE-L of one-word sentences is a mean of zeros and ones: 95 % of the intervals hold the probability."""
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        hypotheses = ["a" if right else "b" for right in rng.random(80) < 0.4]
        found = bootstrap_interval(hypotheses, ["a"] * 80, "de", "rouge_l", samples=200)
        covered += found.low <= 40 <= found.high
    assert covered >= 51  # P(fewer) < 0.001 at 95 %


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980), (1e7, 1.95996)],
)
def test_students_quantiles_are_those_of_the_printed_table(freedom, quantile):
    assert significance.student_quantile(0.95, freedom) == pytest.approx(quantile, abs=6e-4)


def test_seeds_spread_as_student_says():
    found = over_seeds([10.0, 12.0, 11.0, 9.0, 13.0])
    assert (found.mean, found.deviation) == (11, pytest.approx(statistics.stdev([9, 10, 11, 12, 13])))
    assert found.high - 11 == pytest.approx(2.776445 * 1.5811388 / 5**0.5) == 11 - found.low
    one = over_seeds([7.0])
    assert (one.mean, one.deviation, one.low, one.high) == (7, None, None, None)
    with pytest.raises(UsageError, match="empty"):
        over_seeds([])


def test_a_paired_test_of_scores_is_students():
    """Student's sleep data (1908): t = -4.0621 with 9 degrees of freedom, p = 0.00283; the interval is R's."""
    a = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    b = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = difference_over_seeds(a, b)
    assert found.p == pytest.approx(0.002833, abs=1e-6)
    assert (found.low, found.high) == (pytest.approx(-2.4598858), pytest.approx(-0.7001142))
    with pytest.raises(UsageError, match="same two seeds"):
        difference_over_seeds([1.0], [2.0])


def test_equal_runs_do_not_differ_and_much_better_ones_do():
    runs = [texts(5, 40, 0.5)[0], texts(6, 40, 0.5)[0]]
    _, references = texts(5, 40)
    same = paired_over_seeds(runs, runs, references, "de", samples=100)
    assert same.difference == 0 and same.p == 1
    nothing = [["kein wort"] * 40] * 2
    better = paired_over_seeds([references, references], nothing, references, "de", samples=100)
    assert better.p < 0.01 and better.low > 50
    assert paired_test(references, nothing[0], references, "de", samples=100).p == pytest.approx(1 / 10_001)
    wrong, other = (
        paired_test([word] * 40, nothing[0], references, "de", samples=100) for word in ("x", "y z")
    )
    assert (wrong.difference, wrong.p) == (other.difference, other.p) == (0, 1)  # both 0, by other words
    alone = paired_over_seeds(runs[:1], runs[1:], references, "de", "rouge_l", samples=300)
    assert alone.low < alone.difference < alone.high
    with pytest.raises(UsageError, match="2 and 1 seeds"):
        paired_over_seeds(runs, runs[:1], references, "de")


def test_seeds_and_clips_reject_no_more_often_than_they_say():
    """Two equal kinds with noise of seed and clip: at most 5 % of tests may find a difference."""
    found = 0
    for trial in range(50):
        rng = np.random.default_rng(trial)

        def runs(rng=rng):
            rates = 0.5 + 0.1 * rng.standard_normal(3)
            return [["a" if right else "b" for right in rng.random(60) < rate] for rate in rates]

        found += paired_over_seeds(runs(), runs(), ["a"] * 60, "de", "rouge_l", samples=60).p < 0.05
    assert found <= 8  # P(more) < 0.001 at 5 %


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
@settings(max_examples=50, deadline=None)
def test_a_spread_holds_its_mean(values):
    found = over_seeds(values)
    assert found.low is not None and found.high is not None
    assert found.low <= found.mean <= found.high
