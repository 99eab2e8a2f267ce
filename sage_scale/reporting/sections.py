"""Values of the sections of a run's page: a function for each macro of templates/sections.html, which returns nothing
where the run has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import Any

from sage_scale.config import from_mapping
from sage_scale.errors import RecipeError
from sage_scale.reporting import clip_figures, figures
from sage_scale.reporting.figures import brief
from sage_scale.reporting.run_scores import best_control
from sage_scale.reporting.runlog import RunRecord, StageLog, fixed, number
from sage_scale.reporting.score_values import bounds, stored_interval
from sage_scale.untrusted.display import duration

PAPER_TOKEN_RATIO = 0.129
"""Segments per frame on PHOENIX14T (SAGE, Table 2)."""
FEW_CLIPS = 20
"""Scores of fewer clips are said to be of too few."""
NEXT_TO_NOTHING = 0.5
"""A BLEU-4 below it is next to nothing: no ratio is given to it or of it."""
BROKEN = (KeyError, TypeError, ValueError, IndexError)
"""Errors of values of another kind than a run writes; a clip that has them is left out."""


def about(record: RunRecord) -> list[tuple[str, str, str]]:
    """Returns recipe and dataset of the run: (words, HTML element, value)."""
    found = [("recipe", "b", name)] if (name := record.setting("name")) else []
    try:
        if record.recipe:
            found.append(("fingerprint", "code", from_mapping(record.recipe).fingerprint()))
    except RecipeError:
        found.append(("recipe of another version", "", ""))
    keys = {"corpus": "corpus.name", "language": "corpus.language", "segments by": "segmentation.tagger"}
    found += [(words, "", value) for words, key in keys.items() if (value := record.of_datasets(key))]
    notice = record.scores.get("notice")
    return [*found, ("", "b", notice)] if isinstance(notice, str) else found


def tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """Returns figures at a glance: (name, value, remark)."""
    found: list[tuple[str, str, str]] = []
    values = record.scores
    if number(values.get("bleu4")):
        rouge = fixed(values.get("rouge_l"), 1)
        interval = stored_interval(values, "bleu4")
        between = f"95% {bounds(interval.low, interval.high)}" if interval else ""
        small = ", ".join(filter(None, (between, clips(values), rouge and f"ROUGE-L {rouge}")))
        found.append((f"BLEU-4 on {values['split']}", f"{values['bleu4']:.1f}", small))
        if best := best_control(values):
            found.append(_against(float(values["bleu4"]), *best))
    heldout = values.get("heldout")
    if isinstance(heldout, Mapping) and number(heldout.get("bleu4")):
        found.append(("BLEU-4 on unseen signers", f"{heldout['bleu4']:.1f}", clips(heldout)))
    if number(values.get("token_ratio")) and record.spec.tokens_are_segments:
        small = f"segments per frame; {PAPER_TOKEN_RATIO} in SAGE"
        found.append(("token ratio", f"{values['token_ratio']:.3f}", small))
    if "pretrain" in record.logs and (recalled := _recall(record.logs["pretrain"])):
        found.append(recalled)
    if number(f1 := record.found.get("f1")):
        guessed = record.found.get("control", {}).get("f1", 0.0)
        of = ", ".join(filter(None, (record.found["split"], clips(record.found))))
        found.append(("pseudo-glosses found", f"{f1:.1f}", f"micro F1 on {of}; guessing {guessed:.1f}"))
    if seconds := [row["seconds"] for row in record.timing if number(row.get("seconds"))]:
        memory = [row["memory_mb"] for row in record.timing if number(row.get("memory_mb"))]
        peak = f"at most {max(memory) / 1000:.1f} GB in a process" if memory else ""
        found.append(("time of all stages", brief(sum(seconds)), peak))
    return found


def clips(values: Mapping[str, Any]) -> str:
    """Returns how many clips some scores are of, with a warning where they are too few to mean anything."""
    if not number(values.get("clips")):
        return ""
    count = int(values["clips"])
    return f"{count:,} clip{'' if count == 1 else 's'}" + (" (too few to tell)" if count < FEW_CLIPS else "")


def _against(bleu4: float, name: str, control: float) -> tuple[str, str, str]:
    """Returns a tile: how many times the best control's score; its score alone where either is next to nothing."""
    if min(bleu4, control) < NEXT_TO_NOTHING:
        return "best control, BLEU-4", f"{control:.1f}", name
    return "against the best control", f"{bleu4 / control:.1f}×", f"{control:.1f}: {name}"


def _recall(log: StageLog) -> tuple[str, str, str] | None:
    """Returns a tile: R@1 of stage 1 on dev, beside chance; None where there are too few clips to err among."""
    row = next((row for row in reversed(log.dev) if number(row.get("r1_v2t"))), None)
    if row is None or (number(row.get("clips")) and row["clips"] < 2):
        return None
    among = f", {clips(row)}; chance {100 / row['clips']:.1f}%" if number(row.get("clips")) else ""
    return "stage 1 finds the text", f"{row['r1_v2t']:.0f}%", f"R@1, video to text, dev{among}"


def timelines(record: RunRecord) -> dict[str, Any] | None:
    """Returns segments over time with thumbnails, and the gold signs where they are known."""
    found = []
    for row in record.timelines:
        try:
            frames, fps, segments = int(row["frames"]), float(row["fps"]), row["segments"]
            gold = [(float(start), float(end), str(gloss)) for start, end, gloss in row.get("gold") or ()]
            drawing = clip_figures.timeline(frames, fps, segments, gold)
            strip = clip_figures.film_strip(frames, segments, _pictures(row.get("thumbnails"), segments))
        except BROKEN:
            continue
        found.append({"sentence": row.get("sentence", ""), "hypothesis": row.get("hypothesis"), "strip": strip,
                      "drawing": drawing})  # fmt: skip
    read = (
        "becomes one visual token"
        if record.spec.tokens_are_segments
        else "is read frame by frame, one after the other"
    )
    return {"role": read, "clips": found} if found else None


def _pictures(thumbnails: Any, segments: Sequence[Sequence[int]]) -> dict[int, str]:
    """Returns JPEGs in base64 by the number of the segment that they are of."""
    found = {}
    for n, thumbnail in enumerate(thumbnails if isinstance(thumbnails, list) else []):
        given = thumbnail if isinstance(thumbnail, dict) else {"jpeg": thumbnail}
        if figures.is_jpeg(given.get("jpeg")):
            frame = given["frame"] if isinstance(given.get("frame"), int) else -1
            inside = (i for i, (start, end) in enumerate(segments) if start <= frame < end)
            found[next(inside, n)] = str(given["jpeg"])
    return found


def cost(record: RunRecord) -> dict[str, Any] | None:
    """Returns time and peak memory of each stage."""
    timed = [row for row in record.timing if number(row.get("seconds"))]
    if not timed:
        return None
    most = max(float(row["seconds"]) for row in timed)
    rows = []
    for row in timed:
        memory = row["memory_mb"] / 1000 if number(row.get("memory_mb")) else 0.0
        seconds = float(row["seconds"])
        rows.append({
            "stage": row.get("stage", ""), "note": row.get("note"), "time": duration(seconds),
            "share": figures.share(seconds, most), "memory": f"{memory:.2f} GB" if memory > 0 else "",
        })  # fmt: skip
    return {"rows": rows, "total": duration(sum(float(row["seconds"]) for row in timed))}


def recipe(record: RunRecord) -> dict[str, Any] | None:
    """Returns the recipe, whole, and the command that shows it."""
    command = f"sage-scale recipe show {quote(str(record.folder / 'recipe.yaml'))}"
    return {"command": command, "lines": record.recipe_text.split("\n")} if record.recipe_text else None
