"""Several runs on one page: models, budgets, scores, and the same clips translated by each.

Runs are fairly compared where they saw the same dataset and as many tokens; the page says whether they did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sage_scale.errors import UsageError
from sage_scale.reporting import figures
from sage_scale.reporting.figures import Line
from sage_scale.reporting.page import Missing, document, html, readable, write_page
from sage_scale.reporting.runlog import RunRecord, fixed, number, read_run
from sage_scale.reporting.sections import (
    EXAMPLES,
    best_control,
    best_to_worst,
    clips,
    differences,
    spaced,
)
from sage_scale.untrusted.display import duration

EQUAL = 0.05
"""Budgets that differ by less are called equal."""

Cell = Callable[[RunRecord], str]


def write_comparison(runs: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of two or more runs to `out` (comparison.html in the first one unless given), atomically.

    Raises UsageError where one of them is no run folder, StorageError where the page cannot be written.
    """
    if len(runs) < 2:
        raise UsageError("a comparison needs two runs or more")
    records = [read_run(run) for run in runs]
    return write_page(render(records), Path(out) if out else records[0].folder / "comparison.html")


def render(records: Sequence[RunRecord]) -> str:
    """Returns the whole page as text."""
    shown = common_split(records)
    records = [replace(record, shown=shown) for record in records]
    missing: Missing = []
    parts = [
        (anchor, name, readable(make, Markup(), missing, name.lower()))
        for anchor, name, make in (
            ("fair", "Equal conditions", lambda: html("fairness", fairness(records))),
            ("table", "Side by side", lambda: html("side_by_side", side_by_side(records, missing))),
            ("curves", "Training", lambda: html("shared_curves", curves(records))),
            ("examples", "Examples", lambda: html("shared_examples", examples(records))),
        )
    ]
    about = [(record.name, record.spec.title, record.setting("name", "")) for record in records]
    names = " and ".join(record.name for record in records)
    return document(names, html("about_runs", about), Markup(), parts, missing)


def common_split(records: Sequence[RunRecord]) -> str:
    """Returns the split that all runs were scored on: test, else dev, else any; empty where there is none."""
    known = [
        split for split in records[0].scores_by_split if all(split in r.scores_by_split for r in records)
    ]
    return next((split for split in ("test", "dev", *known) if split in known), "")


def total(record: RunRecord, key: str, stages: Sequence[str] = ("pretrain", "finetune")) -> float | None:
    """Returns the sum of a figure over all steps of some stages; None where none was logged."""
    values = [value for stage in stages if stage in record.logs for _, value in record.logs[stage].curve(key)]
    return sum(values) if values else None


def budget(record: RunRecord) -> float | None:
    """Returns the visual and text tokens that both stages were given."""
    visual = total(record, "visual_tokens")
    return None if visual is None else visual + (total(record, "text_tokens") or 0.0)


def dataset(record: RunRecord) -> str:
    """Returns the digest of the dataset that the run was trained on; empty where its log does not say."""
    starts = (row for log in record.logs.values() for row in log.of_event("start"))
    return next((str(row["dataset"]).partition("-")[0] for row in starts if row.get("dataset")), "")


def fairness(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Returns whether dataset and token budget are the same."""
    budgets = [value for record in records if (value := budget(record))]
    values: dict[str, Any] = {"digests": [dataset(record) for record in records], "apart": None}
    if len(budgets) == len(records):
        apart = max(budgets) / min(budgets) - 1
        each = [f"{record.name} {value:,.0f}" for record, value in zip(records, budgets)]
        more = f"{apart:.1%} more" if apart < 1 else f"{1 + apart:.3g} times"
        values |= {"apart": more, "equal": apart <= EQUAL, "budgets": each}
    return values


def side_by_side(records: Sequence[RunRecord], missing: Missing) -> dict[str, Any]:
    """Returns a table with a column a run; cells that cannot be made are empty and named in `missing`."""
    model: list[tuple[str, Cell]] = [
        ("model", lambda r: r.spec.title),
        ("language model", lambda r: r.spec.language_model),
        ("parameters", lambda r: fixed(_started(r, "parameters"), 0)),
        ("trained in stage 1", lambda r: fixed(_started(r, "trained_parameters", "pretrain"), 0)),
        ("trained in stage 2", lambda r: fixed(_started(r, "trained_parameters"), 0)),
        ("visual tokens a frame in segments", _token_rate),
    ]
    result: list[tuple[str, Cell]] = [
        ("BLEU-4", lambda r: fixed(r.scores.get("bleu4"), 1)),
        ("ROUGE-L", lambda r: fixed(r.scores.get("rouge_l"), 1)),
        ("BLEU-4, unseen signers", lambda r: fixed((r.scores.get("heldout") or {}).get("bleu4"), 1)),
        ("best control, BLEU-4", _control),
        ("pseudo-glosses found, micro F1", lambda r: fixed(r.found.get("f1"), 1)),
        ("clips scored", lambda r: f"{r.scores.get('split', '')} {clips(r.scores)}".strip()),
    ]
    stages = [
        (title, _stage_rows(stage))
        for stage, title in (("pretrain", "Stage 1"), ("finetune", "Stage 2"))
        if any(stage in record.logs for record in records)
    ]
    groups = []
    for title, rows in (("Model", model), *stages, ("Result", result)):
        cells = [
            (name, [readable(partial(cell, r), "", missing, f"{name} of {r.name}") for r in records])
            for name, cell in rows
        ]
        groups.append((title, [(name, values) for name, values in cells if any(values)]))
    splits = {record.split for record in records if record.scores}
    return {"names": [r.name for r in records], "groups": groups, "splits_differ": len(splits) > 1}


def _stage_rows(stage: str) -> list[tuple[str, Cell]]:
    def of(key: str) -> Cell:
        return lambda record: fixed(total(record, key, [stage]), 0)

    def last(key: str, show: Callable[[float], str]) -> Cell:
        def cell(record: RunRecord) -> str:
            value = record.logs[stage].last(key) if stage in record.logs else None
            return "" if value is None else show(value)

        return cell

    return [
        ("steps", last("step", lambda value: f"{value:,.0f}")),
        ("clips seen", of("clips")),
        ("frames seen", of("frames")),
        ("visual tokens", of("visual_tokens")),
        ("text tokens", of("text_tokens")),
        ("time", last("time_s", duration)),
        ("peak memory of rank 0", last("memory_mb", lambda value: f"{value / 1000:.2f} GB")),
    ]


def curves(records: Sequence[RunRecord]) -> list[tuple[str, list[tuple[int, str]], str]]:
    """Returns charts of BLEU-4 on dev and of the losses of stage 2, with all runs in each."""
    drawn = []
    for title, key, event in (("BLEU-4 on dev", "bleu4", "dev"), ("Loss of stage 2", "loss", "step")):
        lines = [
            Line(record.name, record.logs["finetune"].curve(key, event), index % 4, event == "dev")
            for index, record in enumerate(records)
            if "finetune" in record.logs
        ]
        if drawing := figures.line_chart(title, lines):
            drawn.append((title, [(line.colour, line.name) for line in lines if line.points], drawing))
    return drawn


def examples(records: Sequence[RunRecord]) -> dict[str, Any] | None:
    """Returns the same clips by every run, from the best to the worst of the first."""
    split = records[0].split
    spoken = str(records[0].setting("corpus.language", ""))
    rows = [{row.get("key"): row for row in record.predictions.get(split, [])} for record in records]
    common = [
        {"language": spoken, **row}
        for key, row in rows[0].items()
        if key is not None and all(key in other for other in rows)
    ]
    shown = []
    for row in best_to_worst(common, EXAMPLES):
        reference = str(row["reference"])
        hypotheses = [
            (record.name, differences(reference, str(of[row["key"]]["hypothesis"]), spaced(row))[1])
            for record, of in zip(records, rows)
        ]
        shown.append({"language": row["language"], "reference": reference, "hypotheses": hypotheses})
    return {"split": split, "clips": shown} if shown else None


def _started(record: RunRecord, key: str, stage: str = "finetune") -> Any:
    starts = record.logs[stage].of_event("start") if stage in record.logs else []
    return starts[-1].get(key) if starts else None


def _token_rate(record: RunRecord) -> str:
    tokens, frames = total(record, "visual_tokens", ["finetune"]), total(record, "frames", ["finetune"])
    stride = record.setting("vision.frame_stride", 1)
    return f"{tokens / frames / stride:.3f}" if tokens and frames and number(stride) else ""


def _control(record: RunRecord) -> str:
    best = best_control(record.scores)
    return f"{best[1]:.1f} ({best[0]})" if best else ""
