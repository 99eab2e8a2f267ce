"""What each group of runs was given and took: model, dataset, tokens, time and memory; means of a group's runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sage_scale.reporting.groups import Group, dataset
from sage_scale.reporting.page import Missing, readable
from sage_scale.reporting.runlog import RunRecord, number
from sage_scale.reporting.score_values import aligned
from sage_scale.untrusted.display import duration

EQUAL = 0.05
"""Budgets that differ by less are called equal."""
Show = Callable[[float], str]
Row = tuple[str, Callable[[RunRecord], Any], Show]
"""Name, value of a run (a number, a text or nothing), and the text of a number."""


def total(record: RunRecord, key: str, stages: Sequence[str] = ("pretrain", "finetune")) -> float | None:
    """Returns the sum of a figure over all steps of some stages; None where none was logged."""
    values = [value for stage in stages if stage in record.logs for _, value in record.logs[stage].curve(key)]
    return sum(values) if values else None


def budget(record: RunRecord) -> float | None:
    """Returns the visual and text tokens that both stages were given."""
    visual = total(record, "visual_tokens")
    return None if visual is None else visual + (total(record, "text_tokens") or 0.0)


def fairness(groups: Sequence[Group]) -> dict[str, Any]:
    """Returns whether dataset and token budget are the same for all runs; budgets are a group's means."""
    digests = [dataset(record) for group in groups for record in group.records]
    values: dict[str, Any] = {"digests": list(dict.fromkeys(digests)), "apart": None}
    known = [[value for record in group.records if (value := budget(record))] for group in groups]
    if all(len(some) == len(group.records) for some, group in zip(known, groups, strict=True)):
        every = [value for some in known for value in some]
        apart = max(every) / min(every) - 1
        each = [
            f"{group.label} {sum(some) / len(some):,.0f}" for group, some in zip(groups, known, strict=True)
        ]
        more = f"the largest {apart:.1%} more" if apart < 1 else f"the largest {1 + apart:.3g} times"
        values |= {
            "apart": more if apart >= 0.0005 else "all equal",
            "equal": apart <= EQUAL,
            "budgets": each,
        }
    return values


def side_by_side(groups: Sequence[Group], missing: Missing) -> dict[str, Any]:
    """Returns a table with a column a group; cells that cannot be made are empty and named in `missing`."""
    model: list[Row] = [
        ("model", lambda r: r.spec.title, _whole),
        ("language model", lambda r: r.spec.language_model, _whole),
        ("parameters", lambda r: _started(r, "parameters"), _whole),
        ("trained in stage 1", lambda r: _started(r, "trained_parameters", "pretrain"), _whole),
        ("trained in stage 2", lambda r: _started(r, "trained_parameters"), _whole),
        ("visual tokens a frame in segments", _token_rate, lambda value: f"{value:.3f}"),
    ]
    records = [record for group in groups for record in group.records]
    stages = [
        (title, _stage_rows(stage))
        for stage, title in (("pretrain", "Stage 1"), ("finetune", "Stage 2"))
        if any(stage in record.logs for record in records)
    ]
    found: list[Row] = [("pseudo-glosses found, micro F1", lambda r: r.found.get("f1"), _tenths)]
    for split in dict.fromkeys(split for record in records for split in record.scores_by_split):
        name = f"tokens with their sign's pseudo-gloss, {split}, %"
        found.append((name, partial(_aligned, split=split), _tenths))
    tables = []
    for title, rows in (("Model", model), *stages, ("Result of stage 1", found)):
        cells = [
            (
                row[0],
                [
                    readable(partial(_cell, row, group), "", missing, f"{row[0]} of {group.label}")
                    for group in groups
                ],
            )
            for row in rows
        ]
        if shown := [(name, values) for name, values in cells if any(values)]:
            tables.append((title, shown))
    return {"groups": groups, "tables": tables, "means": any(len(group.records) > 1 for group in groups)}


def _cell(row: Row, group: Group) -> str:
    """Returns the mean of a group's numbers, or its different texts."""
    _, value, show = row
    values = [found for record in group.records if (found := value(record)) not in (None, "")]
    numbers = [float(found) for found in values if number(found)]
    if numbers:
        return show(sum(numbers) / len(numbers))
    return "; ".join(dict.fromkeys(found for found in values if isinstance(found, str)))


def _stage_rows(stage: str) -> list[Row]:
    def of(key: str) -> Callable[[RunRecord], Any]:
        return lambda record: total(record, key, [stage])

    def last(key: str) -> Callable[[RunRecord], Any]:
        return lambda record: record.logs[stage].last(key) if stage in record.logs else None

    return [
        ("steps", last("step"), _whole),
        ("clips seen", of("clips"), _whole),
        ("frames seen", of("frames"), _whole),
        ("visual tokens", of("visual_tokens"), _whole),
        ("text tokens", of("text_tokens"), _whole),
        ("time", last("time_s"), duration),
        ("peak memory of rank 0", last("memory_mb"), lambda value: f"{value / 1000:.2f} GB"),
    ]


def _aligned(record: RunRecord, split: str) -> Any:
    return aligned(record.scores_by_split.get(split, {})).get("accuracy")


def _tenths(value: float) -> str:
    return f"{value:.1f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _started(record: RunRecord, key: str, stage: str = "finetune") -> Any:
    starts = record.logs[stage].of_event("start") if stage in record.logs else []
    value = starts[-1].get(key) if starts else None
    return value if number(value) else None


def _token_rate(record: RunRecord) -> float | None:
    tokens, frames = total(record, "visual_tokens", ["finetune"]), total(record, "frames", ["finetune"])
    stride = record.setting("vision.frame_stride", 1)
    return tokens / frames / stride if tokens and frames and number(stride) else None
