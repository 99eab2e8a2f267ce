"""BLEU, chrF, ROUGE-L and content-word F1 of a set of sentences.

Published figures differ by tokeniser, final full stop and the beta of ROUGE-L (0.5 to 1.9 BLEU-4 and 3 to 6
ROUGE-L on one file), so `score` gives both tokenisations and both betas with sacrebleu's signature, and
`PRESETS` reproduce the conventions of publications. BLEU and chrF are always counted over the whole set, never averaged
over sentences, ranks or languages; ROUGE-L is by definition the mean over sentences.

A set may have several languages. Each sentence is then cut by its own language's tokeniser, and the counts of all
sentences are added up; `languages` has the scores of each language alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sage_scale.config import Text
from sage_scale.evaluation.counts import (
    Counts,
    bleu_signature,
    chrf_signature,
    counts_by_metric,
    rouge_counts,
)
from sage_scale.evaluation.presets import PRESETS, Languages, Pairs, Preset, pairs_of, preset_named
from sage_scale.text import cached_glosser


def score(hypotheses: Sequence[str], references: Sequence[str], language: Languages) -> dict[str, Any]:
    """Returns the scores of one hypothesis per reference, in percent.

    `bleu1`..`bleu4` (sacrebleu's tokeniser: 13a; zh for Chinese, char for other unspaced languages), `bleu1_none`..
    `bleu4_none` (split at spaces; at characters for those), `rouge_l` (beta 1), `rouge_l_beta12` (beta 1.2), `chrf`,
    `signature` (sacrebleu's, of `bleu4`, and the normal form), `chrf_signature` and `clips`; of several languages
    `languages`, the same by language. Raises UsageError for empty lists or unequal lengths.
    """
    pairs = pairs_of(hypotheses, references, language)
    groups = by_language(language)
    counts = score_counts(pairs)
    scores = figures(counts, pairs)
    if len(groups) > 1:
        scores["languages"] = {tag: figures(counts, pairs, rows) for tag, rows in groups.items()}
    return scores


def score_counts(pairs: Pairs) -> dict[str, Counts]:
    """Returns the counts of each figure of `score`, by its name."""
    none = counts_by_metric(pairs, Preset(tokenize="none"), [f"bleu{order}" for order in range(1, 5)])
    return {
        **counts_by_metric(pairs, PRESETS["sacrebleu"]),
        **{f"{name}_none": counts for name, counts in none.items()},
        "rouge_l_beta12": counts_by_metric(pairs, Preset(rouge_beta=1.2), ["rouge_l"])["rouge_l"],
    }


def score_as(
    preset: str, hypotheses: Sequence[str], references: Sequence[str], language: Languages
) -> dict[str, Any]:
    """Returns `bleu1`..`bleu4`, `rouge_l` and `chrf` under the conventions of a publication (a name of PRESETS).

    In percent; `preset`, `signature` and `clips` describe the count. Raises UsageError for an unknown preset.
    """
    chosen = preset_named(preset)
    pairs = chosen.prepare(pairs_of(hypotheses, references, language))
    return {name: counts.score() for name, counts in counts_by_metric(pairs, chosen).items()} | {
        "preset": preset,
        "signature": bleu_signature(pairs, chosen),
        "clips": len(references),
    }


def rouge_l(
    hypotheses: Sequence[str], references: Sequence[str], language: Languages, beta: float = 1.0
) -> float:
    """Returns ROUGE-L in percent: the mean over sentences of F_beta of the longest common subsequence of words.

    F = (1 + beta^2) P R / (R + beta^2 P) (Lin 2004, equation 4); beta 1.2 is the MS COCO caption scorer's,
    which sign language translation took over. Characters stand for words in unspaced languages.
    """
    pairs = pairs_of(hypotheses, references, language)
    return rouge_counts(pairs, Preset(rouge_beta=beta)).score()


def content_f1(
    hypotheses: Sequence[str], references: Sequence[str], language: Languages, settings: Text | None = None
) -> float:
    """Returns F1 over content words (the pseudo-glosses of both sides, as multisets), in percent, over the whole set.

    A language without a tagger is scored by all its words.
    """
    common = given = wanted = 0
    for hypothesis, reference, tag in pairs_of(hypotheses, references, language):
        content = cached_glosser(tag, settings or Text(target="sentence"))
        h, r = Counter(content(hypothesis)), Counter(content(reference))
        common += (h & r).total()
        given += h.total()
        wanted += r.total()
    return 200.0 * common / (given + wanted) if given + wanted else 0.0


def figures(counts: Mapping[str, Counts], pairs: Pairs, rows: Sequence[int] | None = None) -> dict[str, Any]:
    """Returns the mapping of `score` from its counts, of all sentences or of some by their numbers."""
    some = pairs if rows is None else [pairs[row] for row in rows]
    return {name: each.score(rows) for name, each in counts.items()} | {
        "signature": bleu_signature(some, PRESETS["sacrebleu"]),
        "chrf_signature": chrf_signature(),
        "clips": len(some),
    }


def by_language(language: Languages) -> dict[str, list[int]]:
    """Returns the numbers of the sentences of each language, the most frequent language first; of one for all, none."""
    rows: dict[str, list[int]] = {}
    for row, tag in enumerate([] if isinstance(language, str) else language):
        rows.setdefault(tag, []).append(row)
    return dict(sorted(rows.items(), key=lambda item: (-len(item[1]), item[0])))
