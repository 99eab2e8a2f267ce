"""BLEU, ROUGE-L and content-word F1 of a whole set of sentences.

Published figures differ by tokeniser, final full stop and the beta of ROUGE-L (0.5 to 1.9 BLEU-4 and 3 to 6
ROUGE-L on one file), so `score` gives both tokenisations and both betas with sacrebleu's signature, and
`PRESETS` reproduce the conventions of publications. BLEU is always counted over the whole set, never averaged
over sentences or ranks; ROUGE-L is by definition the mean over sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics.bleu import BLEU

from sage_scale.config import Text
from sage_scale.errors import UsageError
from sage_scale.text import UNSPACED, glosser, primary_subtag


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How a publication scores: change it and the figures move."""

    tokenize: str = "13a"
    """13a, or none: split at spaces. Chinese is scored per character either way."""
    full_stop: bool = False
    """Whether hypothesis and reference end with ` .` before they are scored."""
    rouge_beta: float = 1.0
    """Beta of ROUGE-L: 1.2 is that of the MS COCO caption scorer."""
    lowercase: bool = False
    """Whether both sides are lower-cased first."""


PRESETS: dict[str, Preset] = {
    "sacrebleu": Preset(),
    "neccam": Preset(tokenize="none", full_stop=True, rouge_beta=1.2),
    "sign2gpt": Preset(tokenize="none", full_stop=True, rouge_beta=1.2),
    "gfslt": Preset(tokenize="13a"),
    "sage": Preset(tokenize="13a", full_stop=True, rouge_beta=1.2),
    "uni-sign": Preset(tokenize="13a"),
}
"""Conventions by publication. GFSLT and SAGE score against references decoded from trimmed ids, in which
`<unk>` vanishes; here the raw text is scored. Uni-Sign takes ROUGE-L from PyPI's `rouge`, which counts
distinct words and comes out higher; it is not reproduced."""


def score(hypotheses: Sequence[str], references: Sequence[str], language: str) -> dict[str, Any]:
    """Scores of one hypothesis per reference, in percent.

    Gives `bleu1`..`bleu4` (13a; per character for Chinese and other unspaced languages), `bleu1_none`..
    `bleu4_none` (split at spaces; at characters for those), `rouge_l` (beta 1), `rouge_l_beta12` (beta 1.2),
    `signature` (sacrebleu's, of `bleu4`) and `clips`. Raises UsageError for empty lists or unequal lengths.
    """
    hypotheses, references = _pairs(hypotheses, references)
    tokenize = _bleu_tokenizer(language)
    split = _splitter(language)
    spaced_hypotheses = [" ".join(split(text)) for text in hypotheses]
    spaced_references = [" ".join(split(text)) for text in references]
    scores: dict[str, Any] = {}
    for order in range(1, 5):
        scores[f"bleu{order}"], signature = _bleu(hypotheses, references, order, tokenize)
    for order in range(1, 5):
        scores[f"bleu{order}_none"], _ = _bleu(spaced_hypotheses, spaced_references, order, "none")
    scores["rouge_l"] = rouge_l(hypotheses, references, language, beta=1.0)
    scores["rouge_l_beta12"] = rouge_l(hypotheses, references, language, beta=1.2)
    scores["signature"] = signature
    scores["clips"] = len(references)
    return scores


def score_as(
    preset: str, hypotheses: Sequence[str], references: Sequence[str], language: str
) -> dict[str, Any]:
    """`bleu1`..`bleu4` and `rouge_l` under the conventions of a publication (a name of PRESETS), in percent.

    `preset`, `signature` and `clips` say what was counted. Raises UsageError for an unknown preset.
    """
    if preset not in PRESETS:
        raise UsageError(f"no scoring preset '{preset}': one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    hypotheses, references = _pairs(hypotheses, references)
    if chosen.lowercase:
        hypotheses = [text.lower() for text in hypotheses]
        references = [text.lower() for text in references]
    if chosen.full_stop:
        stop = "。" if primary_subtag(language) == "zh" else " ."
        hypotheses = [_stopped(text, stop) for text in hypotheses]
        references = [_stopped(text, stop) for text in references]
    if chosen.tokenize == "none":
        split = _splitter(language)
        bleu_hypotheses = [" ".join(split(text)) for text in hypotheses]
        bleu_references = [" ".join(split(text)) for text in references]
        tokenize = "none"
    else:
        bleu_hypotheses, bleu_references, tokenize = hypotheses, references, _bleu_tokenizer(language)
    scores: dict[str, Any] = {}
    for order in range(1, 5):
        scores[f"bleu{order}"], signature = _bleu(bleu_hypotheses, bleu_references, order, tokenize)
    scores["rouge_l"] = rouge_l(hypotheses, references, language, beta=chosen.rouge_beta)
    return scores | {"preset": preset, "signature": signature, "clips": len(references)}


def rouge_l(hypotheses: Sequence[str], references: Sequence[str], language: str, beta: float = 1.0) -> float:
    """ROUGE-L in percent: the mean over sentences of F_beta of the longest common subsequence of words.

    F = (1 + beta^2) P R / (R + beta^2 P) (Lin 2004, equation 4); beta 1.2 is the MS COCO caption scorer's,
    which sign language translation took over. Characters take the place of words in unspaced languages.
    """
    hypotheses, references = _pairs(hypotheses, references)
    split = _splitter(language)
    total = 0.0
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        h, r = split(hypothesis), split(reference)
        common = _longest_common_subsequence(h, r)
        if common:
            precision, recall = common / len(h), common / len(r)
            total += (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    return 100.0 * total / len(references)


def content_f1(
    hypotheses: Sequence[str], references: Sequence[str], language: str, settings: Text | None = None
) -> float:
    """F1 over content words (the pseudo-glosses of both sides, as multisets), in percent, over the whole set.

    A language without a tagger is scored by all its words.
    """
    hypotheses, references = _pairs(hypotheses, references)
    content = glosser(language, settings or Text(target="sentence"))
    common = given = wanted = 0
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        h, r = Counter(content(hypothesis)), Counter(content(reference))
        common += (h & r).total()
        given += h.total()
        wanted += r.total()
    return 200.0 * common / (given + wanted) if given + wanted else 0.0


def _pairs(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[list[str], list[str]]:
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str):
            raise UsageError(f"{name} must be a list of sentences, not one string")
    if len(hypotheses) != len(references):
        raise UsageError(
            f"{len(hypotheses)} hypotheses for {len(references)} references: one for each is needed"
        )
    if not references:
        raise UsageError("nothing to score: the list of references is empty")
    return list(hypotheses), list(references)


def _bleu_tokenizer(language: str) -> str:
    subtag = primary_subtag(language)
    if subtag in ("zh", "cmn", "yue"):
        return "zh"
    return "char" if subtag in UNSPACED else "13a"


def _splitter(language: str) -> Callable[[str], list[str]]:
    if primary_subtag(language) in UNSPACED:
        return lambda text: list("".join(text.split()))
    return str.split


def _bleu(hypotheses: list[str], references: list[str], order: int, tokenize: str) -> tuple[float, str]:
    # force silences sacrebleu's warning that texts ending in ` .` look tokenised: with `full_stop` they do.
    metric = BLEU(max_ngram_order=order, tokenize=tokenize, force=True)
    value = metric.corpus_score(hypotheses, [references]).score
    return float(value), str(metric.get_signature())


def _stopped(text: str, stop: str) -> str:
    text = text.rstrip()
    return text if text.endswith(stop.strip()) else text + stop


def _longest_common_subsequence(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, start=1):
            above = row[j]
            row[j] = before + 1 if x == y else max(above, row[j - 1])
            before = above
    return row[-1]
