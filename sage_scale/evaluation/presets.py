"""Scoring conventions: normal form, words, tokenisers, and the conventions of publications.

Both sides are compared in one normal form (`text.languages.normal_form`), which the signature names: mBART and XGLM
write `,` for the `，` of a Chinese reference, which would count as an error.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sacrebleu.metrics.bleu import BLEU

from sage_scale.errors import UsageError
from sage_scale.text import normal_form, primary_subtag, split_words, unspaced

Languages = str | Sequence[str]
"""BCP 47: one language of all sentences, or one of each."""
Pairs = list[tuple[str, str, str]]
"""Hypothesis, reference, language; the texts in their normal form."""


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
    smooth: str = "exp"
    """BLEU where an order of n-grams has no match: exp, as in sacrebleu; none: 0."""
    rouge: str = "lin"
    """Form of ROUGE-L (`evaluation.rouge`): lin, seq2seq, package."""
    rouge_beta: float = 1.0
    """Beta of the form `lin`: 1.2 is that of the MS COCO caption scorer."""
    lowercase: bool = False
    """Whether both sides are lower-cased first."""

    def prepare(self, pairs: Pairs) -> Pairs:
        """Returns the pairs with the full stop and the case of this convention."""
        if self.lowercase:
            pairs = [(hypothesis.lower(), reference.lower(), tag) for hypothesis, reference, tag in pairs]
        if self.full_stop:
            pairs = [
                pair if unspaced(pair[2]) else (_stopped(pair[0]), _stopped(pair[1]), pair[2])
                for pair in pairs
            ]
        return pairs


PRESETS: dict[str, Preset] = {
    "sacrebleu": Preset(tokenize="sacrebleu"),
    "neccam": Preset(tokenize="none", smooth="none", full_stop=True, rouge_beta=1.2),
    "sign2gpt": Preset(tokenize="none", smooth="none", full_stop=True, rouge_beta=1.2),
    "two-stream": Preset(tokenize="none", smooth="none", full_stop=True, rouge="seq2seq"),
    "gfslt": Preset(tokenize="13a", rouge_beta=1.2),
    "sage": Preset(tokenize="13a", full_stop=True, rouge_beta=1.2),
    "uni-sign": Preset(tokenize="13a", rouge="package"),
}
"""Conventions by publication: neccam/slt, ryanwongsa/Sign2GPT, FangyunWei/SLRT (TwoStream-SLT),
zhoubenjia/GFSLT-VLP (ROUGE-L by nlg-eval), SAGE, ZechengLi19/Uni-Sign. GFSLT and SAGE score against references decoded
from trimmed ids, in which `<unk>` vanishes; here the raw text is scored, in one normal form."""


def preset_named(name: str) -> Preset:
    """Returns a preset by its name. Raises UsageError for an unknown one."""
    if name not in PRESETS:
        raise UsageError(f"no scoring preset '{name}': one of {', '.join(PRESETS)}")
    return PRESETS[name]


def pairs_of(hypotheses: Sequence[str], references: Sequence[str], language: Languages) -> Pairs:
    """Returns hypotheses and references in their normal form, with each one's language.

    Raises UsageError for a string in place of a list, for unequal lengths and for empty lists.
    """
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


def bleu_tokenizer(tokenize: str, language: str) -> str:
    """Returns sacrebleu's name of the tokeniser of a language under `Preset.tokenize`."""
    if tokenize != "sacrebleu":
        return "char" if unspaced(language) else tokenize
    if primary_subtag(language) in ("zh", "cmn", "yue"):
        return "zh"
    return "char" if unspaced(language) else "13a"


def cut(text: str, tokenize: str, language: str) -> str:
    """Returns the tokens of a text, joined by spaces."""
    name = bleu_tokenizer(tokenize, language)
    if name in ("none", "char"):
        return " ".join(split_words(text, language))
    return str(_tokenizer(name)(text))


@functools.lru_cache
def _tokenizer(name: str) -> Any:
    return BLEU(tokenize=name).tokenizer


def _stopped(text: str) -> str:
    return text if text.endswith(".") else text + " ."
