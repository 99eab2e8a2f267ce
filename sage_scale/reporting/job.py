"""What a stage ran on, and what happened to it: layout, starts, checkpoints, steps left out, early stop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_scale.reporting.markup import duration, escape, number, scroll
from sage_scale.reporting.runlog import StageLog

LAYOUT = (
    ("ranks", "ranks"),
    ("hosts", "hosts"),
    ("device", "device"),
    ("zero_stage", "ZeRO stage"),
    ("offload", "offloaded to"),
    ("precision", "precision"),
    ("batch_size", "global batch"),
    ("micro_batch", "micro-batch"),
    ("recompute", "layers recomputed"),
)
"""Keys of the event `start`, and their names on the page."""


def job(log: StageLog) -> str:
    """A table of the stage's job, or nothing where its log knows of no start (a run of an older version)."""
    starts = log.of_event("start")
    if not starts:
        return ""
    rows = [("layout", "; then ".join(_layouts(starts)))]
    again = [row for row in starts if row["step"] > 0]
    if again:
        rows.append(("resumed", "after step " + ", ".join(f"{row['step']:,}" for row in again)))
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
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows
    )
    return scroll(f'<table class="job"><tbody>{body}</tbody></table>')


def _layouts(starts: list[dict[str, Any]]) -> list[str]:
    """Each layout in words, once where it stayed the same."""
    found: list[str] = []
    for row in starts:
        words = [f"{row[key]} {name}" if key in ("ranks", "hosts") else f"{name} {row[key]}"
                 for key, name in LAYOUT if _told(key, row)]  # fmt: skip
        text = ", ".join(words)
        if not found or found[-1] != text:
            found.append(text)
    return found


def _told(key: str, row: Mapping[str, Any]) -> bool:
    """Only what is out of the ordinary of offload, micro-batches, recomputation and hosts."""
    ordinary: dict[str, Any] = {"offload": "none", "micro_batch": 0, "recompute": False, "hosts": 1}
    return key in row and row[key] != ordinary.get(key)


def _saves(saves: list[dict[str, Any]]) -> str:
    """How many, how large, and what training waited for them."""
    text = f"{len(saves)} written"
    sizes = [row["bytes"] for row in saves if number(row.get("bytes"))]
    if sizes:
        text += f", {max(sizes) / 1e6:,.1f} MB of rank 0 each"
    waited = [row["blocked_s"] for row in saves if number(row.get("blocked_s"))]
    if waited:
        text += f"; training stood still for {sum(waited):.2f} s in all"
    behind = [row["background_s"] for row in saves if number(row.get("background_s"))]
    if behind:
        text += f", {duration(sum(behind))} of writing went on beside it"
    return text
