"""`scores.json` of a run: the scores of each split, as `evaluate` leaves them.

{split: {"bleu4": ..., "languages": {tag: scores}, "heldout": scores, "controls": {name: scores}, ...}};
`evaluation.split_scores` describes an entry. Version 0.1.0 wrote the scores of one split alone, with its name as
`split`; they are read as that split's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sage_scale.errors import UsageError
from sage_scale.untrusted.files import read_bytes
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object

FILE = "scores.json"
VERSION = 2
"""Form of an entry. 1, unmarked, was that of 0.1.0: without chrF, intervals, groups and paired tests."""


def read_scores(run: str | Path) -> dict[str, dict[str, Any]]:
    """Returns the scores of a run by split, each with `split`; empty where there are none yet.

    Raises UsageError where the file is damaged.
    """
    path = Path(run) / FILE
    try:
        return scores_by_split(parse_json_object(read_bytes(path)))
    except FileNotFoundError:
        return {}
    except (InvalidJSON, OSError) as error:
        raise UsageError(f"{path} is damaged ({error}): run `sage-scale evaluate` again") from None


def scores_by_split(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the entries of scores.json by split, each with its name as `split`."""
    bleu4 = document.get("bleu4")
    if isinstance(bleu4, int | float) and math.isfinite(bleu4):
        document = {str(document.get("split", "test")): document}
    return {
        split: {**scores, "split": split} for split, scores in document.items() if isinstance(scores, dict)
    }


def write_scores(run: Path, split: str, scores: Mapping[str, Any]) -> str:
    """Puts the scores of a split into scores.json of a run, in place of older ones of that split, atomically.

    Returns a line about what was lost where the file was damaged, else nothing.
    """
    lost = ""
    try:
        known = read_scores(run)
    except UsageError as error:
        known, lost = {}, f"scores of other splits are lost: {error}"
    partial = run / f"{FILE}.partial"
    document = json.dumps({**known, split: dict(scores)}, indent=1, ensure_ascii=False)
    partial.write_text(document + "\n", encoding="utf-8")
    partial.replace(run / FILE)
    return lost
