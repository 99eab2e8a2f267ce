"""Links from a page to files of a run, relative to the page's folder."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from sage_scale.reporting.runlog import RunRecord

FORMS = ("txt", "tsv", "jsonl")
"""Endings of the files of hypotheses: a line a clip, a table with the references, all that is known of each clip."""


def hypotheses(record: RunRecord, split: str, page: Path) -> list[tuple[str, str]]:
    """Returns (ending, link) of each file of a split's hypotheses that is there."""
    files = [record.folder / "predictions" / f"{split}.{form}" for form in FORMS]
    return [(file.suffix, link(file, page)) for file in files if file.is_file()]


def link(file: Path, page: Path) -> str:
    """Returns the path of `file` from the folder of `page`, as a relative URL; it cannot be taken for a scheme."""
    return "./" + quote(os.path.relpath(file.resolve(), page.resolve().parent).replace(os.sep, "/"))
