"""Scores on a run's page: a table a split, with intervals, controls and their tests, and scores of groups of clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sage_scale.reporting import figures
from sage_scale.reporting.links import hypotheses
from sage_scale.reporting.runlog import RunRecord, number
from sage_scale.reporting.score_values import (
    HELDOUT,
    METRICS,
    Scored,
    aligned_words,
    bounds,
    breakdowns,
    control_name,
    languages,
    p_text,
    score_cell,
    scored,
    signed,
    split_of,
    stored_interval,
    stored_test,
)

COLUMNS = [key for key in METRICS if key != "content_f1"]
FURTHER = {
    "content_f1": METRICS["content_f1"], "bleu4_none": "BLEU-4 without tokenisation",
    "rouge_l_beta12": "ROUGE-L with beta 1.2",
}  # fmt: skip
"""Scores of all clips of a split that have no column."""


def best_control(values: Mapping[str, Any]) -> tuple[str, float] | None:
    """Returns (name, BLEU-4) of the control that comes nearest; None where none was scored."""
    known = [(control_name(name), float(it["bleu4"])) for name, it in scored(values.get("controls"))]
    return max(known, key=lambda pair: pair[1]) if known else None


def scores(record: RunRecord, page: Path) -> dict[str, Any] | None:
    """Returns the tables of each split, that of `record.split` first; links start at the folder of `page`."""
    splits = [record.split, *(split for split in record.scores_by_split if split != record.split)]
    known = [split for split in splits if number(record.scores_by_split.get(split, {}).get("bleu4"))]
    tables = [_split(record, split, page) for split in known]
    bare = not any(stored_interval(record.scores_by_split[split], "bleu4") for split in known)
    return {"splits": tables, "bare": bare} if tables else None


def _split(record: RunRecord, split: str, page: Path) -> dict[str, Any]:
    values = record.scores_by_split[split]
    sets = [(split, values), *((f"{split}, {HELDOUT}", it) for _, it in scored({0: values.get("heldout")}))]
    spoken = languages(values)
    controls = scored(values.get("controls"))
    every = [it for _, it in (*sets, *spoken, *controls)]
    most = max(float(it["bleu4"]) for it in every)
    keys = [key for key in COLUMNS if any(number(it.get(key)) for it in every)]
    return {
        "name": split,
        "columns": [METRICS[key] for key in keys],
        "rows": [
            *(_row(name, it, keys, most, strong=True) for name, it in sets[:1]),
            *(_row(f"{split}, {name}", it, keys, most) for name, it in spoken),
            *(_row(name, it, keys, most, strong=True) for name, it in sets[1:]),
        ],
        "controls": [
            _row(control_name(name), it, keys, most) | {"against": _against(it)} for name, it in controls
        ],
        "groups": [(name, table) for name, it in sets if (table := _groups(breakdowns(it)))],
        "links": [(name, found) for name, _ in sets if (found := hypotheses(record, split_of(name), page))],
        "further": [
            f"{words} {values[key]:.2f}" for key, words in FURTHER.items() if number(values.get(key))
        ],
        "alignment": aligned_words(values),
        "languages": bool(spoken),
        "signatures": [str(values[key]) for key in ("signature", "chrf_signature") if values.get(key)],
    }


def _row(
    name: str, values: Mapping[str, Any], keys: Sequence[str], most: float, strong: bool = False
) -> dict[str, Any]:
    share = figures.share(float(values["bleu4"]), most)
    clips = f"{values['clips']:,}" if number(values.get("clips")) else ""
    return {"name": name, "cells": [score_cell(values, key) for key in keys], "share": share, "strong": strong,
            "clips": clips, "against": ""}  # fmt: skip


def _against(control: Mapping[str, Any]) -> str:
    """Returns the test of the run against a control in words; empty where there is none."""
    test = stored_test(control)
    if test is None:
        return ""
    return f"run minus control {signed(test.difference)} {bounds(test.low, test.high)}, {p_text(test.p)}"


def _groups(found: Sequence[tuple[str, Scored]]) -> dict[str, Any] | None:
    """Returns a table with the groups of each kind, its bars to one scale."""
    every = [it for _, some in found for _, it in some]
    if not every:
        return None
    most = max(float(it["bleu4"]) for it in every)
    keys = [key for key in COLUMNS[:3] if any(number(it.get(key)) for it in every)]
    kinds = [(title, [_row(name, it, keys, most) for name, it in some]) for title, some in found]
    return {"columns": [METRICS[key] for key in keys], "kinds": kinds}
