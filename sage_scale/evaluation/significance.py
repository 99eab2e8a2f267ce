"""Intervals and tests of scores: over clips by bootstrap, over seeds by Student's t, over both.

Intervals over clips are sacrebleu's bootstrap (Koehn 2004), p of two translations its approximate randomisation
(Riezler and Maxwell 2005), draw by draw: with `seed=12345`, its default, they equal sacrebleu's where a set has one
language. A set of several languages is drawn as a whole, each sentence cut by its own language's tokeniser. sacrebleu's
other p, of the bootstrap, is not taken: it is about half of a two-sided one.

Shape letters: N clips, S resamples, K counts of a metric.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sage_scale.errors import UsageError
from sage_scale.evaluation.counts import Counts, counts_of
from sage_scale.evaluation.presets import Languages, pairs_of

SAMPLES, TRIALS = 1000, 10_000
"""Resamples of an interval and exchanges of a test, as in sacrebleu."""
SEED = 12345
"""sacrebleu's."""
_CHUNK = 4_000_000
"""Draws that are held in memory at once."""
_ROUNDING = 1e-9
"""Score points within which two differences are equal."""


@dataclass(frozen=True)
class Interval:
    """A score and its interval, percent."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """A difference a - b of two scores, its interval, and the p of the hypothesis that there is none (two-sided)."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Spread:
    """Mean and sample deviation over seeds, and Student's interval of the mean; of one seed only the mean."""

    mean: float
    deviation: float | None
    low: float | None
    high: float | None


def bootstrap_interval(
    hypotheses: Sequence[str],
    references: Sequence[str],
    language: Languages,
    metric: str = "bleu4",
    samples: int = SAMPLES,
    seed: int = SEED,
    level: float = 0.95,
    preset: str | None = None,
) -> Interval:
    """Returns a score of `evaluation.score` (of `score_as`, with a preset) and its percentile interval over clips.

    Half of its width is sacrebleu's "±". Raises UsageError for an unknown metric or preset and for bad lists.
    """
    counts = counts_of(metric, pairs_of(hypotheses, references, language), preset)
    return counts_interval(counts, samples, seed, level)


def counts_interval(
    counts: Counts, samples: int = SAMPLES, seed: int = SEED, level: float = 0.95
) -> Interval:
    """Returns the score of counts and its percentile interval over clips."""
    return Interval(counts.score(), *_percentiles(_resampled([counts], samples, seed)[0], level))


def paired_test(
    hypotheses_a: Sequence[str],
    hypotheses_b: Sequence[str],
    references: Sequence[str],
    language: Languages,
    metric: str = "bleu4",
    samples: int = SAMPLES,
    seed: int = SEED,
    level: float = 0.95,
    preset: str | None = None,
) -> PairedTest:
    """Returns the difference of two translations of the same clips, its bootstrap interval, and its p.

    p is sacrebleu's of `--paired-ar`: the share of exchanges of clips between the two at random that move them further
    apart. Equal scores have p 1, where sacrebleu gives 1 / (trials + 1). Raises UsageError as
    `bootstrap_interval` does.
    """
    a, b = (
        counts_of(metric, pairs_of(h, references, language), preset) for h in (hypotheses_a, hypotheses_b)
    )
    return counts_test(a, b, samples, seed, level)


def counts_test(
    a: Counts, b: Counts, samples: int = SAMPLES, seed: int = SEED, level: float = 0.95
) -> PairedTest:
    """Returns the paired test of two counts of the same clips."""
    scores_a_S, scores_b_S = _resampled([a, b], samples, seed)
    difference = a.score() - b.score()
    low, high = _percentiles(scores_a_S - scores_b_S, level)
    return PairedTest(difference, low, high, _exchanged(a, b, abs(difference), seed))


def _exchanged(a: Counts, b: Counts, difference: float, seed: int) -> float:
    """Returns p by approximate randomisation: each clip is exchanged between a and b with probability 1/2."""
    if difference <= _ROUNDING:  # every exchange moves them as far apart, also where all scores are 0
        return 1.0
    clips, generator, more = len(a.rows_NK), np.random.default_rng(seed), 0
    size = (
        max(_CHUNK // clips // 32, 1) * 32
    )  # numpy draws truth values 32 at a time, and drops the rest of a call
    both_K, apart_NK = a.rows_NK.sum(0) + b.rows_NK.sum(0), a.rows_NK - b.rows_NK
    for start in range(0, TRIALS, size):
        drawn_TN = generator.integers(2, size=(min(size, TRIALS - start), clips), dtype=bool)
        one_TK = drawn_TN.astype(np.float64) @ apart_NK + b.rows_NK.sum(0)
        for one_K in one_TK:
            more += abs(a.formula(one_K) - a.formula(both_K - one_K)) > difference + _ROUNDING
    return (more + 1) / (TRIALS + 1)


def over_seeds(values: Sequence[float], level: float = 0.95) -> Spread:
    """Returns mean, sample deviation and Student's interval of the mean of one score a seed.

    Raises UsageError for an empty list.
    """
    if not values:
        raise UsageError("nothing to average: the list of scores is empty")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, None, None, None)
    deviation = float(np.std(values, ddof=1))
    half = student_quantile(level, len(values) - 1) * deviation / math.sqrt(len(values))
    return Spread(mean, deviation, mean - half, mean + half)


def difference_over_seeds(
    values_a: Sequence[float], values_b: Sequence[float], level: float = 0.95
) -> PairedTest:
    """Returns Student's paired test of one score a seed, the same seeds in the same order on both sides.

    It needs no texts, and says nothing about other clips. Raises UsageError for unequal lists and for fewer than two
    seeds.
    """
    if len(values_a) != len(values_b) or len(values_a) < 2:
        raise UsageError(
            f"{len(values_a)} and {len(values_b)} scores: a paired test needs the same two seeds or more"
        )
    apart = np.subtract(values_a, values_b)
    error = float(apart.std(ddof=1)) / math.sqrt(len(apart))
    return _student_test(float(apart.mean()), error, len(apart) - 1, level)


def paired_over_seeds(
    hypotheses_a: Sequence[Sequence[str]],
    hypotheses_b: Sequence[Sequence[str]],
    references: Sequence[str],
    language: Languages,
    metric: str = "bleu4",
    samples: int = SAMPLES,
    seed: int = SEED,
    level: float = 0.95,
    preset: str | None = None,
) -> PairedTest:
    """Returns the test of two kinds of runs over the same seeds and clips: the mean difference of their scores.

    `hypotheses_a[s]` and `hypotheses_b[s]` are the translations of seed s. The squared standard error is a sum: the
    variance of the difference over seeds by their number, and the bootstrap variance over clips of the mean
    difference, all seeds resampled alike; its degrees of freedom are Satterthwaite's (1946). Of one seed, only the
    clips count, and nothing is said about other seeds. Raises UsageError as `bootstrap_interval` does, and for
    unequal numbers of seeds.
    """
    counts_a, counts_b = (
        [counts_of(metric, pairs_of(texts, references, language), preset) for texts in hypotheses]
        for hypotheses in (hypotheses_a, hypotheses_b)
    )
    return counts_test_over_seeds(counts_a, counts_b, samples, seed, level)


def counts_test_over_seeds(
    counts_a: Sequence[Counts],
    counts_b: Sequence[Counts],
    samples: int = SAMPLES,
    seed: int = SEED,
    level: float = 0.95,
) -> PairedTest:
    """Returns `paired_over_seeds` of counts of the same clips, one a seed.

    Raises UsageError for unequal numbers of seeds.
    """
    if len(counts_a) != len(counts_b) or not counts_a:
        raise UsageError(
            f"runs of {len(counts_a)} and {len(counts_b)} seeds: a paired test needs the same seeds"
        )
    seeds = len(counts_a)
    apart = [a.score() - b.score() for a, b in zip(counts_a, counts_b, strict=True)]
    resampled_RS = np.stack(_resampled([*counts_a, *counts_b], samples, seed))
    of_clips = float((resampled_RS[:seeds] - resampled_RS[seeds:]).mean(0).var(ddof=1))
    of_seeds = float(np.var(apart, ddof=1)) / seeds if seeds > 1 else 0.0
    variance = of_clips + of_seeds
    freedom = float(max(len(counts_a[0].rows_NK) - 1, 1))
    if variance and seeds > 1:
        freedom = variance**2 / (of_clips**2 / freedom + of_seeds**2 / (seeds - 1))
    return _student_test(math.fsum(apart) / seeds, math.sqrt(variance), freedom, level)


def _student_test(difference: float, error: float, freedom: float, level: float) -> PairedTest:
    half = student_quantile(level, freedom) * error
    if error:
        p = 1 - _central(abs(difference) / error, freedom)
    else:
        p = 0.0 if difference else 1.0
    return PairedTest(difference, difference - half, difference + half, p)


def _resampled(counts: Sequence[Counts], samples: int, seed: int) -> list[np.ndarray]:
    """Returns the scores of each counts over the same resamples of clips, (S,) each."""
    scores: list[list[float]] = [[] for _ in counts]
    for drawn_SN in _draws(len(counts[0].rows_NK), samples, seed):
        for found, each in zip(scores, counts):
            found += [each.formula(sum_K) for sum_K in drawn_SN @ each.rows_NK]
    return [np.asarray(found) for found in scores]


def _draws(clips: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields the number of times that each clip is drawn, (some of S, N), by sacrebleu's generator."""
    generator = np.random.default_rng(seed)
    size = max(_CHUNK // clips, 1)
    for start in range(0, samples, size):
        drawn = generator.choice(clips, size=(min(size, samples - start), clips), replace=True)
        yield np.stack([np.bincount(row, minlength=clips) for row in drawn]).astype(np.float64)


def _percentiles(values_S: np.ndarray, level: float) -> tuple[float, float]:
    """Returns the interval as sacrebleu cuts it: of 1000 values and 95 %, the 26th and the 975th."""
    ordered = np.sort(values_S)
    cut = min(int(len(ordered) * (1 - level) / 2 + 1e-9), (len(ordered) - 1) // 2)
    return float(ordered[cut]), float(ordered[len(ordered) - cut - 1])


@functools.lru_cache(maxsize=256)
def student_quantile(level: float, freedom: float) -> float:
    """Returns t such that Student's variable of `freedom` >= 1 lies within -t and t with probability `level`."""
    low, high = 0.0, 1.0
    while _central(high, freedom) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, freedom) < level else (low, middle)
    return (low + high) / 2


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


def _central(t: float, freedom: float) -> float:
    """Returns the probability that Student's variable lies within -t and t: with t = sqrt(freedom) tan(angle), the
    density becomes a power of the cosine, integrated by Gauss and Legendre's rule."""
    angle = math.atan(t / math.sqrt(freedom))
    integral = float(_WEIGHTS @ np.cos((_NODES + 1) * angle / 2) ** (freedom - 1)) * angle / 2
    log_whole = math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2) + math.log(math.pi) / 2
    return min(2 * integral / math.exp(log_whole), 1.0)
