"""Scores of a translated split: with intervals, by group, and against controls.

An entry of `scores.json` (`evaluation.stored`) is the mapping of `evaluation.score`, and besides:

| key | content |
|---|---|
| `version` | of the entry's form; absent in 0.1.0 |
| `intervals` | metric -> [low, high], 95 % by bootstrap over clips; also in each of `languages` |
| `macro` | of several languages: metric -> mean over languages, and `languages`, their number |
| `groups` | kind -> group -> main scores and `clips`, where there are two groups or more |
| `controls` | name -> scores of the control, and `paired`: metric -> test of the run against it |

Kinds of groups: `signer`, `words` (of the reference; characters in languages without spaces), `segments`. A test has
`difference` (the run's score minus the control's), `low`, `high` and `p`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sage_scale.evaluation.counts import Counts
from sage_scale.evaluation.metrics import by_language, figures, score_counts
from sage_scale.evaluation.presets import Pairs, pairs_of
from sage_scale.evaluation.significance import counts_interval, counts_test
from sage_scale.evaluation.stored import VERSION
from sage_scale.text import split_words

MAIN = ("bleu4", "rouge_l", "chrf")
"""Metrics that have intervals, groups and paired tests."""
WORD_BINS, SEGMENT_BINS = (5, 10, 15, 20, 30), (5, 10, 20, 40)
"""Last number of each bin but the last."""
SIGNERS = 40
"""Signers with the most clips that are scored alone."""


def split_scores(
    rows: Sequence[Mapping[str, Any]],
    controls: Mapping[str, Sequence[str]] | None = None,
    further: Mapping[str, Counts] | None = None,
) -> dict[str, Any]:
    """Returns the entry of a split, percent.

    `rows` have `hypothesis`, `reference`, `language` and, of clips, `signer` and `segments`; `controls` are
    other hypotheses by name; `further` are the counts of optional metrics by name.
    """
    hypotheses, references, languages = (
        [str(row[name]) for row in rows] for name in ("hypothesis", "reference", "language")
    )
    pairs = pairs_of(hypotheses, references, languages)
    counts = score_counts(pairs)
    entry = {"version": VERSION, **figures(counts, pairs), "intervals": _intervals(counts)}
    for name, of_metric in (further or {}).items():
        entry[name] = of_metric.score()
        entry["intervals"][name] = _interval(of_metric)
    groups = by_language(languages)
    if len(groups) > 1:
        entry["languages"] = {
            tag: {**figures(counts, pairs, some), "intervals": _intervals(counts, some)}
            for tag, some in groups.items()
        }
        entry["macro"] = {
            name: sum(scored[name] for scored in entry["languages"].values()) / len(groups) for name in MAIN
        } | {"languages": len(groups)}
    if grouped := _groups(rows, pairs, counts):
        entry["groups"] = grouped
    if controls:
        entry["controls"] = {
            name: _control(counts, texts, references, languages) for name, texts in controls.items()
        }
    return entry


def _control(
    counts: Mapping[str, Counts],
    texts: Sequence[str],
    references: Sequence[str],
    languages: Sequence[str],
) -> dict[str, Any]:
    pairs = pairs_of(texts, references, languages)
    control, groups = score_counts(pairs), by_language(languages)
    scores = figures(control, pairs)
    if len(groups) > 1:
        scores["languages"] = {tag: figures(control, pairs, some) for tag, some in groups.items()}
    return scores | {"paired": {name: asdict(counts_test(counts[name], control[name])) for name in MAIN}}


def _intervals(counts: Mapping[str, Counts], rows: Sequence[int] | None = None) -> dict[str, list[float]]:
    return {name: _interval(counts[name].of(rows)) for name in MAIN}


def _interval(counts: Counts) -> list[float]:
    found = counts_interval(counts)
    return [found.low, found.high]


def _groups(
    rows: Sequence[Mapping[str, Any]], pairs: Pairs, counts: Mapping[str, Counts]
) -> dict[str, dict[str, Any]]:
    signers: dict[str, list[int]] = {}
    words: dict[int, list[int]] = {}
    segments: dict[int, list[int]] = {}
    for number, (row, (_, reference, tag)) in enumerate(zip(rows, pairs, strict=True)):
        if signer := row.get("signer"):
            signers.setdefault(str(signer), []).append(number)
        words.setdefault(bisect_left(WORD_BINS, len(split_words(reference, tag))), []).append(number)
        if row.get("segments"):
            segments.setdefault(bisect_left(SEGMENT_BINS, len(row["segments"])), []).append(number)
    most = sorted(signers.items(), key=lambda item: (-len(item[1]), item[0]))[:SIGNERS]
    named: dict[str, dict[str, list[int]]] = {
        "signer": dict(sorted(most)),
        "words": {_bin(WORD_BINS, index): some for index, some in sorted(words.items())},
        "segments": {_bin(SEGMENT_BINS, index): some for index, some in sorted(segments.items())},
    }
    return {
        kind: {
            name: {metric: counts[metric].score(some) for metric in MAIN} | {"clips": len(some)}
            for name, some in groups.items()
        }
        for kind, groups in named.items()
        if len(groups) > 1
    }


def _bin(last: Sequence[int], index: int) -> str:
    """Returns the name of a bin, such as 6-10 or 31+."""
    first = last[index - 1] + 1 if index else 1
    return f"{first}-{last[index]}" if index < len(last) else f"{first}+"
