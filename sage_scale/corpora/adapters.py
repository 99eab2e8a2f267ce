"""Shared parts of corpus adapters: published tables, collected rows, and splits where none is published.

An adapter is a function from `config.Corpus` to `Manifest`, in a file of its own, registered under a name
(corpora/registry.py). It looks at names, tables and captions, never into a video.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sage_scale.corpora.captions import parse_seconds
from sage_scale.corpora.folder import table_text
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.errors import ClipRejected, Reject, UsageError
from sage_scale.untrusted.files import lines, text_fault

SPLIT_NAMES = {
    "train": "train",
    "dev": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
}
"""Publishers' names of splits -> ours."""


def hash_split(group: str, dev_share: float, test_share: float) -> str:
    """Returns train, dev or test for all clips of a group (a video, a channel, a broadcast), by the hash of its name.

    The first eight bytes of sha256(name) as a share of 2^64 fall into [0, test_share): test, [test_share, test_share +
    dev_share): dev, else train. So a group keeps its split whatever else was downloaded, and in a later release.
    """
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if share < test_share:
        return "test"
    return "dev" if share < test_share + dev_share else "train"


class Rows:
    """The clips of a corpus by id, and the rejected rows, each in the order of reading."""

    def __init__(self) -> None:
        self.clips: dict[str, Clip] = {}
        self.rejected: list[Reject] = []
        self.notes: list[tuple[str, int]] = []

    @contextlib.contextmanager
    def row(self, name: str) -> Iterator[None]:
        """Reads one row: a ClipRejected raised within rejects it under `name`."""
        try:
            yield
        except ClipRejected as rejected:
            self.reject(name, rejected.reason, rejected.detail)

    def add(self, clip: Clip) -> None:
        """Adds a clip."""
        self.clips[clip.id] = clip

    def reject(self, name: str, reason: str, detail: str = "") -> None:
        """Rejects a row or file."""
        self.rejected.append(Reject(id=name, reason=reason, detail=detail))

    def reject_name(self, root: Path, path: Path) -> None:
        """Rejects a file whose name is not UTF-8."""
        name = str(path.relative_to(root)).encode(errors="replace").decode()
        self.reject(name, "bad-name", "its name is no UTF-8; rename it")

    def manifest(self) -> Manifest:
        """Returns the clips, rejects and notes."""
        return Manifest(tuple(self.clips.values()), tuple(self.rejected), tuple(self.notes))


def require(condition: object, reason: str, detail: str = "") -> None:
    """Raises ClipRejected unless the condition holds."""
    if not condition:
        raise ClipRejected(reason, detail)


def row_times(start: str, end: str, where: str) -> tuple[float, float]:
    """Returns a row's start and end in seconds. Raises ClipRejected `bad-row`."""
    try:
        return parse_seconds(start), parse_seconds(end)
    except ValueError as error:
        raise ClipRejected("bad-row", f"{where}: {error}") from None


def cut_or_whole(cut: str | None, whole: str | None, start_s: float, end_s: float) -> dict[str, Any]:
    """Returns the fields of `Clip` for a row's own video where it was cut, else for its interval of the whole video.

    A cut video's own length is not in the table; 25 frames a second is near enough to plan with.
    """
    if cut:
        return {"video": cut, "frames": max(1, round((end_s - start_s) * 25))}
    return {"video": whole, "start_s": start_s, "end_s": end_s}


@dataclass
class Table:
    """A published table: one header line, one delimiter, one row a line, whatever the file's ending says.

    Some releases quote fields as spreadsheets do, in others a quotation mark is a character of the sentence: a field is
    unquoted where its quotes are right, and no quotation mark ever swallows the lines after it.
    """

    path: Path
    delimiter: str
    needed: tuple[str, ...]
    """Columns without which the file is not the published one."""
    rejected: list[Reject] = field(default_factory=list)
    """Lines with another number of fields or a NUL, as they are met."""
    columns: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yields ("FILE line N", column -> field without blanks around it). Raises UsageError for another table."""
        rows = lines(table_text(self.path)) or [""]
        self.columns = tuple(unquoted(cell) for cell in rows[0].split(self.delimiter))
        absent = [name for name in self.needed if name not in self.columns]
        if absent:
            shown = {"\t": "tabs"}.get(self.delimiter, self.delimiter)
            raise UsageError(
                f"{self.path}: no column {', '.join(absent)} in the first line; expected "
                f"{', '.join(self.needed)}, separated by {shown}"
            )
        for number, line in enumerate(rows[1:], start=2):
            if not line.strip():
                continue
            here = f"{self.path.name} line {number}"
            cells = [unquoted(cell) for cell in line.split(self.delimiter)]
            fault = text_fault(line)
            if len(cells) != len(self.columns):
                fault = f"{len(cells)} fields, the first line has {len(self.columns)}"
            if fault:
                self.rejected.append(Reject(id=here, reason="bad-row", detail=fault))
            else:
                yield here, dict(zip(self.columns, cells, strict=True))


def unquoted(cell: str) -> str:
    """Returns a field without the quotes that a spreadsheet puts around it; its own quotation marks stay."""
    cell = cell.strip()
    if len(cell) >= 2 and cell[0] == cell[-1] == '"':
        inner = cell[1:-1]
        if '"' not in inner.replace('""', ""):
            return inner.replace('""', '"').strip()
    return cell
