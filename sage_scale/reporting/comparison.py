"""Several runs on one page: what each is, what it was given, what it reached, and the same clips translated by each.

Runs are fairly compared where they saw the same dataset and as many tokens; the page says whether they did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sage_scale.errors import UsageError
from sage_scale.reporting import figures
from sage_scale.reporting.examples import differences, lang, similarity, spaced
from sage_scale.reporting.figures import Line
from sage_scale.reporting.markup import duration, escape, if_readable, number, scroll, section
from sage_scale.reporting.page import ABSENT, document, write_page
from sage_scale.reporting.runlog import RunRecord, StageLog, read_run
from sage_scale.reporting.scores import best_control, clips
from sage_scale.reporting.sections import absent

EXAMPLES = 12
EQUAL = 0.05
"""Budgets that differ by less are called equal."""
_BUDGET = ("visual_tokens", "text_tokens")

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
    """The whole page as text."""
    shown = common_split(records)
    records = [replace(record, shown=shown) for record in records]
    names = " and ".join(record.name for record in records)
    missing: list[tuple[str, str]] = []
    makers: list[tuple[str, str, Callable[[], str]]] = [
        ("fair", "What is equal", lambda: fairness(records)),
        ("table", "Side by side", lambda: table(records, missing)),
        ("curves", "Training", lambda: curves(records)),
        ("examples", "Examples", lambda: examples(records)),
    ]
    parts = [(anchor, name, if_readable(make, name.lower(), missing)) for anchor, name, make in makers]
    parts.append((*ABSENT, absent(missing)))
    about = " · ".join(
        f"<b>{escape(record.name)}</b>: {escape(record.spec.title)}, recipe {escape(record.setting('name', ''))}"
        for record in records
    )
    return document(names, about, "", parts)


def common_split(records: Sequence[RunRecord]) -> str:
    """Returns the split that all runs were scored on: test, else dev, else any; empty where there is none."""
    known = [
        split for split in records[0].scores_by_split if all(split in r.scores_by_split for r in records)
    ]
    return next((split for split in ("test", "dev", *known) if split in known), "")


def total(record: RunRecord, key: str, stages: Sequence[str] = ("pretrain", "finetune")) -> float | None:
    """Sum of a figure over all steps of some stages; None where none was logged."""
    values = [value for stage in stages if stage in record.logs for _, value in record.logs[stage].curve(key)]
    return sum(values) if values else None


def budget(record: RunRecord) -> float | None:
    """Visual and text tokens that both stages were given."""
    sums = [total(record, key) for key in _BUDGET]
    return None if sums[0] is None else sum(value or 0.0 for value in sums)


def dataset(record: RunRecord) -> str:
    """Digest of the dataset that the run was trained on; empty where its log does not say."""
    for log in record.logs.values():
        for row in log.of_event("start"):
            if row.get("dataset"):
                return str(row["dataset"]).partition("-")[0]
    return ""


def fairness(records: Sequence[RunRecord]) -> str:
    """Whether corpus and token budget are the same, in words."""
    digests = [dataset(record) for record in records]
    if not all(digests):
        corpus = "Whether the dataset is the same is not known: a run's log does not name it."
    elif len(set(digests)) == 1:
        corpus = f"The same dataset (<code>{escape(digests[0])}</code>)."
    else:
        corpus = "<b>Not the same dataset.</b>"
    budgets = [budget(record) for record in records]
    known = [value for value in budgets if value]
    if len(known) < len(records):
        tokens = "The token budgets are not known: a run logged none."
    else:
        apart = max(known) / min(known) - 1
        each = ", ".join(f"{escape(r.name)} {value:,.0f}" for r, value in zip(records, known))
        verdict = "The same token budget" if apart <= EQUAL else "<b>Not the same token budget</b>"
        tokens = f"{verdict}: visual and text tokens of both stages, {each} (the largest {_more(apart)})."
        if apart > EQUAL:
            tokens += " <code>pretrain.max_tokens</code> and <code>finetune.max_tokens</code> end stages at a budget."
    return section("fair", "What is equal", f"<p>{corpus}</p><p>{tokens}</p>")


def table(records: Sequence[RunRecord], missing: list[tuple[str, str]]) -> str:
    """A column a run; cells that cannot be made are empty and named in `missing`."""
    groups: list[tuple[str, list[tuple[str, Cell]]]] = [
        (
            "Model",
            [
                ("model", lambda r: r.spec.title),
                ("language model", lambda r: r.spec.language_model),
                ("parameters", lambda r: _count(_started(r, "parameters"))),
                ("trained in stage 1", lambda r: _count(_started(r, "trained_parameters", "pretrain"))),
                ("trained in stage 2", lambda r: _count(_started(r, "trained_parameters", "finetune"))),
                ("visual tokens a frame in segments", _token_rate),
            ],
        ),
        *(
            (title, _stage_rows(stage))
            for stage, title in (("pretrain", "Stage 1"), ("finetune", "Stage 2"))
            if any(stage in record.logs for record in records)
        ),
        (
            "Result",
            [
                ("BLEU-4", lambda r: _score(r.scores.get("bleu4"))),
                ("ROUGE-L", lambda r: _score(r.scores.get("rouge_l"))),
                ("BLEU-4, unseen signers", lambda r: _score((r.scores.get("heldout") or {}).get("bleu4"))),
                ("best control, BLEU-4", _control),
                ("pseudo-glosses found, micro F1", lambda r: _score(r.found.get("f1"))),
                (
                    "clips scored",
                    lambda r: f"{r.scores.get('split', '')} {clips(r.scores)}".strip(),
                ),
            ],
        ),
    ]
    head = "".join(f'<th scope="col">{escape(record.name)}</th>' for record in records)
    body = ""
    for title, rows in groups:
        filled = [
            (name, [if_readable(partial(cell, r), f"{name} of {r.name}", missing) for r in records])
            for name, cell in rows
        ]
        filled = [(name, cells) for name, cells in filled if any(cells)]
        if filled:
            body += f'<tr class="group"><th colspan="{len(records) + 1}" scope="rowgroup">{title}</th></tr>'
        for name, cells in filled:
            tds = "".join(f"<td>{escape(cell) or '–'}</td>" for cell in cells)
            kind = "strong" if name == "BLEU-4" else ""
            body += f'<tr class="{kind}"><th scope="row">{name}</th>{tds}</tr>'
    html = f'<table><thead><tr><th scope="col"></th>{head}</tr></thead><tbody>{body}</tbody></table>'
    scored = {record.split for record in records if record.scores}
    note = (
        "<p><b>Not scored on the same split</b>: their scores cannot be compared; "
        "<code>sage-scale evaluate --split</code> scores another.</p>"
        if len(scored) > 1
        else ""
    )
    return section("table", "Side by side", note + scroll(html))


def _stage_rows(stage: str) -> list[tuple[str, Cell]]:
    def of(key: str) -> Cell:
        return lambda record: _count(total(record, key, [stage]))

    def last(key: str, show: Callable[[float], str]) -> Cell:
        def cell(record: RunRecord) -> str:
            log: StageLog | None = record.logs.get(stage)
            value = None if log is None else log.last(key)
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


def curves(records: Sequence[RunRecord]) -> str:
    """BLEU-4 on dev, and the losses of stage 2, of all runs in one picture each."""
    drawn = []
    for title, key, event in (("BLEU-4 on dev", "bleu4", "dev"), ("Loss of stage 2", "loss", "step")):
        lines = [
            Line(record.name, record.logs["finetune"].curve(key, event), place % 4, event == "dev")
            for place, record in enumerate(records)
            if "finetune" in record.logs
        ]
        if drawing := figures.line_chart(title, lines):
            keys = "".join(
                f'<span class="key"><i style="background:var(--line{line.colour})"></i>{escape(line.name)}</span>'
                for line in lines
                if line.points
            )
            caption = f"<figcaption><b>{title}</b>{keys}</figcaption>"
            drawn.append(f'<figure class="chart">{caption}{drawing}</figure>')
    return section("curves", "Training", f'<div class="charts">{"".join(drawn)}</div>') if drawn else ""


def examples(records: Sequence[RunRecord]) -> str:
    """The same clips by every run, from the best to the worst of the first."""
    split = records[0].split
    spoken = str(records[0].setting("corpus.language", ""))
    rows = [
        {row.get("key"): {"language": spoken, **row} for row in record.predictions.get(split, [])}
        for record in records
    ]
    common = [key for key in rows[0] if key is not None and all(key in other for other in rows)]
    if not common:
        return ""

    def likeness(key: Any) -> float:
        row = rows[0][key]
        return similarity(str(row["hypothesis"]), str(row["reference"]), spaced(row))

    ranked = sorted(common, key=likeness, reverse=True)
    count = min(EXAMPLES, len(ranked))
    chosen = [ranked[round(place * (len(ranked) - 1) / max(count - 1, 1))] for place in range(count)]
    items = ""
    for key in chosen:
        reference = str(rows[0][key]["reference"])
        lines = [("reference", escape(reference))]
        for record, of in zip(records, rows):
            _, hypothesis = differences(reference, str(of[key]["hypothesis"]), spaced(rows[0][key]))
            lines.append((escape(record.name), hypothesis or "<em>no words</em>"))
        items += (
            "<li>"
            + "".join(
                f'<div class="what">{what}</div><div{lang(rows[0][key])}>{html}</div>' for what, html in lines
            )
            + "</li>"
        )
    intro = f'<p>Clips of <code>{escape(split)}</code>; <mark class="added">not in the reference</mark>.</p>'
    return section("examples", "Examples", f'{intro}<ol class="examples">{items}</ol>')


def _started(record: RunRecord, key: str, stage: str = "finetune") -> float | None:
    starts = record.logs[stage].of_event("start") if stage in record.logs else []
    value = starts[-1].get(key) if starts else None
    return float(value) if value is not None and number(value) else None


def _token_rate(record: RunRecord) -> str:
    tokens, frames = total(record, "visual_tokens", ["finetune"]), total(record, "frames", ["finetune"])
    stride = record.setting("vision.frame_stride", 1)
    if not tokens or not frames or not number(stride):
        return ""
    return f"{tokens / frames / stride:.3f}"


def _control(record: RunRecord) -> str:
    best = best_control(record.scores)
    return f"{best[1]:.1f} ({best[0]})" if best else ""


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _score(value: Any) -> str:
    return f"{value:.1f}" if number(value) else ""


def _more(share: float) -> str:
    """How much more, in words that fit small and large."""
    return f"{share:.1%} more" if share < 1 else f"{1 + share:.3g} times"
