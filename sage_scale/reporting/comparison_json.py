"""The comparison's tables as one JSON object, for programs (`report --json`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sage_scale.evaluation.significance import Interval, Spread
from sage_scale.reporting import scales
from sage_scale.reporting.group_scores import TESTED, Comparison, GroupScore, SetScores, set_scores
from sage_scale.reporting.groups import Group, differing, grouped, seeds_of
from sage_scale.reporting.runlog import RunRecord, read_runs
from sage_scale.reporting.side_by_side import budget


def compared(
    runs: Sequence[str | Path | RunRecord], progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Returns `groups` (runs, their missing parts, seeds, values of the differing keys) and `scores` by set: of each
    group mean, deviation and interval by metric, of each run its scores, and the `tests` of differences.

    Raises UsageError where one of `runs` is no run folder.
    """
    groups = grouped(read_runs(runs))
    keys = differing(groups)
    described = [
        _group(group, {key: values[at] for key, values in keys.items()}) for at, group in enumerate(groups)
    ]
    return {"groups": described, "scores": {one.name: _set(one) for one in set_scores(groups, progress)}}


def _group(group: Group, keys: dict[str, Any]) -> dict[str, Any]:
    runs = [
        {"name": record.name, "folder": str(record.folder), "model": record.spec.title, "seeds": seeds_of(record),
         "tokens": budget(record), "missing": [{"part": part, "why": why} for part, why in record.missing],
         "temperature": {
             course.key: {"start": course.start, "end": course.end, "steps": course.steps, "clamped": course.clamped}
             for log in [record.logs.get("pretrain")] if log for course in scales.courses(record, log)}}
        for record in group.records
    ]  # fmt: skip
    return {"letter": group.letter, "name": group.label, "recipe": keys, "runs": runs}


def _set(one: SetScores) -> dict[str, Any]:
    groups = [
        {
            "group": group.letter,
            "runs": count,
            "scores": {key: _score(score) for key, score in scores.items()},
        }
        for group, count, scores in one.rows
    ]
    return {
        "clips": one.clips,
        "groups": groups,
        "tests": [_test(comparison) for comparison in one.comparisons],
    }


def _score(score: GroupScore) -> dict[str, Any]:
    bounds: Spread | Interval = score.interval or score.spread
    return {"mean": score.spread.mean, "deviation": score.spread.deviation, "low": bounds.low, "high": bounds.high,
            "interval_over": "clips" if score.interval else "seeds" if bounds.low is not None else None,
            "values": score.values}  # fmt: skip


def _test(one: Comparison) -> dict[str, Any]:
    found: dict[str, Any] = {"a": one.a.letter, "b": one.b.letter, "score": TESTED, "pairs": one.pairs}
    if one.test is None:
        return found | {"not_tested": one.why}
    test = one.test
    return found | {"difference": test.difference, "low": test.low, "high": test.high, "p": test.p, "p_holm": one.p,
                    "significant": one.significant}  # fmt: skip
