"""Text-only controls: what a translator that never looks at the signing would score.

Pure functions on texts and lengths. `prior_sentence` answers every clip with the one training sentence that
scores best; `nearest_in_length` with the sentence of the training clip whose length is nearest.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Sequence

from sage_scale.errors import UsageError
from sage_scale.text import UNSPACED, primary_subtag


def prior_sentence(training: Sequence[str], language: str = "de") -> str:
    """The training sentence with the best corpus BLEU-4 when it answers every training clip; first on ties.

    Exact for all candidates in one pass: a constant hypothesis matches an n-gram's k-th occurrence in as many
    references as hold it k times, so document frequencies give the clipped matches.
    """
    if not training:
        raise UsageError("the prior control needs training sentences: the list is empty")
    sentences = [_tokens(sentence, language) for sentence in training]
    frequency: Counter[tuple[tuple[str, ...], int]] = Counter()
    for tokens in sentences:
        for ngram, count in _ngrams(tokens).items():
            frequency.update((ngram, k) for k in range(1, count + 1))
    reference_length = sum(len(tokens) for tokens in sentences)
    best, best_score = training[0], -math.inf
    for sentence, tokens in {sentence: tokens for sentence, tokens in zip(training, sentences)}.items():
        matches, totals = [0] * 4, [max(0, len(tokens) - n) * len(sentences) for n in range(4)]
        for ngram, count in _ngrams(tokens).items():
            matches[len(ngram) - 1] += sum(frequency[ngram, k] for k in range(1, count + 1))
        if 0 in totals:  # too short to have 4-grams
            continue
        length = len(tokens) * len(sentences)
        brevity = min(0.0, 1 - reference_length / length)
        value = (
            brevity + sum(math.log(match / total) for match, total in zip(matches, totals, strict=True)) / 4
        )
        if value > best_score:
            best, best_score = sentence, value
    return best


def nearest_in_length(
    training: Sequence[str], training_lengths: Sequence[float], lengths: Sequence[float]
) -> list[str]:
    """For each length (frames of a clip) the sentence of the training clip nearest in length.

    Ties go to the shorter clip, then to the first one.
    """
    if len(training) != len(training_lengths):
        raise UsageError(f"{len(training)} training sentences for {len(training_lengths)} lengths")
    if not training:
        raise UsageError("the length control needs training sentences: the list is empty")
    order = sorted(range(len(training)), key=lambda i: (training_lengths[i], i))
    sorted_lengths = [training_lengths[i] for i in order]
    answers = []
    for length in lengths:
        at = bisect.bisect_left(sorted_lengths, length)
        below = bisect.bisect_left(sorted_lengths, sorted_lengths[at - 1]) if at else 0
        candidates = [below, min(at, len(order) - 1)]
        nearest = min(candidates, key=lambda i: abs(sorted_lengths[i] - length))
        answers.append(training[order[nearest]])
    return answers


def text_controls(
    training: Sequence[str], training_lengths: Sequence[float], lengths: Sequence[float], language: str = "de"
) -> dict[str, list[str]]:
    """Answers of both controls for clips of the given lengths: `prior` and `nearest_length`."""
    return {
        "prior": [prior_sentence(training, language)] * len(lengths),
        "nearest_length": nearest_in_length(training, training_lengths, lengths),
    }


def _tokens(sentence: str, language: str) -> list[str]:
    return list("".join(sentence.split())) if primary_subtag(language) in UNSPACED else sentence.split()


def _ngrams(tokens: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, 5) for i in range(len(tokens) - n + 1))
