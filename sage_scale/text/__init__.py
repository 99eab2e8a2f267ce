"""Text: languages and pseudo-glosses; `text.tokenizer` and `text.vocabulary` bring transformers and torch with them."""

from sage_scale.deprecated import moved_module
from sage_scale.text.languages import (
    MBART50_CODES,
    UNSPACED,
    mbart50_code,
    normal_form,
    primary_subtag,
    split_words,
    unspaced,
)
from sage_scale.text.pseudogloss import PseudoGlosser, TextSettings, cached_glosser, pseudo_glosses, words

prototypes, expansion = moved_module(f"{__name__}.prototypes"), moved_module(f"{__name__}.expansion")
