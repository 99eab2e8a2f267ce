"""Tables of the comparison page: scores of groups set by set, differences with their tests, controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sage_scale.evaluation.significance import Interval, Spread
from sage_scale.reporting.group_scores import (
    LEVEL,
    MOST_GROUPS,
    TESTED,
    Comparison,
    GroupScore,
    SetScores,
)
from sage_scale.reporting.groups import Group, seeds_of, varying_seeds
from sage_scale.reporting.links import hypotheses
from sage_scale.reporting.runlog import number
from sage_scale.reporting.score_values import (
    METRICS,
    Scored,
    bounds,
    breakdowns,
    control_name,
    languages,
    p_text,
    score_cell,
    scored,
    sets_of,
    signed,
    split_of,
    stored_test,
)

MOST_PAIRS = 6
"""Pairs of groups that are listed; more are drawn up as a matrix."""


def score_tables(
    groups: Sequence[Group], sets: Sequence[SetScores], page: Path
) -> list[dict[str, Any]] | None:
    """Returns for each set its table of groups, the differences between them, and its table of runs."""
    return [
        {
            "name": one.name,
            "clips": " or ".join(f"{count:,}" for count in one.clips),
            "metrics": (keys := _metrics(one)),
            "names": METRICS,
            "rows": [
                {
                    "group": group,
                    "runs": _runs(group, count),
                    "cells": [_cell(scores.get(key)) for key in keys],
                }
                for group, count, scores in one.rows
            ],
            "tests": _tests(one),
            "untested": MOST_GROUPS if len(groups) > MOST_GROUPS else 0,
            "groups": groups,
            "breakdown": breakdown(groups, one.name),
            "each": _each(groups, one.name, keys, page),
        }
        for one in sets
    ] or None


def _metrics(one: SetScores) -> list[str]:
    return [key for key in METRICS if any(key in scores for _, _, scores in one.rows)]


def _runs(group: Group, scored: int) -> str:
    of = len(group.records)
    return str(of) if scored == of else f"{scored} of {of}"


def _cell(score: GroupScore | None) -> dict[str, str] | None:
    if score is None:
        return None
    spread = score.spread
    return {"mean": f"{spread.mean:.2f}", "deviation": "" if spread.deviation is None else f"{spread.deviation:.2f}",
            "interval": interval_text(score.interval or spread)}  # fmt: skip


def interval_text(of: Interval | Spread | None) -> str:
    """Returns an interval as `[21.3, 24.0]`; empty where there is none."""
    return "" if of is None or of.low is None or of.high is None else bounds(of.low, of.high)


def _tests(one: SetScores) -> dict[str, Any] | None:
    """Returns the differences of a set: a list of few pairs, a matrix of many."""
    if not one.comparisons:
        return None
    tested = [comparison for comparison in one.comparisons if comparison.test]
    several = any(comparison.pairs > 1 for comparison in tested)
    values: dict[str, Any] = {"metric": METRICS[TESTED], "count": len(tested), "several": several}
    if len(one.comparisons) <= MOST_PAIRS:
        return values | {"pairs": [_difference(comparison) for comparison in one.comparisons]}
    groups = list(dict.fromkeys(group.letter for c in one.comparisons for group in (c.a, c.b)))
    by_letters = {(c.a.letter, c.b.letter): c for c in one.comparisons}
    labels = {group.letter: group.label for c in one.comparisons for group in (c.a, c.b)}
    matrix = []
    for row in groups:
        cells: list[dict[str, Any] | None] = []
        for column in groups:
            if (row, column) in by_letters:
                cells.append(_difference(by_letters[row, column]))
            elif (column, row) in by_letters:
                cells.append(_difference(by_letters[column, row], -1))
            else:
                cells.append(None)
        matrix.append((row, labels[row], cells))
    return values | {"letters": groups, "matrix": matrix}


def _difference(one: Comparison, sign: int = 1) -> dict[str, Any]:
    test = one.test
    shown: dict[str, Any] = {"a": one.a, "b": one.b, "why": one.why, "pairs": one.pairs,
                             "significant": one.significant}  # fmt: skip
    if test is None or one.p is None:
        return shown
    low, high = sorted((sign * test.low, sign * test.high))
    return shown | {"difference": signed(sign * test.difference), "interval": bounds(low, high),
                    "p": p_text(one.p)}  # fmt: skip


def _each(groups: Sequence[Group], name: str, keys: Sequence[str], page: Path) -> list[dict[str, Any]]:
    """Returns a row for each run: seeds, scores with their intervals over clips, links to its hypotheses."""
    rows, varying = [], varying_seeds(groups)
    for group in groups:
        for record in group.records:
            values = sets_of(record).get(name)
            if values is not None:
                rows.append({"group": group, "name": record.name, "seeds": seeds_of(record, varying),
                             "cells": [score_cell(values, key) for key in keys],
                             "links": hypotheses(record, split_of(name), page)})  # fmt: skip
    return rows


def breakdown(groups: Sequence[Group], name: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Returns for each kind of groups of clips (language, signer, ...) a row a group of clips: its number of clips and
    the mean BLEU-4 of each group of runs."""
    runs = [[_kinds(values) for values in _entries(group, name)] for group in groups]
    titles = dict.fromkeys(title for some in runs for kinds in some for title in kinds)
    tables = []
    for title in titles:
        tables_of_runs = [[dict(kinds.get(title, [])) for kinds in some] for some in runs]
        names = dict.fromkeys(part for some in tables_of_runs for table in some for part in table)
        rows = []
        for part in names:
            found = [[table[part] for table in some if part in table] for some in tables_of_runs]
            clips = dict.fromkeys(it["clips"] for some in found for it in some if number(it.get("clips")))
            rows.append({"name": part, "clips": " or ".join(f"{count:,}" for count in clips),
                         "cells": [_mean([it[TESTED] for it in some]) for some in found]})  # fmt: skip
        tables.append((title, rows))
    return tables


def _kinds(values: Mapping[str, Any]) -> dict[str, Scored]:
    spoken = languages(values)
    return ({"Language": spoken} if spoken else {}) | dict(breakdowns(values))


def controls(groups: Sequence[Group], sets: Sequence[SetScores]) -> list[dict[str, Any]] | None:
    """Returns for each set the mean BLEU-4 of each control beside the runs' own, and how many runs beat it."""
    tables = []
    for one in sets:
        runs = [(group, _entries(group, one.name)) for group in groups]
        names = dict.fromkeys(
            name for _, some in runs for it in some for name, _ in scored(it.get("controls"))
        )
        rows = []
        for group, some in runs:
            of_runs = [dict(scored(it.get("controls"))) for it in some]
            cells = [_control([table[name] for table in of_runs if name in table]) for name in names]
            if any(cells):
                rows.append((group, _mean([it.get(TESTED) for it in some]), cells))
        if rows:
            tables.append({"name": one.name, "columns": [control_name(name) for name in names], "rows": rows})
    return tables or None


def _control(found: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Returns a control's mean, and how many of the runs are significantly better where they were tested."""
    if not found:
        return None
    tests = [test for it in found if (test := stored_test(it))]
    beaten = sum(test.difference > 0 and test.p < LEVEL for test in tests)
    return _mean([it[TESTED] for it in found]), f"beaten by {beaten} of {len(tests)}" if tests else ""


def _entries(group: Group, name: str) -> list[Mapping[str, Any]]:
    """Returns the scores of a group's runs on a set."""
    return [found for record in group.records if (found := sets_of(record).get(name))]


def _mean(values: Sequence[Any]) -> str:
    numbers = [float(value) for value in values if number(value)]
    return f"{sum(numbers) / len(numbers):.2f}" if numbers else ""
