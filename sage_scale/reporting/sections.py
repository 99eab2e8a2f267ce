"""The sections of the page: each takes the run's record and gives HTML, or nothing where the record has nothing.

Everything that comes from a run (sentences, glosses, names) is escaped here, at the only place where it meets HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

from sage_scale.reporting import figures
from sage_scale.reporting.figures import Line
from sage_scale.reporting.job import job
from sage_scale.reporting.markup import brief, duration, escape, is_jpeg, number, scroll, section
from sage_scale.reporting.runlog import STAGES, RunRecord, StageLog
from sage_scale.reporting.scores import NEXT_TO_NOTHING, best_control, clips

PAPER_TOKEN_RATIO = 0.129
"""Segments per frame on PHOENIX14T (SAGE, Table 2)."""


def tiles(record: RunRecord) -> str:
    """Figures at a glance."""
    found: list[tuple[str, str, str]] = []
    scores = record.scores
    if number(scores.get("bleu4")):
        rouge = f"ROUGE-L {scores['rouge_l']:.1f}" if number(scores.get("rouge_l")) else ""
        small = ", ".join(words for words in (clips(scores), rouge) if words)
        found.append((f"BLEU-4 on {scores['split']}", f"{scores['bleu4']:.1f}", small))
        if best := best_control(scores):
            found.append(_against(float(scores["bleu4"]), *best))
    heldout = scores.get("heldout")
    if isinstance(heldout, Mapping) and number(heldout.get("bleu4")):
        found.append(("BLEU-4 on unseen signers", f"{heldout['bleu4']:.1f}", clips(heldout)))
    if number(scores.get("token_ratio")) and record.spec.tokens_are_segments:
        found.append(
            (
                "token ratio",
                f"{scores['token_ratio']:.3f}",
                f"segments per frame; {PAPER_TOKEN_RATIO} in SAGE",
            )
        )
    if "pretrain" in record.logs and (recalled := _recall(record.logs["pretrain"])):
        found.append(recalled)
    if number(f1 := record.found.get("f1")):
        guessed = record.found.get("control", {}).get("f1", 0.0)
        of = ", ".join(filter(None, (record.found["split"], clips(record.found))))
        found.append(
            (
                "pseudo-glosses found",
                f"{f1:.1f}",
                f"micro F1 on {of}; guessing {guessed:.1f}",
            )
        )
    seconds = [row["seconds"] for row in record.timing if number(row.get("seconds"))]
    if seconds:
        memory = [row["memory_mb"] for row in record.timing if number(row.get("memory_mb"))]
        peak = f"at most {max(memory) / 1000:.1f} GB in a process" if memory else ""
        found.append(("time of all stages", brief(sum(seconds)), peak))
    if not found:
        return ""
    items = []
    for place, (name, value, small) in enumerate(found):
        kind = "tile main" if place == 0 and name.startswith("BLEU") else "tile"
        items.append(
            f'<div class="{kind}"><dt>{escape(name)}</dt><dd><div class="value">{escape(value)}</div>'
            f'<div class="small">{escape(small)}</div></dd></div>'
        )
    return f'<dl class="tiles">{"".join(items)}</dl>'


def _against(bleu4: float, name: str, control: float) -> tuple[str, str, str]:
    """A tile: how many times the best control's score; its score alone where either is next to nothing."""
    if min(bleu4, control) < NEXT_TO_NOTHING:
        return "best control, BLEU-4", f"{control:.1f}", name
    return "against the best control", f"{bleu4 / control:.1f}×", f"{control:.1f}: {name}"


def _recall(log: StageLog) -> tuple[str, str, str] | None:
    """A tile: R@1 of stage 1 on dev, beside chance; None where there are too few clips to err among."""
    row = next((row for row in reversed(log.dev) if number(row.get("r1_v2t"))), None)
    if row is None or (number(row.get("clips")) and row["clips"] < 2):
        return None
    among = f", {clips(row)}; chance {100 / row['clips']:.1f}%" if number(row.get("clips")) else ""
    return "stage 1 finds the text", f"{row['r1_v2t']:.0f}%", f"R@1, video to text, dev{among}"


def curves(record: RunRecord) -> str:
    """Training curves of both stages."""
    parts = []
    for stage, log in record.logs.items():
        steps = int(log.steps[-1]["step"]) if log.steps else 0
        note = [f"{steps:,} steps"] if steps else []
        if (epochs := log.last("epoch")) is not None:
            note.append(f"{epochs:.1f} epochs")
        if (seconds := log.last("time_s")) is not None:
            note.append(duration(seconds))
        if wait := _share_waiting(log):
            note.append(f"{wait:.1%} of it waiting for data")
        if skipped := sum(number for _, number in log.curve("skipped")):
            note.append(f"<b>{skipped:,.0f} damaged samples skipped</b> (stream.on_corrupt=skip)")
        if log.unread:
            note.append(f"{log.unread} unreadable log lines left out")
        charts = "".join(_charts(log))
        parts.append(
            f'<h3>{_stage_name(record, stage)}</h3><p class="note">{", ".join(note)}</p>{job(log)}'
            f'<div class="charts">{charts}</div>'
        )
    return section("curves", "Training", "".join(parts)) if parts else ""


def _stage_name(record: RunRecord, stage: str) -> str:
    number = STAGES.index(stage)
    return f"Stage {number + 1}: {escape(record.spec.stage_titles[number])}"


def _charts(log: StageLog) -> list[str]:
    wanted: list[tuple[str, list[Line], bool]] = [
        (
            "Loss",
            [Line("training", log.curve("loss"), 0), Line("dev", log.curve("loss", "dev"), 1, True)],
            False,
        ),
        (
            "Loss of each level",
            [
                Line("embeddings", log.curve("loss_embedding"), 0),
                Line("hidden states", log.curve("loss_hidden"), 2),
            ],
            False,
        ),
        ("BLEU-4 on dev", [Line("BLEU-4", log.curve("bleu4", "dev"), 1, True)], False),
        (
            "R@1 on dev, %",
            [
                Line("video to text", log.curve("r1_v2t", "dev"), 0, True),
                Line("text to video", log.curve("r1_t2v", "dev"), 2, True),
            ]
            if log.last("clips", "dev") != 1
            else [],  # one clip is always found among one
            False,
        ),
        (
            "F1 of pseudo-glosses on dev, %",
            [
                Line("micro", log.curve("f1", "dev"), 0, True),
                Line("macro", log.curve("macro_f1", "dev"), 2, True),
            ],
            False,
        ),
        (
            "Temperatures",
            [Line("over time", log.curve("tau_time"), 0), Line("over classes", log.curve("tau_class"), 2)],
            False,
        ),
        (
            "Logit scales",
            [
                Line("embeddings", log.curve("scale_embedding"), 0),
                Line("hidden states", log.curve("scale_hidden"), 2),
            ],
            False,
        ),
        ("Learning rate", [Line("rate", log.curve("lr"), 3)], False),
        ("Gradient norm", [Line("norm", log.curve("grad_norm"), 3)], True),
        ("Clips a second", [Line("clips/s", log.curve("samples_per_s"), 2)], False),
        ("Tokens a second", [Line("tokens/s", log.curve("tokens_per_s"), 2)], False),
        ("Time waiting for data, % of a step", [Line("waiting", _waiting(log), 1)], False),
        ("MFU, %", [Line("MFU", [(step, 100 * value) for step, value in log.curve("mfu")], 0)], False),
        (
            "Memory of rank 0, GB",
            [
                Line("peak", [(step, value / 1e3) for step, value in log.curve("memory_mb")], 3),
                Line("now", [(step, value / 1e3) for step, value in log.curve("memory_now_mb")], 0),
                Line("reserved", [(step, value / 1e3) for step, value in log.curve("memory_reserved_mb")], 1),
            ],
            False,
        ),
        ("Loss scale", [Line("scale", log.curve("loss_scale"), 3)], True),
    ]
    drawn = []
    for title, lines, log_axis in wanted:
        lines = [line for line in lines if line.points]
        drawing = figures.line_chart(title, lines, log=log_axis)
        if drawing:
            keys = "".join(_key(line, alone=len(lines) == 1) for line in lines)
            drawn.append(
                f'<figure class="chart"><figcaption><b>{title}</b>{keys}</figcaption>{drawing}</figure>'
            )
    return drawn


def _waiting(log: StageLog) -> list[tuple[float, float]]:
    """(step, percent): a step's time is its clips over its rate."""
    found = []
    for row in log.steps:
        values = [row.get(key) for key in ("wait_s", "clips", "samples_per_s")]
        if all(number(value) for value in values):
            wait, clips, rate = (float(value) for value in values if value is not None)
            if clips > 0 and rate > 0:
                found.append((float(row["step"]), 100 * min(wait * rate / clips, 1.0)))
    return found


def _key(line: Line, alone: bool) -> str:
    """Name and last value of a curve: the smoothed one where the raw one jumps."""
    points = line.points if line.marks or not figures.jumps(line.points) else figures.smooth(line.points)
    name = "at the end" if alone else line.name
    value = figures.short(points[-1][1])
    return f'<span class="key"><i style="background:var(--line{line.colour})"></i>{name} {value}</span>'


def _share_waiting(log: StageLog) -> float:
    total = log.last("time_s") or 0.0
    return sum(wait for _, wait in log.curve("wait_s")) / total if total > 0 else 0.0


def timelines(record: RunRecord) -> str:
    """Segments over time with thumbnails, and the gold signs where they are known."""
    parts = []
    for row in record.timelines:
        try:
            frames, fps, segments = int(row["frames"]), float(row["fps"]), row["segments"]
            gold = [(float(start), float(end), str(gloss)) for start, end, gloss in row.get("gold") or ()]
            drawing = figures.timeline(frames, fps, segments, gold)
            strip = figures.film_strip(frames, segments, _pictures(row.get("thumbnails"), segments))
        except (KeyError, TypeError, ValueError, IndexError):
            continue
        hypothesis = (
            f'<p class="note">Translated as: {escape(row["hypothesis"])}</p>' if "hypothesis" in row else ""
        )
        wide = f'<div class="wide">{strip}{drawing}</div>'
        parts.append(
            f'<div class="clip"><p class="sentence">{escape(row.get("sentence", ""))}</p>{hypothesis}'
            f"{scroll(wide)}</div>"
        )
    if not parts:
        return ""
    role = (
        "becomes one visual token"
        if record.spec.tokens_are_segments
        else "is read frame by frame, one after the other"
    )
    intro = f"<p>Each coloured bar {role}; the pictures above are from the middle of their segments.</p>"
    return section("timelines", "Segments", intro + "".join(parts))


def _pictures(thumbnails: Any, segments: Sequence[Sequence[int]]) -> dict[int, str]:
    """JPEGs in base64 by the number of the segment that they are of."""
    found = {}
    for n, thumbnail in enumerate(thumbnails if isinstance(thumbnails, list) else []):
        jpeg, frame = (
            (thumbnail.get("jpeg"), thumbnail.get("frame"))
            if isinstance(thumbnail, dict)
            else (thumbnail, None)
        )
        if is_jpeg(jpeg):
            place = frame if isinstance(frame, int) else -1
            inside = (i for i, (start, end) in enumerate(segments) if start <= place < end)
            found[next(inside, n)] = str(jpeg)
    return found


def cost(record: RunRecord) -> str:
    """Time and peak memory of each stage."""
    rows = [row for row in record.timing if number(row.get("seconds"))]
    if not rows:
        return ""
    most = max(float(row["seconds"]) for row in rows)
    body = "".join(_cost_row(row, most) for row in rows)
    total = duration(sum(float(row["seconds"]) for row in rows))
    body += f'<tr class="strong"><th scope="row">together</th><td>{total}</td><td></td></tr>'
    head = '<tr><th scope="col">stage</th><th scope="col">time</th><th scope="col">peak memory of a process</th></tr>'
    table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
    return section("cost", "Time and memory", scroll(table))


def _cost_row(row: Mapping[str, Any], most: float) -> str:
    seconds = float(row["seconds"])
    memory = (
        f"{row['memory_mb'] / 1000:.2f} GB" if number(row.get("memory_mb")) and row["memory_mb"] > 0 else ""
    )
    note = f'<div class="small">{escape(row["note"])}</div>' if row.get("note") else ""
    return (
        f'<tr><th scope="row">{escape(row.get("stage", ""))}{note}</th><td class="with-bar"><div>'
        f"<span>{duration(seconds)}</span>{figures.bar(seconds, most, True)}</div></td><td>{memory}</td></tr>"
    )


def recipe(record: RunRecord) -> str:
    """The recipe, whole."""
    if not record.recipe_text:
        return ""
    lines = "\n".join(map(escape, record.recipe_text.split("\n")))
    text = f"<details><summary>Every value of this run</summary><pre>{lines}</pre></details>"
    again = f"sage-scale recipe show {quote(str(record.folder / 'recipe.yaml'))}"
    return section("recipe", "Recipe", f'<p class="note">The same as <code>{escape(again)}</code>.</p>{text}')


def absent(missing: Sequence[tuple[str, str]]) -> str:
    """What a run has not, and why: no gap is left to be taken for a result."""
    if not missing:
        return ""
    items = "".join(f"<li><b>{escape(what)}</b>: {escape(why)}</li>" for what, why in missing)
    return section("absent", "Not in this report", f"<ul>{items}</ul>", kind="absent")
