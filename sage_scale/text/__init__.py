"""Text: languages and pseudo-glosses; `text.tokenizer` and `text.vocabulary` bring transformers and torch with them."""

from sage_scale.text.languages import MBART50_CODES, UNSPACED, language_code, primary_subtag
from sage_scale.text.pseudogloss import PseudoGlosser, TextSettings, glosser, pseudo_glosses, words

__all__ = [
    "MBART50_CODES",
    "UNSPACED",
    "PseudoGlosser",
    "TextSettings",
    "glosser",
    "language_code",
    "primary_subtag",
    "pseudo_glosses",
    "words",
]
