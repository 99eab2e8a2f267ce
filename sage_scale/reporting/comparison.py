"""Several runs on one page: groups of one recipe, the keys that tell them apart, scores with tests, budgets, curves.

Runs are fairly compared where they saw the same dataset and as many tokens; the page says whether they did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sage_scale.errors import UsageError
from sage_scale.reporting import scales
from sage_scale.reporting.examples import EXAMPLES, best_to_worst, differences, spaced
from sage_scale.reporting.group_curves import charts, legend
from sage_scale.reporting.group_scores import TESTED, SetScores, set_scores
from sage_scale.reporting.groups import Group, differing, grouped, seeds_of, varying_seeds
from sage_scale.reporting.page import Missing, document, html, readable, write_page
from sage_scale.reporting.runlog import RunRecord, read_runs
from sage_scale.reporting.score_tables import controls, score_tables
from sage_scale.reporting.score_values import METRICS
from sage_scale.reporting.side_by_side import fairness, side_by_side
from sage_scale.untrusted.display import shortened

MOST_KEYS = 20
"""Recipe keys of an open table; of more, the table is folded."""
LONGEST_VALUE = 60
TEMPLATE = "reporting/templates/comparison.html"


def write_comparison(
    runs: Sequence[str | Path | RunRecord],
    out: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write the page of two or more runs to `out` (comparison.html in the first one unless given), atomically.

    `progress` is told the tests done and in all. Raises UsageError where one of them is no run folder, StorageError
    where the page cannot be written.
    """
    records = read_runs(runs)
    groups = grouped(records)
    if sum(len(group.records) for group in groups) < 2:
        raise UsageError("a comparison needs two runs or more")
    page = Path(out) if out else records[0].folder / "comparison.html"
    return write_page(render(groups, page, progress), page)


def render(
    groups: Sequence[Group], page: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> str:
    """Returns the whole page as text; its links start at the folder of `page`."""
    missing: Missing = []
    sets: list[SetScores] = readable(lambda: set_scores(groups, progress), [], missing, "scores")

    def part(anchor: str, name: str, make: Callable[[], Any]) -> tuple[str, str, Markup]:
        shown = readable(lambda: html(anchor, make(), TEMPLATE), Markup(), missing, name.lower())
        return anchor, name, shown

    parts = [
        part("fair", "Equal conditions", lambda: fairness(groups)),
        part("keys", "Recipes", lambda: recipe_keys(groups)),
        part("scores", "Scores", lambda: score_tables(groups, sets, page)),
        part("controls", "Controls", lambda: controls(groups, sets)),
        part("table", "Side by side", lambda: side_by_side(groups, missing)),
        part("curves", "Training", lambda: curves(groups, sets)),
        part("examples", "Examples", lambda: examples(groups)),
    ]
    return document(title(groups), html("about_runs", groups, TEMPLATE), Markup(), parts, missing)


def title(groups: Sequence[Group]) -> str:
    """Returns the names of few groups, else their number."""
    if len(groups) <= 3 and len(groups) > 1:
        names = [group.label for group in groups]
        return " and ".join([", ".join(names[:-1]), names[-1]])
    runs = sum(len(group.records) for group in groups)
    return f"{runs} runs of {len(groups)} recipe{'s' if len(groups) > 1 else ''}"


def recipe_keys(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Returns the recipe keys that differ between groups, and the seeds of each group's runs."""
    rows = [(key, list(map(value_text, values))) for key, values in differing(groups).items()]
    varying = varying_seeds(groups)
    seeds = [_joined([seeds_of(record, varying) for record in group.records]) for group in groups]
    runs = [len(group.records) for group in groups]
    return {"groups": groups, "rows": rows, "seeds": seeds, "runs": runs, "folded": len(rows) > MOST_KEYS}


def _joined(seeds: Sequence[str]) -> str:
    known = list(filter(None, seeds))
    return ("; " if any("," in text for text in known) else ", ").join(known)


def value_text(value: Any) -> str:
    """Returns a value of a recipe as YAML writes it on one line; of a long one the beginning."""
    if value is None:
        return ""
    if isinstance(value, str):
        return shortened(value, LONGEST_VALUE) if value else '""'
    return shortened(json.dumps(value, ensure_ascii=False, default=str), LONGEST_VALUE)


def curves(groups: Sequence[Group], sets: Sequence[SetScores]) -> dict[str, Any] | None:
    """Returns the charts, and each group's course of the temperature beside its score."""
    drawn = charts(groups)
    bands = len(groups) > 1 and any(len(group.records) > 1 for group in groups)
    values = {
        "charts": drawn,
        "legend": legend(groups),
        "bands": bands,
        "temperature": temperature(groups, sets),
    }
    return values if drawn else None


def temperature(groups: Sequence[Group], sets: Sequence[SetScores]) -> dict[str, Any] | None:
    """Returns start, end and share of clamped steps of each scale, bias and temperature, means of a group's runs, and
    the group's score on the first set."""
    found = {
        group.letter: [
            {course.key: course for course in scales.courses(record, record.logs["pretrain"])}
            for record in group.records if "pretrain" in record.logs
        ]
        for group in groups
    }  # fmt: skip
    every = {key: course for runs in found.values() for run in runs for key, course in run.items()}
    rows = []
    for group in groups:
        cells = [[run[key] for run in found[group.letter] if key in run] for key in every]
        if any(cells):
            rows.append((group, [_course(runs) for runs in cells], mean_score(group, sets[:1])))
    names = [course.name for course in every.values()]
    score = f"{METRICS[TESTED]} on {sets[0].name}" if sets else ""
    return {"names": names, "rows": rows, "score": score} if rows else None


def mean_score(group: Group, sets: Sequence[SetScores]) -> str:
    """Returns the mean of the tested score of a group on the first set; empty where it has none."""
    found = [
        scores[TESTED].spread.mean
        for one in sets
        for of, _, scores in one.rows
        if of is group and TESTED in scores
    ]
    return f"{found[0]:.2f}" if found else ""


def _course(runs: Sequence[scales.Course]) -> tuple[str, str]:
    """Returns a course in words, and the share of its clamped steps."""
    if not runs:
        return "", ""
    start, end = (
        sum(values) / len(runs) for values in ([one.start for one in runs], [one.end for one in runs])
    )
    clamped, steps = sum(one.clamped for one in runs), sum(one.steps for one in runs)
    bounds = " and ".join(dict.fromkeys(bound for one in runs for bound in one.bounds))
    held = f"clamped to {bounds} in {clamped / steps:.0%} of the steps" if clamped else ""
    return f"{start:.4g} → {end:.4g}", held


def examples(groups: Sequence[Group]) -> dict[str, Any] | None:
    """Returns the same clips by the first run of each group, from the best to the worst of the first."""
    split, chosen = _translated(groups)
    if len(chosen) < 2:
        return None
    first = chosen[0][1]
    spoken = str(first.setting("corpus.language", ""))
    rows = [{row.get("key"): row for row in record.predictions[split]} for _, record in chosen]
    common = [
        {"language": spoken, **row}
        for key, row in rows[0].items()
        if key is not None and all(key in other for other in rows)
    ]
    shown = []
    for row in best_to_worst(common, EXAMPLES):
        reference = str(row["reference"])
        hypotheses = [
            (group, differences(reference, str(of[row["key"]]["hypothesis"]), spaced(row))[1])
            for (group, _), of in zip(chosen, rows, strict=True)
        ]
        shown.append({"language": row["language"], "reference": reference, "hypotheses": hypotheses})
    runs = [(group, record.name) for group, record in chosen if len(group.records) > 1]
    return {"split": split, "clips": shown, "runs": runs} if shown else None


def _translated(groups: Sequence[Group]) -> tuple[str, list[tuple[Group, RunRecord]]]:
    """Returns the split that most groups have translated, and the first run of each that has."""
    splits = dict.fromkeys(
        split for group in groups for record in group.records for split in record.predictions
    )
    best: tuple[str, list[tuple[Group, RunRecord]]] = ("", [])
    for split in sorted(splits, key=lambda name: (name not in ("test", "dev"), name != "test")):
        found = [
            (group, next(record for record in group.records if split in record.predictions))
            for group in groups if any(split in record.predictions for record in group.records)
        ]  # fmt: skip
        if len(found) > len(best[1]):
            best = (split, found)
    return best
