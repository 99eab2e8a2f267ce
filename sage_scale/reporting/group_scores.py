"""Scores of groups of runs, set by set: spread over seeds, interval, and tests of the differences between groups.

A set is a split, or the unseen signers of one; a row never mixes two. A test pairs runs by seeds and clips by keys.
Where the clips differ there is no test.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sage_scale.evaluation.counts import Counts, counts_of
from sage_scale.evaluation.presets import pairs_of
from sage_scale.evaluation.significance import (
    Interval,
    PairedTest,
    Spread,
    counts_test,
    counts_test_over_seeds,
    over_seeds,
)
from sage_scale.reporting.groups import Group, seeds_of
from sage_scale.reporting.runlog import RunRecord, number
from sage_scale.reporting.score_values import METRICS, sets_of, split_of, stored_interval

TESTED = "bleu4"
"""The score whose differences are tested."""
LEVEL = 0.05
MOST_GROUPS = 26
"""Groups whose differences are tested, 325 tests: of more there are none."""


@dataclass(frozen=True, kw_only=True)
class GroupScore:
    """One score of a group on one set."""

    spread: Spread
    values: list[float]
    """Of each run that has it."""
    interval: Interval | None
    """Of a single run: over clips."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A difference between two groups on one set."""

    a: Group
    b: Group
    test: PairedTest | None
    pairs: int
    """Pairs of runs that were compared."""
    why: str = ""
    """Reason why there is no test."""
    p: float | None = None
    """p after Holm's correction for all tests of the set."""

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < LEVEL


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """Scores of all groups on one set."""

    name: str
    clips: list[int]
    """Numbers of clips of the runs; one where all runs were scored on as many."""
    rows: list[tuple[Group, int, Mapping[str, GroupScore]]]
    """Group, number of runs that were scored, and its scores by metric."""
    comparisons: list[Comparison]


def rows_of(record: RunRecord, name: str) -> list[dict[str, Any]]:
    """Returns a run's hypotheses of a set, as in `predictions/`; empty where there are none."""
    return record.predictions.get(split_of(name), [])


def set_scores(
    groups: Sequence[Group], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[SetScores]:
    """Returns the scores of each set that a run was scored on; `progress` is told the tests done and in all."""
    by_run = {id(record): sets_of(record) for group in groups for record in group.records}
    names = dict.fromkeys(name for sets in by_run.values() for name in sets)
    found: list[SetScores] = []
    most = len(names) * math.comb(len(groups), 2)  # at most: a group may lack a set
    done = itertools.count(1)
    for name in names:
        rows: list[tuple[Group, int, Mapping[str, GroupScore]]] = []
        clips: set[int] = set()
        for group in groups:
            runs = [record for record in group.records if name in by_run[id(record)]]
            scored = [by_run[id(record)][name] for record in runs]
            clips |= {int(values["clips"]) for values in scored if number(values.get("clips"))}
            metrics = {key: score for key in METRICS if (score := _group_score(runs, scored, key))}
            rows.append((group, len(runs), metrics))
        scored_groups = [group for group, runs, _ in rows if runs]
        found.append(
            SetScores(
                name=name,
                clips=sorted(clips),
                rows=rows,
                comparisons=comparisons(scored_groups, name, lambda: progress(next(done), most)),
            )
        )
    return found


def _group_score(
    runs: Sequence[RunRecord], scored: Sequence[Mapping[str, Any]], key: str
) -> GroupScore | None:
    values = [float(values[key]) for values in scored if number(values.get(key))]
    if not values:
        return None
    interval = stored_interval(scored[0], key) if len(runs) == 1 else None
    return GroupScore(spread=over_seeds(values), values=values, interval=interval)


def comparisons(
    groups: Sequence[Group], name: str, tested: Callable[[], None] = lambda: None
) -> list[Comparison]:
    """Returns the tests of all pairs of groups on a set, with Holm's correction (1979); of too many groups none."""
    if len(groups) > MOST_GROUPS:
        return []
    clips = {id(record): _Clips.of(record, name) for group in groups for record in group.records}
    found = []
    for a, b in itertools.combinations(groups, 2):
        found.append(_comparison(a, b, name, clips))
        tested()
    values = sorted((one.test.p, at) for at, one in enumerate(found) if one.test)
    corrected, least = dict[int, float](), 0.0
    for rank, (p, at) in enumerate(values):
        least = max(least, min(1.0, p * (len(values) - rank)))
        corrected[at] = least
    return [replace(one, p=corrected.get(at)) for at, one in enumerate(found)]


def _comparison(a: Group, b: Group, name: str, clips: Mapping[int, _Clips]) -> Comparison:
    """Returns the test of two groups: over seeds and clips, or over clips alone where one pair of runs is compared."""
    pairs = paired_runs(a, b, name)
    if not pairs:
        return Comparison(a=a, b=b, test=None, pairs=0, why="no hypotheses of both")
    first, second = ([clips[id(pair[side])] for pair in pairs] for side in (0, 1))
    if any(one.truth != first[0].truth for one in (*first, *second)):
        return Comparison(a=a, b=b, test=None, pairs=len(pairs), why="their clips differ")
    if len(pairs) == 1:
        test = counts_test(first[0].counts, second[0].counts)
    else:
        test = counts_test_over_seeds([one.counts for one in first], [one.counts for one in second])
    return Comparison(a=a, b=b, test=test, pairs=len(pairs))


@dataclass(frozen=True)
class _Clips:
    """A run's hypotheses of a set, in the order of the clips' keys."""

    hypotheses: list[str]
    truth: list[tuple[str, str, str]]
    """Key, reference, language."""

    @classmethod
    def of(cls, record: RunRecord, name: str) -> _Clips:
        """Returns the hypotheses of a run."""
        spoken = str(record.setting("corpus.language", ""))
        rows = sorted(
            (
                str(row.get("key", number)),
                str(row["reference"]),
                str(row.get("language") or spoken),
                str(row["hypothesis"]),
            )
            for number, row in enumerate(rows_of(record, name))
        )
        return cls([row[3] for row in rows], [row[:3] for row in rows])

    @functools.cached_property
    def counts(self) -> Counts:
        """The counts of the tested score, made once."""
        _, references, languages = zip(*self.truth, strict=True)
        return counts_of(TESTED, pairs_of(self.hypotheses, references, languages))


def paired_runs(a: Group, b: Group, name: str) -> list[tuple[RunRecord, RunRecord]]:
    """Returns runs of two groups with hypotheses of a set, paired by their seeds; in order where they share none."""
    first, second = ([record for record in group.records if rows_of(record, name)] for group in (a, b))
    of_seeds = {seeds_of(record): record for record in second}
    shared = [(record, of_seeds[seeds_of(record)]) for record in first if seeds_of(record) in of_seeds]
    return shared or list(zip(first, second, strict=False))
