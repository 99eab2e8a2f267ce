"""Hypotheses as text: `predictions/SPLIT.txt` (a sentence a line) and `.tsv` (key, reference, hypothesis; a header).

Both are in the order of the references, that of the corpus. A tab or an end of line inside a text becomes a space, so
that a text read back equals the written one in the normal form of the scores (`text.languages.normal_form`).
`read_sentences` reads both, and `predictions/SPLIT.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
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
MAX_BYTES = 512 << 20
MAX_SENTENCE = 20_000
"""Longest sentence, characters: ROUGE-L takes time in the square of its words."""


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

    Raises UsageError, which names the file, where it cannot be read, has no such column, or a sentence is too long.
    """
    path = on_this_machine(path, "sentences")
    try:
        found = []
        for number, text in _numbered(path, column):
            if len(text) > MAX_SENTENCE:
                raise ValueError(
                    f"line {number} has a sentence of {len(text):,} characters, more than {MAX_SENTENCE:,}"
                )
            found.append(text)
        return found
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UsageError(f"{shortened(path, 300)} is not UTF-8 (line {line}): save it as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else message_line(error)
        raise UsageError(f"{shortened(path, 300)}: {reason}") from None


def check_same_clips(paths: Sequence[Path]) -> None:
    """Raises UsageError where two tables of predictions with keys are not of the same clips in the same order.

    Files without keys (.txt, other tables) are not compared.
    """
    known: tuple[Path, list[str]] | None = None
    for path in paths:
        try:
            keys = read_sentences(path, "key") if path.suffix.lower() in TABLES else []
        except UsageError:
            continue
        if known is not None and keys:
            for number, (key, first) in enumerate(zip(keys, known[1]), start=1):
                if key != first:
                    raise UsageError(
                        f"sentence {number} of {shortened(path, 300)} is of clip '{shortened(key)}', of "
                        f"{shortened(known[0], 300)} of clip '{shortened(first)}': give files of the same clips in the "
                        "same order"
                    )
        elif keys:
            known = path, keys


def _numbered(path: Path, column: str) -> Iterator[tuple[int, str]]:
    """Yields (number of the line, text)."""
    found = lines(read_text(expanded(path), MAX_BYTES))
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(found, start=1):
            if line.strip():
                yield number, _value(line, column, number)
    elif path.suffix.lower() == ".tsv":
        yield from _column(found, column)
    else:
        yield from enumerate(found, start=1)


def _column(rows: Sequence[str], column: str) -> Iterator[tuple[int, str]]:
    header = rows[0].split("\t") if rows else []
    if column not in header:
        raise ValueError(f"there is no column '{column}' in its first line; it needs a header")
    for number, row in enumerate(rows[1:], start=2):
        cells = row.split("\t")
        if len(cells) != len(header):
            raise ValueError(f"line {number} has {len(cells)} columns, the header {len(header)}")
        yield number, cells[header.index(column)]


def _value(line: str, column: str, number: int) -> str:
    try:
        value = parse_json_object(line).get(column)
    except InvalidJSON as error:
        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(value, str):
        raise ValueError(f"line {number} has no text '{column}'")
    return value
