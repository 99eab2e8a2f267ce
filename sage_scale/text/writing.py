"""How languages are written: words or characters, punctuation, and one normal form for texts that are compared."""

from __future__ import annotations

import unicodedata

from sage_scale.text.languages import UNSPACED, primary_subtag

_FULL_WIDTH = str.maketrans({"?": "？", "!": "！", ":": "：", ",": "，"})
_CHINESE = frozenset({"zh", "cmn", "yue"})
# The rules that SentencePiece's `nmt_nfkc`, the normaliser of mBART and XGLM, has beside NFKC: control characters go,
# signs without a width and the separators of Unicode become spaces.
_REMOVED = (*range(0x01, 0x09), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F)
_SPACES = (0x061C, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD)
_NMT = {**dict.fromkeys(_REMOVED), **dict.fromkeys(_SPACES, " ")}


def unspaced(language: str) -> bool:
    """Returns whether a language (BCP 47) is written without spaces between words."""
    return primary_subtag(language) in UNSPACED


def split_words(sentence: str, language: str) -> list[str]:
    """Returns the words of a sentence, parted by spaces; its characters where the language is written without them."""
    return list("".join(sentence.split())) if unspaced(language) else sentence.split()


def normal_form(text: str) -> str:
    """Returns the text as a SentencePiece model with `nmt_nfkc` (mBART, XGLM) reads it, its spaces single.

    NFKC: full-width letters, digits and punctuation become those of ASCII, "…" three full stops, presentation forms of
    Arabic and half-width kana their ordinary letters, decomposed letters composed ones. Quotation marks stay.
    """
    return " ".join(unicodedata.normalize("NFKC", text.translate(_NMT)).split())


def restore_punctuation(sentence: str, language: str) -> str:
    """Returns a generated sentence with its language's punctuation, which `normal_form` takes from Chinese (Sign2GPT,
    appendix A.2): ?!:, become ？！：，; other languages stay."""
    return sentence.translate(_FULL_WIDTH) if primary_subtag(language) in _CHINESE else sentence
