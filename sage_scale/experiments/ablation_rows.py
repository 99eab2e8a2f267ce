"""Rows of finished runs: small files to commit, from which a later call resumes without run folder, shards or corpus.

ROWS/TABLE/CELL-SEED.json     scores, identity, steps, seconds, versions
ROWS/TABLE/CELL-SEED.txt      hypotheses, a line a clip, in the order of the references
ROWS/references-DIGEST.tsv    language and reference of each clip, one file a set of clips
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sage_scale.errors import StorageError
from sage_scale.untrusted.files import lines, read_bytes, read_text
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object
from sage_scale.untrusted.printer import tell

Row = dict[str, Any]
"""A finished run: `cell`, `seed`, `identity`, `scores` and more, as `ablation_run.describe` writes it."""


@dataclass
class Rows:
    """The rows of one table in a folder that several tables share."""

    folder: Path
    table: str
    _by_identity: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in sorted(self.folder.glob("*/*.json")):
            try:
                self._by_identity.setdefault(str(parse_json_object(read_bytes(path)).get("identity")), path)
            except (OSError, InvalidJSON):
                continue  # named where its run is asked for

    def path(self, cell: str, seed: int) -> Path:
        """Returns the file of a run's row."""
        return self.folder / self.table / f"{slug(cell)}-{seed}.json"

    def find(self, cell: str, seed: int, identity: str, controls: bool = False) -> Row | None:
        """Returns the stored row of a run, with `controls` only one that has them; or the row of another table's run
        of the same recipe, which is stored as its own; or None. A row that no longer fits is named in a line."""
        path = self.path(cell, seed)
        own = self._read(path) if path.is_file() else None
        if own is not None and own["identity"] == identity and _has(own, controls):
            return own
        if own is not None:
            reason = (
                "without controls" if own["identity"] == identity else "of another recipe, stages or corpus"
            )
            tell(f"{path}: {reason}; not reused")
        other = self._by_identity.get(identity)
        if (
            other is None
            or other == path
            or (found := self._read(other)) is None
            or not _has(found, controls)
        ):
            return None
        tell(f"{cell}, seed {seed}: the same run as {other}")
        self.put(found | {"cell": cell, "seed": seed})
        return self._read(path)

    def put(self, row: Row) -> None:
        """Stores a row and its texts, each file whole or not at all. Raises StorageError."""
        path, texts = self.path(row["cell"], row["seed"]), row["texts"]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if texts:
                _write(self._references(row), "".join(f"{tag}\t{_line(text)}\n" for _, text, tag in texts))
                _write(path.with_suffix(".txt"), "".join(f"{_line(text)}\n" for text, _, _ in texts))
            document = {
                "table": self.table,
                **{key: row[key] for key in row if key not in ("table", "texts")},
            }
            _write(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror or error}") from None
        self._by_identity.setdefault(row["identity"], path)

    def _references(self, row: Row) -> Path:
        return self.folder / f"references-{row['references']}.tsv"

    def _read(self, path: Path) -> Row | None:
        """Returns a row with its texts; None, with a line, where a file is missing or damaged."""
        try:
            row = parse_json_object(read_bytes(path))
            row["texts"] = self._texts(path, row) if row["clips"] else []
            _check(row)
            return row
        except (OSError, InvalidJSON, KeyError, TypeError, ValueError) as error:
            tell(f"{path}: damaged, or without its texts ({error}); not reused")
            return None

    def _texts(self, path: Path, row: Row) -> list[tuple[str, str, str]]:
        hypotheses = lines(read_text(path.with_suffix(".txt")))
        pairs = [line.partition("\t") for line in lines(read_text(self._references(row)))]
        if (
            digest(hypotheses) != row["hypotheses"]
            or digest([text for _, _, text in pairs]) != row["references"]
        ):
            raise ValueError("other texts than were scored")
        return [(text, reference, tag) for text, (tag, _, reference) in zip(hypotheses, pairs, strict=True)]


def check_writable(folder: Path) -> None:
    """Makes a folder if missing; raises StorageError where nothing can be stored in it, before hours of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{folder} is no folder that can be written: {reason}") from None


def slug(name: str) -> str:
    """Returns a cell's name as part of a file's name: `CLIP, one level` as `clip-one-level`."""
    return re.sub(r"[^\w.]+", "-", name.lower()).strip("-.") or "cell"


def digest(texts: Sequence[str]) -> str:
    """Returns 16 hex digits of sha256 over the texts, a line each."""
    return hashlib.sha256("".join(f"{_line(text)}\n" for text in texts).encode()).hexdigest()[:16]


def _has(row: Row, controls: bool) -> bool:
    return not controls or "best_control" in row["scores"]


def _check(row: Row) -> None:
    number = (int, float)
    kinds: dict[str, Any] = {"scores": dict, "steps": dict, "versions": dict, "seed": int, "clips": int}
    kinds |= dict.fromkeys(("cell", "identity", "signature", "references", "device", "date"), str)
    kinds["cpu_seconds"] = number
    optional = {"notice": str, "ceiling": (*number, type(None)), "tokens": number, "epoch_tokens": number,
                "epoch_clips": number}  # fmt: skip
    kinds |= {key: kind for key, kind in optional.items() if key in row}
    for key, kind in kinds.items():
        if not isinstance(row.get(key), kind):
            raise ValueError(f"'{key}' is missing or of another type")
    parts: dict[str, Any] = {"scores": number, "steps": int, "versions": str}
    for key, kind in parts.items():
        if not all(isinstance(value, kind) for value in row[key].values()):
            raise ValueError(f"a value of '{key}' is of another type")


def _line(text: str) -> str:
    return " ".join(text.split())


def _write(path: Path, text: str) -> None:
    if path.is_file() and path.stat().st_size == len(text.encode()) and read_text(path) == text:
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # another call may write the same row
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
