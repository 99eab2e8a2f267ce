"""Tables of the comparison page: scores of groups set by set, differences with their tests, controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sage_scale.evaluation.significance import Interval, Spread
from sage_scale.reporting.group_scores import (
    HELDOUT,
    METRICS,
    TESTED,
    Comparison,
    GroupScore,
    SetScores,
    sets_of,
    stored_interval,
)
from sage_scale.reporting.groups import Group, seeds_of
from sage_scale.reporting.links import hypotheses
from sage_scale.reporting.runlog import number
from sage_scale.reporting.sections import control_name

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


def bounds(low: float, high: float) -> str:
    """Returns `[-1.25, 0.55]`, with a true minus."""
    return f"[{low:.2f}, {high:.2f}]".replace("-", "\N{MINUS SIGN}")


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


def signed(value: float) -> str:
    """Returns a difference with its sign, two digits behind the point."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def p_text(p: float) -> str:
    """Returns p as `p = 0.012` or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _each(groups: Sequence[Group], name: str, keys: Sequence[str], page: Path) -> list[dict[str, Any]]:
    """Returns a row for each run: seeds, scores with their intervals over clips, links to its hypotheses."""
    split, comma, _ = name.partition(f", {HELDOUT}")
    rows = []
    for group in groups:
        for record in group.records:
            values = sets_of(record).get(name)
            if values is not None:
                rows.append({"group": group, "name": record.name, "seeds": seeds_of(record),
                             "cells": [_run_cell(values, key) for key in keys],
                             "links": hypotheses(record, f"{split}_heldout" if comma else split, page)})  # fmt: skip
    return rows


def _run_cell(values: Mapping[str, Any], key: str) -> dict[str, str] | None:
    if not number(values.get(key)):
        return None
    return {"mean": f"{float(values[key]):.2f}", "deviation": "",
            "interval": interval_text(stored_interval(values, key))}  # fmt: skip


def controls(groups: Sequence[Group], sets: Sequence[SetScores]) -> list[dict[str, Any]] | None:
    """Returns for each set the mean BLEU-4 of each control beside the runs' own."""
    tables = []
    for one in sets:
        rows: list[tuple[Group, str, dict[str, str]]] = []
        for group in groups:
            values = [found for record in group.records if (found := sets_of(record).get(one.name))]
            own = _mean([scores.get(TESTED) for scores in values])
            known = [scores["controls"] for scores in values if isinstance(scores.get("controls"), Mapping)]
            names = dict.fromkeys(str(name) for controls in known for name in controls)
            cells = {
                name: _mean([it.get(TESTED) for c in known if isinstance(it := c.get(name), Mapping)])
                for name in names
            }
            if any(cells.values()):
                rows.append((group, own, cells))
        if rows:
            names = dict.fromkeys(name for _, _, cells in rows for name in cells)
            tables.append(
                {
                    "name": one.name,
                    "columns": [control_name(name) for name in names],
                    "rows": [
                        (group, own, [cells.get(name, "") for name in names]) for group, own, cells in rows
                    ],
                }
            )
    return tables or None


def _mean(values: Sequence[Any]) -> str:
    numbers = [float(value) for value in values if number(value)]
    return f"{sum(numbers) / len(numbers):.2f}" if numbers else ""
