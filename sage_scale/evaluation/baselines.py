"""Text-only controls: the scores of answers chosen without the video.

Pure functions on texts and lengths. `prior_sentence` answers every clip with the one training sentence that
scores best; `nearest_in_length` with the sentence of the training clip whose length is nearest. A translator is told
each clip's language, so both answer with sentences of that language.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Sequence

from sage_scale.errors import UsageError
from sage_scale.text import normal_form, primary_subtag, split_words


def prior_sentence(training: Sequence[str], language: str = "de") -> str:
    """Returns the training sentence with the highest corpus BLEU-4 as the answer to every training clip; first on ties.

    Exact for all candidates in one pass: a constant hypothesis matches an n-gram's k-th occurrence in as many
    references as hold it k times, so document frequencies give the clipped matches.
    """
    if not training:
        raise UsageError("the prior control needs training sentences: the list is empty")
    sentences = [split_words(normal_form(sentence), language) for sentence in training]
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
    """Returns, for each length (frames), the sentence of the training clip nearest in length.

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
    training: Sequence[str],
    training_lengths: Sequence[float],
    lengths: Sequence[float],
    language: str | Sequence[str] = "de",
    training_language: str | Sequence[str] | None = None,
) -> dict[str, list[str]]:
    """Returns the answers of both controls for clips of the given lengths: `prior` and `nearest_length`.

    `language` is that of the clips, `training_language` (the same unless given) that of the training sentences, BCP 47:
    one for all, or one for each. A clip whose language has no training sentence is answered from all of them.
    """
    spoken = _each(language, len(lengths))
    trained = _each(language if training_language is None else training_language, len(training))
    answers: dict[str, list[str]] = {"prior": [""] * len(lengths), "nearest_length": [""] * len(lengths)}
    for tag in sorted(set(spoken)):
        clips = [clip for clip, other in enumerate(spoken) if other == tag]
        rows = [row for row, other in enumerate(trained) if other == tag] or range(len(training))
        texts = [training[row] for row in rows]
        prior = prior_sentence(texts, tag)
        nearest = nearest_in_length(
            texts, [training_lengths[row] for row in rows], [lengths[clip] for clip in clips]
        )
        for clip, answer in zip(clips, nearest, strict=True):
            answers["prior"][clip], answers["nearest_length"][clip] = prior, answer
    return answers


def _each(language: str | Sequence[str], count: int) -> list[str]:
    """Returns the primary subtags of `count` languages, so that de-AT answers for de."""
    return [primary_subtag(tag) for tag in ([language] * count if isinstance(language, str) else language)]


def _ngrams(tokens: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, 5) for i in range(len(tokens) - n + 1))
