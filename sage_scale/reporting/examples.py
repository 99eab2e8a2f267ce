"""Hypotheses beside references, from the best to the worst, with their differences marked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sage_scale.reporting.figures import escape
from sage_scale.reporting.runlog import RunRecord
from sage_scale.text.languages import normal_form, split_words, unspaced

EXAMPLES, ALL_EXAMPLES = 12, 400


def examples(record: RunRecord) -> dict[str, Any] | None:
    """Returns hypotheses beside references, at even steps from the best to the worst."""
    split = record.split if record.split in record.predictions else next(iter(record.predictions), "")
    spoken = str(record.setting("corpus.language", ""))
    rows = [{"language": spoken, **row} for row in record.predictions.get(split, [])]  # 0.1.0 wrote none
    unlike = {(str(row["reference"]), str(row["hypothesis"])): row for row in reversed(rows)}
    chosen = best_to_worst(list(unlike.values()), EXAMPLES)
    if not rows:
        return None
    return {
        "split": split, "count": len(rows), "rows": rows[:ALL_EXAMPLES], "chosen": [_example(row) for row in chosen],
    }  # fmt: skip


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    reference, hypothesis = differences(str(row["reference"]), str(row["hypothesis"]), spaced(row))
    notes = [f"{in_common(row):.0%} in common"]
    if row.get("signer"):
        notes.append(f"signer {row['signer']}")
    if isinstance(row.get("segments"), list):
        notes.append(f"{len(row['segments'])} segments")
    glosses = row.get("pseudo_glosses")
    return {"language": row["language"], "reference": reference, "hypothesis": hypothesis, "notes": notes,
            "glosses": glosses if isinstance(glosses, list) else []}  # fmt: skip


def best_to_worst(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Returns `count` clips at even steps from the best to the worst, by the share of common words."""
    ranked = sorted(rows, key=in_common, reverse=True)
    count = min(count, len(ranked))
    return [ranked[round(index * (len(ranked) - 1) / max(count - 1, 1))] for index in range(count)]


def in_common(row: Mapping[str, Any]) -> float:
    """Returns `similarity` of a clip's hypothesis and reference."""
    return similarity(str(row["hypothesis"]), str(row["reference"]), spaced(row))


def spaced(row: Mapping[str, Any]) -> bool:
    """Returns whether a clip's language has spaces between words, or its reference where no language is known."""
    language = str(row.get("language", ""))
    return not unspaced(language) if language else " " in str(row["reference"])


def similarity(hypothesis: str, reference: str, spaced: bool = True) -> float:
    """Returns the share of words (or characters, without spaces) in common, in order: 2 M / (words of both)."""
    a, b = _words(hypothesis, spaced), _words(reference, spaced)
    return _matcher(a, b).ratio()


def differences(reference: str, hypothesis: str, spaced: bool = True) -> tuple[Markup, Markup]:
    """Returns both sentences as HTML, with <mark> on words that the other lacks in the normal form of the scores."""
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
