"""BLEU, ROUGE-L and content-word F1 of a set of sentences.

Published figures differ by tokeniser, final full stop and the beta of ROUGE-L (0.5 to 1.9 BLEU-4 and 3 to 6
ROUGE-L on one file), so `score` gives both tokenisations and both betas with sacrebleu's signature, and
`PRESETS` reproduce the conventions of publications. BLEU is always counted over the whole set, never averaged
over sentences, ranks or languages; ROUGE-L is by definition the mean over sentences.

Both sides are compared in one normal form (`text.languages.normal_form`), which the signature names: mBART and XGLM
write `,` for the `，` of a Chinese reference, which would count as an error.

A set may have several languages. Each sentence is then cut by its own language's tokeniser, and the counts of all
sentences are added up; `languages` has the scores of each language alone.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics.bleu import BLEU

from sage_scale.config import Text
from sage_scale.errors import UsageError
from sage_scale.text import cached_glosser, normal_form, primary_subtag, split_words, unspaced

Languages = str | Sequence[str]
"""BCP 47: one language of all sentences, or one of each."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """The scoring conventions of a publication.

    A language without spaces, such as Chinese, is split into characters (Latin letters and digits, too) and gets no
    full stop, as in the publications' own scripts. Only `tokenize=sacrebleu` uses sacrebleu's tokeniser for it.
    """

    tokenize: str = "13a"
    """13a; none: split at spaces; sacrebleu: 13a, but `zh` for Chinese, which keeps runs of digits and Latin letters
    together."""
    full_stop: bool = False
    """Whether hypothesis and reference end with ` .` before they are scored, in languages with spaces."""
    rouge_beta: float = 1.0
    """Beta of ROUGE-L: 1.2 is that of the MS COCO caption scorer."""
    lowercase: bool = False
    """Whether both sides are lower-cased first."""


PRESETS: dict[str, Preset] = {
    "sacrebleu": Preset(tokenize="sacrebleu"),
    "neccam": Preset(tokenize="none", full_stop=True, rouge_beta=1.2),
    "sign2gpt": Preset(tokenize="none", full_stop=True, rouge_beta=1.2),
    "gfslt": Preset(tokenize="13a"),
    "sage": Preset(tokenize="13a", full_stop=True, rouge_beta=1.2),
    "uni-sign": Preset(tokenize="13a"),
}
"""Conventions by publication. GFSLT and SAGE score against references decoded from trimmed ids, in which
`<unk>` vanishes; here the raw text is scored. Uni-Sign takes ROUGE-L from PyPI's `rouge`, which counts
distinct words and comes out higher; it is not reproduced. Sign2GPT smooths nothing, sacrebleu an order of n-grams
without a match: they differ where there is such an order."""


def score(hypotheses: Sequence[str], references: Sequence[str], language: Languages) -> dict[str, Any]:
    """Returns the scores of one hypothesis per reference, in percent.

    `bleu1`..`bleu4` (sacrebleu's tokeniser: 13a; zh for Chinese, char for other unspaced languages), `bleu1_none`..
    `bleu4_none` (split at spaces; at characters for those), `rouge_l` (beta 1), `rouge_l_beta12` (beta 1.2),
    `signature` (sacrebleu's, of `bleu4`, and the normal form) and `clips`; of several languages `languages`, the same
    by language. Raises UsageError for empty lists or unequal lengths.
    """
    pairs = _pairs(hypotheses, references, language)
    scores = _bleu(pairs, "sacrebleu") | _named(_bleu(pairs, "none"), "{}_none")
    scores["rouge_l"] = _rouge_l(pairs, beta=1.0)
    scores["rouge_l_beta12"] = _rouge_l(pairs, beta=1.2)
    scores["signature"] = _signature(pairs, "sacrebleu")
    scores["clips"] = len(references)
    if len(groups := _by_language(language)) > 1:
        scores["languages"] = {
            tag: score([hypotheses[i] for i in rows], [references[i] for i in rows], tag)
            for tag, rows in groups.items()
        }
    return scores


def score_as(
    preset: str, hypotheses: Sequence[str], references: Sequence[str], language: Languages
) -> dict[str, Any]:
    """Returns `bleu1`..`bleu4` and `rouge_l` under the conventions of a publication (a name of PRESETS), in percent.

    `preset`, `signature` and `clips` describe the count. Raises UsageError for an unknown preset.
    """
    if preset not in PRESETS:
        raise UsageError(f"no scoring preset '{preset}': one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    pairs = _pairs(hypotheses, references, language)
    if chosen.lowercase:
        pairs = [(hypothesis.lower(), reference.lower(), tag) for hypothesis, reference, tag in pairs]
    if chosen.full_stop:
        pairs = [
            pair if unspaced(pair[2]) else (_stopped(pair[0]), _stopped(pair[1]), pair[2]) for pair in pairs
        ]
    scores = _bleu(pairs, chosen.tokenize)
    scores["rouge_l"] = _rouge_l(pairs, beta=chosen.rouge_beta)
    return scores | {
        "preset": preset,
        "signature": _signature(pairs, chosen.tokenize),
        "clips": len(references),
    }


def rouge_l(
    hypotheses: Sequence[str], references: Sequence[str], language: Languages, beta: float = 1.0
) -> float:
    """Returns ROUGE-L in percent: the mean over sentences of F_beta of the longest common subsequence of words.

    F = (1 + beta^2) P R / (R + beta^2 P) (Lin 2004, equation 4); beta 1.2 is the MS COCO caption scorer's,
    which sign language translation took over. Characters stand for words in unspaced languages.
    """
    return _rouge_l(_pairs(hypotheses, references, language), beta)


def content_f1(
    hypotheses: Sequence[str], references: Sequence[str], language: Languages, settings: Text | None = None
) -> float:
    """Returns F1 over content words (the pseudo-glosses of both sides, as multisets), in percent, over the whole set.

    A language without a tagger is scored by all its words.
    """
    common = given = wanted = 0
    for hypothesis, reference, tag in _pairs(hypotheses, references, language):
        content = cached_glosser(tag, settings or Text(target="sentence"))
        h, r = Counter(content(hypothesis)), Counter(content(reference))
        common += (h & r).total()
        given += h.total()
        wanted += r.total()
    return 200.0 * common / (given + wanted) if given + wanted else 0.0


_Pairs = list[tuple[str, str, str]]
"""Hypothesis, reference, language; the texts in their normal form."""


def _pairs(hypotheses: Sequence[str], references: Sequence[str], language: Languages) -> _Pairs:
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str):
            raise UsageError(f"{name} must be a list of sentences, not one string")
    if len(hypotheses) != len(references):
        raise UsageError(
            f"{len(hypotheses)} hypotheses for {len(references)} references: one for each is needed"
        )
    if not references:
        raise UsageError("nothing to score: the list of references is empty")
    languages = [language] * len(references) if isinstance(language, str) else language
    if len(languages) != len(references):
        raise UsageError(f"{len(languages)} languages for {len(references)} references: one for each, or one")
    return [
        (normal_form(hypothesis), normal_form(reference), tag)
        for hypothesis, reference, tag in zip(hypotheses, references, languages, strict=True)
    ]


def _by_language(language: Languages) -> dict[str, list[int]]:
    """Returns the indices of the sentences of each language, the most frequent language first."""
    rows: dict[str, list[int]] = {}
    for row, tag in enumerate([] if isinstance(language, str) else language):
        rows.setdefault(tag, []).append(row)
    return dict(sorted(rows.items(), key=lambda item: (-len(item[1]), item[0])))


def _named(scores: dict[str, Any], form: str) -> dict[str, Any]:
    return {form.format(name): value for name, value in scores.items()}


def _bleu_tokenizer(tokenize: str, language: str) -> str:
    """Returns sacrebleu's name of the tokeniser of a language."""
    if tokenize != "sacrebleu":
        return "char" if unspaced(language) else tokenize
    if primary_subtag(language) in ("zh", "cmn", "yue"):
        return "zh"
    return "char" if unspaced(language) else "13a"


@functools.lru_cache
def _metric(tokenize: str, order: int = 4) -> BLEU:
    # force silences sacrebleu's warning that texts ending in ` .` look tokenised: with `full_stop` they do.
    return BLEU(max_ngram_order=order, tokenize=tokenize, force=True)


def _cut(text: str, tokenize: str, language: str) -> str:
    """Returns the tokens of a text, joined by spaces."""
    name = _bleu_tokenizer(tokenize, language)
    if name in ("none", "char"):
        return " ".join(split_words(text, language))
    return str(_metric(name).tokenizer(text))


def _bleu(pairs: _Pairs, tokenize: str) -> dict[str, Any]:
    """Returns BLEU-1 to BLEU-4 by sacrebleu, of sentences tokenised here, each by its language's tokeniser."""
    hypotheses = [_cut(hypothesis, tokenize, tag) for hypothesis, _, tag in pairs]
    references = [_cut(reference, tokenize, tag) for _, reference, tag in pairs]
    return {
        f"bleu{order}": float(_metric("none", order).corpus_score(hypotheses, [references]).score)
        for order in range(1, 5)
    }


def _signature(pairs: _Pairs, tokenize: str) -> str:
    """Returns sacrebleu's signature of BLEU-4, with every tokeniser in use and the normal form."""
    names = "+".join(sorted({_bleu_tokenizer(tokenize, tag) for _, _, tag in pairs}))
    metric = _metric("none")
    metric.corpus_score([""], [[""]])  # before it, sacrebleu does not know the number of references
    return str(metric.get_signature()).replace("tok:none", f"tok:{names}") + "|norm:nfkc"


def _stopped(text: str) -> str:
    return text if text.endswith(".") else text + " ."


def _rouge_l(pairs: _Pairs, beta: float) -> float:
    total = 0.0
    for hypothesis, reference, tag in pairs:
        h, r = split_words(hypothesis, tag), split_words(reference, tag)
        common = _longest_common_subsequence(h, r)
        if common:
            precision, recall = common / len(h), common / len(r)
            total += (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    return 100.0 * total / len(pairs)


def _longest_common_subsequence(a: list[str], b: list[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, start=1):
            above = row[j]
            row[j] = before + 1 if x == y else max(above, row[j - 1])
            before = above
    return row[-1]
