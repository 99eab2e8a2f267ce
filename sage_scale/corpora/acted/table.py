"""Reads glossed sentences: tables of `corpus act`.

| column | other names | content |
|---|---|---|
| `id` | name, clip, key | unique; needed |
| `glosses` | gloss, orth, annotation | in signing order, between blanks; in JSON also a list; needed |
| `sentence` | text, translation | needed |
| `split` | set, subset | train, dev, test or another; else of an id `dev/x`, of the file's name, or train |
| `signer` | speaker | empty where unknown |
| `language` | lang | BCP 47; else `corpus.language` |
| `frames` | n_frames, num_frames | length of the clip, frames at 25 a second |
| `gloss_frames` | durations | length of each sign, frames at 25 a second, as many as glosses |

A `.jsonl` file has one object a line. Any other file is text with a line of column names, separated by tabs, `|`, `;`
or commas. A row is one line; case does not count in names of columns, and other columns are passed over.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sage_scale.corpora.adapters import SPLIT_NAMES, require, unquoted
from sage_scale.errors import ClipRejected, Reject, UsageError
from sage_scale.text.languages import language_tag
from sage_scale.untrusted.display import message_line, shortened
from sage_scale.untrusted.files import lines, open_regular, text_fault
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object

MAX_BYTES = 512 << 20
MAX_GLOSSES = 500
"""Most signs of a sentence."""
MAX_FRAMES = 20_000
MAX_NAME, MAX_SENTENCE = 500, 20_000
"""Longest id, gloss and signer, and longest sentence, characters."""
COLUMNS = {
    "id": "id", "name": "id", "clip": "id", "key": "id",
    "glosses": "glosses", "gloss": "glosses", "orth": "glosses", "annotation": "glosses",
    "sentence": "sentence", "text": "sentence", "translation": "sentence",
    "split": "split", "set": "split", "subset": "split",
    "signer": "signer", "speaker": "signer", "language": "language", "lang": "language",
    "frames": "frames", "n_frames": "frames", "num_frames": "frames",
    "gloss_frames": "gloss_frames", "durations": "gloss_frames",
}  # fmt: skip
NEEDED = ("id", "glosses", "sentence")
_SPLIT = re.compile(r"[a-z0-9_-]{1,40}")
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, kw_only=True)
class GlossedSentence:
    """One row."""

    id: str
    glosses: tuple[str, ...]
    sentence: str
    language: str
    split: str = "train"
    signer: str = ""
    frames: int = 0
    """Length of the clip at 25 frames a second, 0 where unknown."""
    gloss_frames: tuple[int, ...] = ()
    """Length of each sign, empty where unknown."""


@dataclass(frozen=True)
class GlossTable:
    """The rows of one or several files, in their order."""

    rows: tuple[GlossedSentence, ...]
    left_out: tuple[Reject, ...]
    name: str
    """Names of the files, printable."""
    sha256: str
    """Hash of the files' bytes, one after another."""

    @property
    def glosses(self) -> set[str]:
        """The different glosses."""
        return {gloss for row in self.rows for gloss in row.glosses}


def read_gloss_tables(paths: Sequence[Path], language: str) -> GlossTable:
    """Returns the rows of tables; what cannot be acted is left out, with its reason.

    `language` is that of rows that state none. Raises UsageError where a file is no such table, or nothing is left.
    """
    rows: dict[str, GlossedSentence] = {}
    left_out: list[Reject] = []
    sha = hashlib.sha256()
    for path in paths:
        data = _bytes(path)
        sha.update(data)
        for here, found in _records(path, _text(path, data)):
            name = here
            try:
                if isinstance(found, str):
                    raise ClipRejected("bad-row", found)
                values = _named(found)
                if isinstance(values.get("id"), str) and values["id"].strip():
                    name = values["id"].strip()
                row = _sentence(values, path.name, language)
                require(row.id not in rows, "repeated-id", f"{here}: an earlier row has the same id")
                rows[row.id] = row
            except ClipRejected as rejected:
                detail = rejected.detail if rejected.detail.startswith(here) else f"{here}: {rejected.detail}"
                left_out.append(Reject(id=name, reason=rejected.reason, detail=detail.removesuffix(": ")))
    names = ", ".join(shortened(path.name) for path in paths)
    if not rows:
        first = f": {left_out_line(left_out[0])}" if left_out else ""
        raise UsageError(f"--table {names}: no row can be acted{first}")
    return GlossTable(tuple(rows.values()), tuple(left_out), names, sha.hexdigest())


def left_out_line(row: Reject) -> str:
    """Returns id, reason, file and line of a row left out; without the id where the row has none."""
    named = row.detail == row.id or row.detail.startswith(f"{row.id}:")
    return f"{'' if named else f'{shortened(row.id)}: '}{row.reason}: {row.detail}"


def _bytes(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise UsageError(f"--table {path}: {size:,} bytes, more than {MAX_BYTES:,}: divide it")
            return file.read()
    except OSError as error:
        raise UsageError(f"--table {path} cannot be read: {error.strerror or error}") from None


def _text(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"--table {path} is not UTF-8 (line {line}): save it as UTF-8") from None


def _records(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yields ("FILE line N", column -> value, or why the row cannot be read)."""
    rows = lines(text)
    if path.suffix.lower() in (".jsonl", ".json", ".ndjson"):
        for number, line in enumerate(rows, start=1):
            if line.strip():
                here = f"{shortened(path.name)} line {number}"
                try:
                    yield here, parse_json_object(line)
                except InvalidJSON as error:
                    yield here, str(error)
        return
    delimiter, columns = _header(path, rows[0] if rows else "")
    for number, line in enumerate(rows[1:], start=2):
        if line.strip():
            here = f"{shortened(path.name)} line {number}"
            cells = _cells(line, delimiter)
            fault = text_fault(line)
            if len(cells) != len(columns):
                fault = f"{len(cells)} fields, the first line has {len(columns)}"
            yield here, fault or dict(zip(columns, cells))


def _header(path: Path, line: str) -> tuple[str, list[str]]:
    """Returns the delimiter that gives most known columns, and the names. Raises UsageError where one is missing."""
    choices = [(delimiter, _cells(line, delimiter)) for delimiter in "\t|;,"]
    delimiter, columns = max(choices, key=lambda one: sum(name.lower() in COLUMNS for name in one[1]))
    known = {COLUMNS.get(name.lower()) for name in columns}
    if absent := [name for name in NEEDED if name not in known]:
        raise UsageError(
            f"--table {path}: no column {', '.join(absent)} in the first line; expected id, glosses, sentence, and if "
            "known split, signer, language, frames, separated by tabs, |, ; or commas, or a .jsonl file"
        )
    return delimiter, columns


def _cells(line: str, delimiter: str) -> list[str]:
    if delimiter in "\t|":
        return [unquoted(cell) for cell in line.split(delimiter)]
    try:  # one line at a time: no quotation mark swallows the lines after it
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values under our names of columns; of two columns with one meaning the first that is not empty."""
    values: dict[str, Any] = {}
    for name, value in found.items():
        ours = COLUMNS.get(str(name).lower())
        if ours and values.get(ours) in (None, "", []):
            values[ours] = value
    return values


def _sentence(values: Mapping[str, Any], file: str, language: str) -> GlossedSentence:
    """Returns a row. Raises ClipRejected."""
    name, sentence = _string(values, "id", MAX_NAME), _string(values, "sentence", MAX_SENTENCE)
    require(name, "bad-row", "no id")
    given = values.get("glosses")
    glosses = given.split() if isinstance(given, str) else [] if given is None else given
    require(isinstance(glosses, list) and all(isinstance(gloss, str) for gloss in glosses), "bad-row",
            "glosses are neither text nor a list of words")  # fmt: skip
    # In NFC: macOS stores letters and marks apart, and a gloss has one sign however its umlauts are stored.
    glosses = [unicodedata.normalize("NFC", " ".join(gloss.split())) for gloss in glosses if gloss.strip()]
    require(glosses, "no-glosses")
    require(len(glosses) <= MAX_GLOSSES, "bad-row", f"{len(glosses):,} glosses, more than {MAX_GLOSSES}")
    for gloss in glosses:
        _check_text(gloss, "gloss", MAX_NAME)
    require(sentence, "no-sentence")
    spoken = _string(values, "language", MAX_NAME)
    tag = language_tag(spoken) if spoken else language
    require(tag, "bad-row", f"language '{shortened(spoken)}' is not a BCP 47 tag")
    lengths = values.get("gloss_frames")
    if lengths in (None, "", []):
        lengths = []
    elif isinstance(lengths, str):
        lengths = lengths.split()
    require(isinstance(lengths, list), "bad-row", "gloss_frames is not a list")
    gloss_frames = tuple(_count(one, "gloss_frames") for one in lengths)
    require(not gloss_frames or len(gloss_frames) == len(glosses), "bad-row",
            f"{len(gloss_frames)} gloss_frames for {len(glosses)} glosses")  # fmt: skip
    return GlossedSentence(
        id=name, glosses=tuple(glosses), sentence=sentence, language=tag, signer=_string(values, "signer", MAX_NAME),
        split=_split(_string(values, "split", MAX_NAME), name, file),
        frames=_count(values.get("frames"), "frames"), gloss_frames=gloss_frames,
    )  # fmt: skip


def _string(values: Mapping[str, Any], key: str, longest: int) -> str:
    value = values.get(key)
    if value is None:
        return ""
    require(isinstance(value, str | int) and not isinstance(value, bool), "bad-row", f"{key} is no text")
    text = " ".join(str(value).split())
    _check_text(text, key, longest)
    return text


def _check_text(text: str, key: str, longest: int) -> None:
    fault = text_fault(text)
    require(not fault, "bad-row", f"{key} has {fault}")
    require(len(text) <= longest, "bad-row", f"{key} of {len(text):,} characters, more than {longest:,}")


def _count(value: Any, key: str) -> int:
    """Returns a number of frames, 0 for none."""
    if value in (None, ""):
        return 0
    try:  # spreadsheets and data frames write 50 as 50.0 where other rows are empty
        whole = isinstance(value, str) and value.endswith(".0")
        count = (
            round(value) if isinstance(value, float) else int(value.removesuffix(".0") if whole else value)
        )
    except (ValueError, TypeError, OverflowError):
        count = -1
    known = not isinstance(value, bool) and 0 <= count <= MAX_FRAMES
    require(
        known, "bad-row", f"{key} {message_line(shortened(value))} is not a number from 0 to {MAX_FRAMES:,}"
    )
    return count


def _split(given: str, name: str, file: str) -> str:
    """Returns the split of a row: of its column, its id (`dev/x`), its file's name (`corpus.dev.csv`), or train."""
    word = given.lower()
    if word:
        require(_SPLIT.fullmatch(word), "no-split", f"split '{shortened(given)}' is no name of a split")
        return SPLIT_NAMES.get(word, word)
    first, slash, _ = name.lower().partition("/")
    if slash and first in SPLIT_NAMES:
        return SPLIT_NAMES[first]
    return next((SPLIT_NAMES[part] for part in _WORD.findall(file.lower()) if part in SPLIT_NAMES), "train")
