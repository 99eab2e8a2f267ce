"""Hypotheses beside references, with what differs marked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from sage_scale.reporting.markup import escape, scroll, section
from sage_scale.reporting.runlog import RunRecord
from sage_scale.text.languages import normal_form, split_words, unspaced

EXAMPLES = 12
ALL_EXAMPLES = 400


def examples(record: RunRecord) -> str:
    """Hypotheses beside references, from the best to the worst, with what differs marked."""
    split = record.split if record.split in record.predictions else next(iter(record.predictions), "")
    rows = record.predictions.get(split, [])
    if not rows:
        return ""
    spoken = str(record.setting("corpus.language", ""))
    rows = [{"language": spoken, **row} for row in rows]  # 0.1.0 wrote no language
    unlike = {(str(row["reference"]), str(row["hypothesis"])): row for row in reversed(rows)}
    ranked = sorted(unlike.values(), key=lambda row: -_in_common(row))
    count = min(EXAMPLES, len(ranked))
    chosen = [ranked[round(i * (len(ranked) - 1) / max(count - 1, 1))] for i in range(count)]
    items = "".join(_example(row) for row in chosen)
    intro = (
        f"{count} of {len(rows)} clips of <code>{escape(split)}</code>, at even steps from the best to the worst "
        '(share of common words in order). <mark class="lost">Only in the reference</mark>, '
        '<mark class="added">only in the hypothesis</mark>.'
    )
    everything = "".join(
        f"<tr><td>{n}</td><td{lang(row)}>{escape(row['reference'])}</td>"
        f"<td{lang(row)}>{escape(row['hypothesis'])}</td></tr>"
        for n, row in enumerate(rows[:ALL_EXAMPLES], start=1)
    )
    count_all = (
        f"All {len(rows)}" if len(rows) <= ALL_EXAMPLES else f"The first {ALL_EXAMPLES} of {len(rows)}"
    )
    head = '<tr><th scope="col">clip</th><th scope="col">reference</th><th scope="col">hypothesis</th></tr>'
    table = scroll(f'<table class="all"><thead>{head}</thead><tbody>{everything}</tbody></table>')
    details = f"<details><summary>{count_all} translations</summary>{table}</details>"
    return section("examples", "Examples", f'<p>{intro}</p><ol class="examples">{items}</ol>{details}')


def lang(row: Mapping[str, Any]) -> str:
    """The attribute `lang` of a clip's texts; empty where its language is not known."""
    return f' lang="{escape(row["language"])}"' if row.get("language") else ""


def _example(row: Mapping[str, Any]) -> str:
    hypothesis, reference = str(row["hypothesis"]), str(row["reference"])
    reference_html, hypothesis_html = differences(reference, hypothesis, spaced(row))
    glosses = row.get("pseudo_glosses")
    chips = (
        "".join(f'<span class="chip">{escape(g)}</span>' for g in glosses)
        if isinstance(glosses, list)
        else ""
    )
    notes = [f"{_in_common(row):.0%} in common"]
    if row.get("signer"):
        notes.append(f"signer {escape(row['signer'])}")
    if isinstance(row.get("segments"), list):
        notes.append(f"{len(row['segments'])} segments")
    lines = [
        ("reference", f"<span{lang(row)}>{reference_html}</span>"),
        ("hypothesis", f"<span{lang(row)}>{hypothesis_html or '<em>no words</em>'}</span>"),
    ]
    if chips:
        lines.append(("pseudo-glosses", f"<span{lang(row)}>{chips}</span>"))
    inside = "".join(f'<div class="what">{what}</div><div>{html}</div>' for what, html in lines)
    return f'<li>{inside}<div class="match">{" · ".join(notes)}</div></li>'


def _in_common(row: Mapping[str, Any]) -> float:
    return similarity(str(row["hypothesis"]), str(row["reference"]), spaced(row))


def spaced(row: Mapping[str, Any]) -> bool:
    """Whether a clip's language has spaces between words, or its reference where no language is known."""
    language = str(row.get("language", ""))
    return not unspaced(language) if language else " " in str(row["reference"])


def similarity(hypothesis: str, reference: str, spaced: bool = True) -> float:
    """Share of words (characters where a language has no spaces) in common, in order: 2 M / (words of both)."""
    a, b = _words(hypothesis, spaced), _words(reference, spaced)
    return _matcher(a, b).ratio()


def differences(reference: str, hypothesis: str, spaced: bool = True) -> tuple[str, str]:
    """Both sentences as HTML, words that the other lacks in <mark>; compared in the normal form of the scores."""
    a, b = _words(reference, spaced), _words(hypothesis, spaced)
    left, right = [], []
    for kind, a0, a1, b0, b1 in _matcher(a, b).get_opcodes():
        glue = " " if spaced else ""
        gone, come = escape(glue.join(a[a0:a1])), escape(glue.join(b[b0:b1]))
        same = kind == "equal"
        if gone:
            left.append(gone if same else f'<mark class="lost">{gone}</mark>')
        if come:
            right.append(come if same else f'<mark class="added">{come}</mark>')
    glue = " " if spaced else ""
    return glue.join(left), glue.join(right)


def _matcher(a: list[str], b: list[str]) -> difflib.SequenceMatcher[str]:
    first, second = ([normal_form(word) or word for word in words] for words in (a, b))
    return difflib.SequenceMatcher(None, first, second, autojunk=False)


def _words(text: str, spaced: bool) -> list[str]:
    return split_words(text, "" if spaced else "zh")
