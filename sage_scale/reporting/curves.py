"""Training curves of a run's stages, and the job of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sage_scale.reporting import figures, scales
from sage_scale.reporting.figures import Line
from sage_scale.reporting.runlog import RunRecord, StageLog, fixed, number
from sage_scale.untrusted.display import duration

_CHARTS: tuple[tuple[str, tuple[tuple[str, str, int], ...] | str], ...] = (
    ("Loss", (("training", "loss", 0), ("dev", "dev loss", 1))),
    ("Loss of each part", "loss"),
    ("BLEU-4 on dev", (("BLEU-4", "dev bleu4", 1),)),
    ("R@1 on dev, %", (("video to text", "dev r1_v2t", 0), ("text to video", "dev r1_t2v", 2))),
    ("F1 of pseudo-glosses on dev, %", (("micro", "dev f1", 0), ("macro", "dev macro_f1", 2))),
    *((title, kind) for kind, title in scales.CHARTS),
    ("Learning rate", (("rate", "lr", 3),)),
    ("Gradient norm", (("norm", "grad_norm", 3),)),
    ("Clips a second", (("clips/s", "samples_per_s", 2),)),
    ("Tokens a second", (("tokens/s", "tokens_per_s", 2),)),
    ("Time waiting for data, % of a step", (("waiting", "waiting", 1),)),
    ("MFU, %", (("MFU", "mfu", 0),)),
    ("Memory of rank 0, GB",
     (("peak", "memory_mb", 3), ("now", "memory_now_mb", 0), ("reserved", "memory_reserved_mb", 1))),
    ("Loss scale", (("scale", "loss_scale", 3),)),
)  # fmt: skip
"""Title, and name, logged key ("dev KEY" of the event dev) and colour of each line; or a kind of `scales`."""
_LOGARITHMIC = ("Gradient norm", "Loss scale")
_FACTORS = {"mfu": 100.0, "memory_mb": 1e-3, "memory_now_mb": 1e-3, "memory_reserved_mb": 1e-3}
_LAYOUT = {
    "device": "device", "zero_stage": "ZeRO stage", "offload": "offloaded to", "precision": "precision",
    "batch_size": "global batch", "micro_batch": "micro-batch", "recompute": "layers recomputed",
}  # fmt: skip
"""Keys of the event `start` behind ranks and hosts, and their names on the page."""
_ORDINARY: dict[str, Any] = {"offload": "none", "micro_batch": 0, "recompute": False, "hosts": 1}
"""Values of them that are not shown."""


def curves(record: RunRecord) -> list[dict[str, Any]]:
    """Returns training curves of both stages, with their jobs."""
    found = []
    for stage, log in record.logs.items():
        steps = log.steps[-1] if log.steps else 0
        notes = [f"{steps:,} steps"] if steps else []
        if (epochs := log.last("epoch")) is not None:
            notes.append(f"{epochs:.1f} epochs")
        if (seconds := log.last("time_s")) is not None:
            notes.append(duration(seconds))
        if seconds and (wait := sum(value for _, value in log.curve("wait_s")) / seconds) > 0:
            notes.append(f"{wait:.1%} of it waiting for data")
        skipped = sum(value for _, value in log.curve("skipped"))
        found.append(
            {"title": _title(record, stage), "notes": notes, "skipped": fixed(skipped or None, 0),
             "unread": log.unread, "job": job(log), "charts": _charts(log),
             "scales": [course.words for course in scales.courses(record, log)]}
        )  # fmt: skip
    return found


def _title(record: RunRecord, stage: str) -> str:
    number = int(stage == "finetune")
    return f"Stage {number + 1}: {record.spec.stage_titles[number]}"


def _charts(log: StageLog) -> list[tuple[str, list[tuple[int, str]], str]]:
    """Returns (title, colour and words of each line's key, drawing) of each chart with logged values."""
    drawn = []
    for title, wanted in _CHARTS:
        if title.startswith("R@1") and log.last("clips", "dev") == 1:
            continue  # one clip is always found among one
        if isinstance(wanted, str):
            keys = [key for key in scales.keys_of(log, wanted) if key not in ("loss", "loss_scale")]
            wanted = tuple((scales.level(key), key, 2 * at) for at, key in enumerate(keys))
        lines = [
            Line(name, _points(log, key), colour, key.startswith("dev ")) for name, key, colour in wanted
        ]
        lines = [line for line in lines if line.points]
        if drawing := figures.line_chart(title, lines, log=title in _LOGARITHMIC):
            drawn.append((title, [_key(line, alone=len(lines) == 1) for line in lines], drawing))
    return drawn


def _points(log: StageLog, key: str) -> list[tuple[float, float]]:
    if key == "waiting":
        return _waiting(log)
    event, _, name = key.rpartition(" ")
    return [(step, value * _FACTORS.get(name, 1.0)) for step, value in log.curve(name, event or "step")]


def _waiting(log: StageLog) -> list[tuple[float, float]]:
    """Returns (step, percent): a step's time is its clips over its rate."""
    wait, clips, rate = (dict(log.curve(key)) for key in ("wait_s", "clips", "samples_per_s"))
    return [
        (step, 100 * min(seconds * rate[step] / clips[step], 1.0))
        for step, seconds in wait.items()
        if clips.get(step, 0) > 0 and rate.get(step, 0) > 0
    ]


def _key(line: Line, alone: bool) -> tuple[int, str]:
    """Returns colour, name and last value of a curve: the smoothed one where the raw one jumps."""
    points = line.points if line.marks or not figures.jumps(line.points) else figures.smooth(line.points)
    return line.colour, f"{'at the end' if alone else line.name} {figures.short(points[-1][1])}"


def job(log: StageLog) -> list[tuple[str, str]]:
    """Returns layout, restarts, checkpoints and bad steps of a stage; empty for a log without a start (older runs)."""
    starts = log.of_event("start")
    if not starts:
        return []
    layouts = list(dict.fromkeys(map(_layout, starts)))
    rows = [("layout", "; then ".join(layouts))]
    if again := [f"{row['step']:,}" for row in starts if row["step"] > 0]:
        rows.append(("resumed", f"after step {', '.join(again)}"))
    if saves := log.of_event("save"):
        rows.append(("checkpoints", _saves(saves)))
    if bad := log.of_event("bad_step"):
        steps = ", ".join(f"{row['step']:,} ({row.get('action', 'left out')})" for row in bad[:8])
        rows.append(("bad steps", f"{len(bad)}: {steps}" + (" …" if len(bad) > 8 else "")))
    if early := log.of_event("early_stop"):
        rows.append(("ended early", f"dev was best at step {early[-1].get('best_step', '?')}"))
    if number(peak := starts[-1].get("peak_tflops")):
        source = starts[-1].get("peak_source", "")
        rows.append(("MFU is of", f"{peak:.3g} TFLOP/s a rank ({source})"))
    return rows


def _layout(start: Mapping[str, Any]) -> str:
    told = {key: value for key, value in start.items() if key not in _ORDINARY or value != _ORDINARY[key]}
    words = [
        f"{told[key]} {key if told[key] != 1 else key[:-1]}" for key in ("ranks", "hosts") if key in told
    ]
    return ", ".join([*words, *(f"{name} {told[key]}" for key, name in _LAYOUT.items() if key in told)])


def _saves(saves: Sequence[Mapping[str, Any]]) -> str:
    """Returns number and size of checkpoints, and how long training waited for them."""

    def of(key: str) -> list[float]:
        return [row[key] for row in saves if number(row.get(key))]

    text = f"{len(saves)} written"
    if sizes := of("bytes"):
        text += f", {max(sizes) / 1e6:,.1f} MB of rank 0 each"
    if waited := of("blocked_s"):
        text += f"; training was blocked for {sum(waited):.2f} s in all"
    if behind := of("background_s"):
        text += f", {duration(sum(behind))} of writing went on beside it"
    return text
