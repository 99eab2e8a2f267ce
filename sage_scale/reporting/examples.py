"""Hypotheses beside references: the share of common words, and marks on the others."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sage_scale.reporting.figures import escape
from sage_scale.text.languages import normal_form, split_words, unspaced


def best_to_worst(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Returns `count` clips at even steps from the best to the worst, by the share of common words."""
    ranked = sorted(rows, key=in_common, reverse=True)
    count = min(count, len(ranked))
    return [ranked[round(place * (len(ranked) - 1) / max(count - 1, 1))] for place in range(count)]


def in_common(row: Mapping[str, Any]) -> float:
    """Returns `similarity` of a clip's hypothesis and reference."""
    return similarity(str(row["hypothesis"]), str(row["reference"]), spaced(row))


def spaced(row: Mapping[str, Any]) -> bool:
    """Whether a clip's language has spaces between words, or its reference where no language is known."""
    language = str(row.get("language", ""))
    return not unspaced(language) if language else " " in str(row["reference"])


def similarity(hypothesis: str, reference: str, spaced: bool = True) -> float:
    """Share of words (characters where a language has no spaces) in common, in order: 2 M / (words of both)."""
    a, b = _words(hypothesis, spaced), _words(reference, spaced)
    return _matcher(a, b).ratio()


def differences(reference: str, hypothesis: str, spaced: bool = True) -> tuple[Markup, Markup]:
    """Both sentences as HTML, words that the other lacks in <mark>; compared in the normal form of the scores."""
    a, b = _words(reference, spaced), _words(hypothesis, spaced)
    left, right, glue = [], [], " " if spaced else ""
    mark = Markup('<mark class="{}">{}</mark>')
    for kind, a0, a1, b0, b1 in _matcher(a, b).get_opcodes():
        gone, come = escape(glue.join(a[a0:a1])), escape(glue.join(b[b0:b1]))
        if gone:
            left.append(gone if kind == "equal" else mark.format("lost", gone))
        if come:
            right.append(come if kind == "equal" else mark.format("added", come))
    return Markup(glue).join(left), Markup(glue).join(right)


def _matcher(a: list[str], b: list[str]) -> difflib.SequenceMatcher[str]:
    first, second = ([normal_form(word) or word for word in words] for words in (a, b))
    return difflib.SequenceMatcher(None, first, second, autojunk=False)


def _words(text: str, spaced: bool) -> list[str]:
    return split_words(text, "" if spaced else "zh")
