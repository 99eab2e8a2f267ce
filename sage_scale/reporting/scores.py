"""The section of scores: each split, its languages and unseen signers, and the controls that must be beaten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_scale.reporting import figures
from sage_scale.reporting.markup import escape, number, scroll, section
from sage_scale.reporting.runlog import RunRecord

FEW_CLIPS = 20
"""Scores of fewer clips are said to be of too few."""
NEXT_TO_NOTHING = 0.5
"""A BLEU-4 below it is next to nothing: no ratio is given to it or of it."""
CONTROL_NAMES = {
    "exchanged_videos": "videos exchanged at random",
    "blank_videos": "blank videos",
    "nearest_in_length": "training sentence nearest in length",
    "prior_sentence": "most typical training sentence",
}


def clips(values: Mapping[str, Any]) -> str:
    """How many clips some scores are of, in words, with a warning where they are too few to mean anything."""
    if not number(values.get("clips")):
        return ""
    count = int(values["clips"])
    return f"{count:,} clip{'' if count == 1 else 's'}" + (" (too few to tell)" if count < FEW_CLIPS else "")


def best_control(scores: Mapping[str, Any]) -> tuple[str, float] | None:
    """(name, BLEU-4) of the control that comes nearest; None where none was scored."""
    known = [
        (_control_name(name), float(values["bleu4"])) for name, values in _scored(scores.get("controls"))
    ]
    return max(known, key=lambda pair: pair[1]) if known else None


def scores_table(record: RunRecord) -> str:
    """Scores of each split, of its languages and unseen signers, and under them its controls."""
    splits = [
        record.split,
        *(split for split in record.scores_by_split if split != record.split),
    ]
    groups: list[tuple[str, list[tuple[str, Mapping[str, Any], bool]]]] = []
    for split in splits:
        scores = record.scores_by_split.get(split, {})
        if not number(scores.get("bleu4")):
            continue
        rows: list[tuple[str, Mapping[str, Any], bool]] = [(split, scores, True)]
        rows += [(f"{split}, {tag}", values, False) for tag, values in _scored(scores.get("languages"))]
        rows += [
            (f"{split}, unseen signers", values, True) for _, values in _scored({0: scores.get("heldout")})
        ]
        groups.append(("", rows))
        controls = [(_control_name(name), values, False) for name, values in _scored(scores.get("controls"))]
        if controls:
            title = "Controls that a translator must beat" + (f", {split}" if len(splits) > 1 else "")
            groups.append((title, controls))
    if not groups:
        return ""
    most = max(float(values["bleu4"]) for _, rows in groups for _, values, _ in rows)
    body = ""
    for title, rows in groups:
        if title:
            body += f'<tr class="group"><th colspan="7" scope="rowgroup">{escape(title)}</th></tr>'
        body += "".join(_score_row(*row, most=most) for row in rows)
    names = ("set", "BLEU-4", "ROUGE-L", "BLEU-1", "BLEU-2", "BLEU-3", "clips")
    left = ' class="left"'
    head = "".join(f'<th scope="col"{left if name == "BLEU-4" else ""}>{name}</th>' for name in names)
    scores = groups[0][1][0][1]
    further = [
        f"{words} {scores[key]:.2f}"
        for key, words in (
            ("content_f1", "content-word F1"),
            ("bleu4_none", "BLEU-4 without tokenisation"),
            ("rouge_l_beta12", "ROUGE-L with beta 1.2"),
        )
        if number(scores.get(key))
    ]
    notes = f'<p class="note">On the first line also: {", ".join(further)}.</p>' if further else ""
    if _scored(scores.get("languages")):
        notes += (
            '<p class="note">Of several languages, each sentence is cut by its own language\'s tokeniser, and the '
            "counts of all clips are added up; a language's own line is of its clips alone.</p>"
        )
    if scores.get("signature"):
        notes += f'<p class="note">sacrebleu: <code>{escape(scores["signature"])}</code></p>'
    intro = '<p class="note">Percent. A control is given no chance to look at the right video.</p>'
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return section("scores", "Scores and controls", intro + scroll(table) + notes)


def _scored(values: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and scores of what has a BLEU-4, in the order of the file."""
    items = values.items() if isinstance(values, Mapping) else ()
    return [
        (str(name), scores)
        for name, scores in items
        if isinstance(scores, Mapping) and number(scores.get("bleu4"))
    ]


def _control_name(name: str) -> str:
    return CONTROL_NAMES.get(name, name.replace("_", " "))


def _score_row(name: str, values: Mapping[str, Any], strong: bool, most: float) -> str:
    drawing = figures.bar(float(values["bleu4"]), most, strong)
    tds = f'<td class="with-bar"><div><span>{values["bleu4"]:.2f}</span>{drawing}</div></td>'
    for key in ("rouge_l", "bleu1", "bleu2", "bleu3"):
        tds += f"<td>{values[key]:.2f}</td>" if number(values.get(key)) else "<td></td>"
    tds += f"<td>{escape(values.get('clips', ''))}</td>"
    return f'<tr class="{"strong" if strong else ""}"><th scope="row">{escape(name)}</th>{tds}</tr>'
