"""Reading an entry of scores.json (`evaluation.split_scores`) for the pages, and its figures as text.

Older entries have fewer metrics, and neither intervals, groups nor tests; a value of another kind counts as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_scale.evaluation.significance import Interval, PairedTest
from sage_scale.reporting.runlog import RunRecord, number

METRICS = {
    "bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "chrf": "chrF", "bleu1": "BLEU-1", "bleu2": "BLEU-2", "bleu3": "BLEU-3",
    "bleurt": "BLEURT", "comet": "COMET", "content_f1": "content-word F1",
}  # fmt: skip
"""Keys of the scores that are shown, and their names."""
HELDOUT = "unseen signers"
KINDS = {"signer": "Signer", "words": "Length of the reference (words)", "segments": "Number of segments"}
"""Keys of `groups`, and their titles. Words are characters in languages without spaces."""
CONTROL_NAMES = {
    "exchanged_videos": "videos exchanged at random",
    "blank_videos": "blank videos",
    "nearest_in_length": "training sentence nearest in length",
    "prior_sentence": "most typical training sentence",
}
Scored = list[tuple[str, Mapping[str, Any]]]
"""Names and their scores."""


def scored(values: Any) -> Scored:
    """Returns entries with a BLEU-4, (name, scores), in the order of the file."""
    items = values.items() if isinstance(values, Mapping) else ()
    return [(str(name), it) for name, it in items if isinstance(it, Mapping) and number(it.get("bleu4"))]


def sets_of(record: RunRecord) -> dict[str, Mapping[str, Any]]:
    """Returns a run's scores by set: `test`, `test, unseen signers`, `dev`; test first."""
    found: dict[str, Mapping[str, Any]] = {}
    for split in sorted(
        record.scores_by_split, key=lambda name: (name not in ("test", "dev"), name != "test")
    ):
        found[split] = record.scores_by_split[split]
        found |= {f"{split}, {HELDOUT}": it for _, it in scored({0: found[split].get("heldout")})}
    return found


def split_of(name: str) -> str:
    """Returns the name of a set's files in `predictions/`."""
    split, comma, _ = name.partition(f", {HELDOUT}")
    return f"{split}_heldout" if comma else split


def languages(values: Mapping[str, Any]) -> Scored:
    """Returns the scores of each language, and their mean; empty where there is one language."""
    found = scored(values.get("languages"))
    return found + scored({"mean over languages": values.get("macro")}) if found else []


def breakdowns(values: Mapping[str, Any]) -> list[tuple[str, Scored]]:
    """Returns the scores of groups of clips by signer, length and number of segments: (title, groups)."""
    groups = values.get("groups")
    kinds = groups.items() if isinstance(groups, Mapping) else ()
    return [(KINDS.get(str(kind), str(kind)), found) for kind, some in kinds if (found := scored(some))]


def stored_interval(values: Mapping[str, Any], key: str) -> Interval | None:
    """Returns the interval over clips that stands beside a score; None where there is none."""
    intervals = values.get("intervals")
    found = intervals.get(key) if isinstance(intervals, Mapping) else None
    if isinstance(found, list) and len(found) == 2 and all(map(number, found)) and number(values.get(key)):
        return Interval(float(values[key]), float(found[0]), float(found[1]))
    return None


def stored_test(control: Mapping[str, Any], key: str = "bleu4") -> PairedTest | None:
    """Returns the paired test of a run against a control; None where there is none."""
    paired = control.get("paired")
    found = paired.get(key) if isinstance(paired, Mapping) else None
    names = ("difference", "low", "high", "p")
    if isinstance(found, Mapping) and all(number(found.get(name)) for name in names):
        return PairedTest(*(float(found[name]) for name in names))
    return None


def aligned(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the scores of stage 1's tokens against gold signs (`evaluation.sign_alignment`); empty without them."""
    found = values.get("alignment")
    whole = isinstance(found, Mapping) and all(
        number(found.get(key)) for key in ("accuracy", "chance", "scored")
    )
    return found if whole and isinstance(found, Mapping) else {}


def aligned_words(values: Mapping[str, Any]) -> str:
    """Returns these scores in a line; empty without them."""
    if not (found := aligned(values)):
        return ""
    return f"{found['accuracy']:.1f}% of {found['scored']:,.0f} tokens; chance {found['chance']:.1f}%"


def control_name(name: str) -> str:
    """Returns the words for a control of scores.json."""
    return CONTROL_NAMES.get(name, name.replace("_", " "))


def score_cell(values: Mapping[str, Any], key: str) -> dict[str, str] | None:
    """Returns a run's score with its interval over clips; None where it has none."""
    if not number(values.get(key)):
        return None
    interval = stored_interval(values, key)
    return {"mean": f"{float(values[key]):.2f}", "deviation": "",
            "interval": bounds(interval.low, interval.high) if interval else ""}  # fmt: skip


def bounds(low: float, high: float) -> str:
    """Returns `[-1.25, 0.55]`, with a true minus."""
    return f"[{low:.2f}, {high:.2f}]".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """Returns a difference with its sign, two digits behind the point."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def p_text(p: float) -> str:
    """Returns p as `p = 0.012` or `p < 0.001`, which no line breaks."""
    words = "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
    return words.replace(" ", "\N{NO-BREAK SPACE}")
