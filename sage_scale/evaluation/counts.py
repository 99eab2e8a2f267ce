"""Additive counts of BLEU, chrF and ROUGE-L: a row for each sentence, and the score from a sum of rows.

The counts of a set, of one of its groups or of a resample are sums of the same rows, so sentences are tokenised once.
BLEU and chrF are sacrebleu's own counts and formulas.

Shape letters: N sentences, K counts of a metric.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from sage_scale.errors import UsageError
from sage_scale.evaluation.presets import Pairs, Preset, bleu_tokenizer, cut, preset_named
from sage_scale.evaluation.rouge import sentence_rouge_l
from sage_scale.text import split_words

BLEU_ORDERS = 4


@dataclass(frozen=True)
class Counts:
    """The counts of one metric over N sentences."""

    rows_NK: np.ndarray
    """float64, so that sums of whole numbers are exact."""
    formula: Callable[[np.ndarray], float]
    """From the sum of rows, (K,), to the score in percent."""

    def of(self, rows: Sequence[int] | None) -> Counts:
        """Returns the counts of some sentences by their numbers; of None all."""
        return self if rows is None else Counts(self.rows_NK[list(rows)], self.formula)

    def score(self, rows: Sequence[int] | None = None) -> float:
        """Returns the score of all sentences, or of some by their numbers."""
        return self.formula(self.of(rows).rows_NK.sum(0))


def counts_of(metric: str, pairs: Pairs, preset: str | None = None) -> Counts:
    """Returns the counts of a metric, by its name in `evaluation.score`, or in `score_as` where a preset is named.

    Raises UsageError for an unknown metric or preset.
    """
    name, convention = metric, preset_named(preset or "sacrebleu")
    if preset is None and metric in _CONVENTIONS:
        name, convention = _CONVENTIONS[metric]
    every = counts_by_metric(convention.prepare(pairs), convention, [name])
    if name not in every:
        known = [*metric_names(), *(_CONVENTIONS if preset is None else ())]
        raise UsageError(f"no metric '{metric}': one of {', '.join(known)}")
    return every[name]


def metric_names() -> list[str]:
    """Returns the metrics that every convention has."""
    return [*(f"bleu{order}" for order in range(1, BLEU_ORDERS + 1)), "rouge_l", "chrf"]


def counts_by_metric(
    pairs: Pairs, convention: Preset, names: Sequence[str] | None = None
) -> dict[str, Counts]:
    """Returns the counts of the named metrics (all unless given) of pairs that were prepared."""
    wanted = metric_names() if names is None else names
    found: dict[str, Counts] = {}
    if any(name.startswith("bleu") for name in wanted):
        rows_NK = _bleu_rows(pairs, convention.tokenize)
        for order in range(1, BLEU_ORDERS + 1):
            found[f"bleu{order}"] = Counts(rows_NK, functools.partial(_bleu, order, convention.smooth))
    if "rouge_l" in wanted:
        found["rouge_l"] = rouge_counts(pairs, convention)
    if "chrf" in wanted:
        found["chrf"] = Counts(_sacrebleu_rows(_chrf_metric(), pairs), _chrf)
    return {name: found[name] for name in wanted if name in found}


def rouge_counts(pairs: Pairs, convention: Preset) -> Counts:
    """Returns the counts of ROUGE-L."""
    form, beta = convention.rouge, convention.rouge_beta
    return mean_of(
        [sentence_rouge_l(split_words(h, tag), split_words(r, tag), form, beta) for h, r, tag in pairs]
    )


def mean_of(values: Sequence[float]) -> Counts:
    """Returns the counts of a metric that is the mean of a value a sentence, in percent."""
    rows_NK = np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)
    return Counts(rows_NK, lambda sum_K: float(100.0 * sum_K[0] / sum_K[1]))


def bleu_signature(pairs: Pairs, convention: Preset) -> str:
    """Returns sacrebleu's signature of BLEU-4, with every tokeniser in use and the normal form."""
    names = "+".join(sorted({bleu_tokenizer(convention.tokenize, tag) for _, _, tag in pairs}))
    metric = BLEU(tokenize="none", smooth_method=convention.smooth, force=True)
    return _signature(metric).replace("tok:none", f"tok:{names}")


def chrf_signature() -> str:
    """Returns sacrebleu's signature of chrF, with the normal form."""
    return _signature(_chrf_metric())


_CONVENTIONS = {
    **{f"bleu{order}_none": (f"bleu{order}", Preset(tokenize="none")) for order in range(1, 5)},
    "rouge_l_beta12": ("rouge_l", Preset(rouge_beta=1.2)),
}
"""Names of `evaluation.score` that differ from its convention, sacrebleu's."""


def _signature(metric: Any) -> str:
    metric.corpus_score([""], [[""]])  # before it, sacrebleu does not know the number of references
    return f"{metric.get_signature()}|norm:nfkc"


@functools.cache
def _bleu_metric() -> BLEU:
    # force silences sacrebleu's warning that texts ending in ` .` look tokenised: presets add that full stop.
    return BLEU(max_ngram_order=BLEU_ORDERS, tokenize="none", force=True)


@functools.cache
def _chrf_metric() -> CHRF:
    return CHRF()


def _bleu_rows(pairs: Pairs, tokenize: str) -> np.ndarray:
    """Returns lengths of hypothesis and reference, matched n-grams and all n-grams by order, (N, 10)."""
    tokenised = [(cut(h, tokenize, tag), cut(r, tokenize, tag), tag) for h, r, tag in pairs]
    return _sacrebleu_rows(_bleu_metric(), tokenised)


def _sacrebleu_rows(metric: Any, pairs: Pairs) -> np.ndarray:
    hypotheses, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return np.asarray(metric._extract_corpus_statistics(hypotheses, [references]), np.float64)


def _bleu(order: int, smooth: str, sum_K: np.ndarray) -> float:
    matched, every = sum_K[2 : 2 + order].tolist(), sum_K[2 + BLEU_ORDERS : 2 + BLEU_ORDERS + order].tolist()
    found = BLEU.compute_bleu(
        matched, every, int(sum_K[0]), int(sum_K[1]), smooth_method=smooth, max_ngram_order=order
    )
    return float(found.score)


def _chrf(sum_K: np.ndarray) -> float:
    return float(_chrf_metric()._compute_f_score(sum_K.tolist()))
