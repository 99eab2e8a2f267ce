"""Tables of published corpora: one header line, one delimiter, one row a line, whatever the file is called.

The releases were written by different hands: some fields are quoted as spreadsheets do it, in others a quotation
mark is a character of the sentence. A quoted field is unquoted where its quotes are right, and no quotation mark
ever swallows the lines after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sage_scale.corpora.clip import Rejected
from sage_scale.corpora.folders import table_text
from sage_scale.errors import UsageError
from sage_scale.untrusted.files import lines, text_fault


@dataclass
class Table:
    """A table's rows; lines of another number of fields or with a NUL are gathered in `rejected` as they are met."""

    path: Path
    delimiter: str
    needed: tuple[str, ...]
    """Columns without which the file is not the one that is published."""
    rejected: list[Rejected] = field(default_factory=list)
    columns: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yields (line number from 1, column -> field without blanks around it); UsageError for another table."""
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
            cells = [unquoted(cell) for cell in line.split(self.delimiter)]
            fault = text_fault(line)
            if len(cells) != len(self.columns):
                fault = f"{len(cells)} fields, the first line has {len(self.columns)}"
            if fault:
                here = f"{self.path.name} line {number}"
                self.rejected.append(Rejected(id=here, reason="bad-row", detail=fault))
                continue
            yield number, dict(zip(self.columns, cells, strict=True))


def unquoted(cell: str) -> str:
    """A field without the quotes that a spreadsheet puts around it; its own quotation marks stay."""
    cell = cell.strip()
    if len(cell) >= 2 and cell[0] == cell[-1] == '"':
        inner = cell[1:-1]
        if '"' not in inner.replace('""', ""):
            return inner.replace('""', '"').strip()
    return cell
