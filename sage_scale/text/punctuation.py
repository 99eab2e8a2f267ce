"""Chinese punctuation, which XGLM's tokenizer turns into that of ASCII, brought back (Sign2GPT, appendix A.2)."""

from __future__ import annotations

from sage_scale.text.languages import primary_subtag

_FULL_WIDTH = str.maketrans({"?": "？", "!": "！", ":": "：", ",": "，"})
_CHINESE = frozenset({"zh", "cmn", "yue"})


def restore_punctuation(sentence: str, language: str) -> str:
    """A generated sentence with its language's punctuation: for Chinese ?!:, become ？！：，; others stay."""
    return sentence.translate(_FULL_WIDTH) if primary_subtag(language) in _CHINESE else sentence
