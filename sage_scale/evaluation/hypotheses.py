"""Hypotheses as text: `predictions/SPLIT.txt` (a sentence a line) and `.tsv` (key, reference, hypothesis; a header).

Both are in the order of the references, that of the corpus. A tab or an end of line inside a text becomes a space, so
that a text read back equals the written one in the normal form of the scores (`text.languages.normal_form`).
`read_sentences` reads both, and `predictions/SPLIT.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sage_scale.errors import UsageError
from sage_scale.storage import on_this_machine
from sage_scale.untrusted.display import message_line, shortened
from sage_scale.untrusted.files import expanded, lines, read_text
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object

COLUMNS = ("key", "reference", "hypothesis")
_SAFE = {
    **dict.fromkeys(map(ord, "\t\n\r\f\x85\u2028\u2029"), " "),
    **dict.fromkeys(map(ord, "\v\x1c\x1d\x1e")),
}
TABLES = (".tsv", ".jsonl")
"""Endings of files that hold hypotheses and references."""


def write_predictions(folder: Path, split: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of a split as SPLIT.jsonl, SPLIT.txt and SPLIT.tsv into a folder, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    table = ["\t".join(COLUMNS), *("\t".join(one_line(row[name]) for name in COLUMNS) for row in rows)]
    for ending, content in (
        ("jsonl", [json.dumps(row, ensure_ascii=False) for row in rows]),
        ("txt", [one_line(row["hypothesis"]) for row in rows]),
        ("tsv", table),
    ):
        path = folder / f"{split}.{ending}"
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text("".join(line + "\n" for line in content), encoding="utf-8", newline="\n")
        partial.replace(path)


def one_line(text: str) -> str:
    """Returns a text without tabs and ends of lines: spaces, or nothing where the normal form removes them, too."""
    return text.translate(_SAFE)


def read_sentences(path: Path, column: str = "hypothesis") -> list[str]:
    """Returns the sentences of a file in its order: lines of a .txt, a column of a .tsv or .jsonl of predictions.

    Raises UsageError, which names the file, where it cannot be read or has no such column.
    """
    path = on_this_machine(path, "sentences")
    try:
        found = lines(read_text(expanded(path)))
        if path.suffix.lower() == ".jsonl":
            return [_value(parse_json_object(line), column) for line in found if line.strip()]
        if path.suffix.lower() == ".tsv":
            return _column(found, column)
        return found
    except (OSError, ValueError, InvalidJSON) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else message_line(error)
        raise UsageError(f"{shortened(path, 300)}: {reason}") from None


def _column(rows: Sequence[str], column: str) -> list[str]:
    header = rows[0].split("\t") if rows else []
    if column not in header:
        raise ValueError(f"there is no column '{column}' in its first line; it needs a header")
    cells = [row.split("\t") for row in rows[1:]]
    for number, row in enumerate(cells, start=2):
        if len(row) != len(header):
            raise ValueError(f"line {number} has {len(row)} columns, the header {len(header)}")
    return [row[header.index(column)] for row in cells]


def _value(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"a line has no text '{column}'")
    return value
