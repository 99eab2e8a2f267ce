"""Intervals of signs and sentences of a video, and the files that hold them: ELAN, tables, JSON.

| file | content |
|---|---|
| `.eaf` | ELAN, one video a file (`sage_scale/segmentation/elan.py`) |
| `.json` | one video: `signs` and `sentences`, as `interval_json` writes them; also the synthetic corpus's gold |
| `.jsonl` | one video a line: `id`, `signs`, `sentences` |
| `.csv` | one interval a row: `id`, `start_s`, `end_s`, and if there is `tier` (sign, sentence) and `text` |

An item of `signs` is `[start, end]` in seconds or an object with `start_s` and `end_s` (seconds), `start_ms` and
`end_ms`, or `start` and `end` (frames at the object's or the document's `fps`), and `text` or `gloss`. Times are those
of the video, intervals are half-open.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sage_scale.errors import ClipRejected, UsageError
from sage_scale.segmentation.rules import segments_to_labels
from sage_scale.untrusted.display import message_line, shortened
from sage_scale.untrusted.files import lines, open_regular, read_text, text_fault
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object

MAX_SECONDS = 1e7
MAX_INTERVALS = 1_000_000
MAX_BYTES = 512 << 20
SIGN_TIER, SENTENCE_TIER = "SIGN", "SENTENCE"
SETTINGS_FILE = "_settings.json"
"""Beside the files of `segment predict`; no annotation."""


class Interval(NamedTuple):
    """A half-open interval of a video."""

    start_s: float
    end_s: float
    text: str = ""
    """Gloss or sentence, empty where unknown."""


@dataclass(frozen=True, kw_only=True)
class SignIntervals:
    """Intervals of one video, sorted by start, then end."""

    signs: tuple[Interval, ...] = ()
    sentences: tuple[Interval, ...] = ()
    left_out: tuple[str, ...] = ()
    """Why some intervals of a file were not read, one line each."""

    def labels(self, start_s: float, total: int, fps: float) -> np.ndarray:
        """Returns O/I/B labels, int8 (total,), of the signs within `total` frames at `fps` from `start_s` on."""
        times_N2 = np.array([sign[:2] for sign in self.signs]).reshape(-1, 2) - start_s
        return segments_to_labels(np.floor(times_N2 * fps + 0.5).astype(int), total)


def intervals_of_segments(
    segments_N2: np.ndarray, fps: float, start_s: float = 0.0, texts: Sequence[str] = ()
) -> tuple[Interval, ...]:
    """Returns the intervals of segments in frames at `fps`, whose frame 0 is at `start_s` of the video."""
    names = [*texts, *[""] * (len(segments_N2) - len(texts))]
    pairs = np.asarray(segments_N2).reshape(-1, 2).tolist()
    return tuple(Interval(start_s + a / fps, start_s + b / fps, name) for (a, b), name in zip(pairs, names))


def sorted_intervals(
    rows: Iterable[tuple[str, float, float, str]],
) -> tuple[tuple[Interval, ...], tuple[str, ...]]:
    """Returns the usable of the rows (name, start_s, end_s, text) in order, and one line on each other row."""
    kept, left_out = [], []
    for name, start_s, end_s, text in rows:
        if not (math.isfinite(start_s) and math.isfinite(end_s)):
            left_out.append(f"{name}: a time is not finite")
        elif not 0 <= start_s < end_s <= MAX_SECONDS:
            left_out.append(f"{name}: from {start_s:g} s to {end_s:g} s")
        else:
            kept.append(Interval(start_s, end_s, text))
    return tuple(sorted(kept)), tuple(left_out)


def interval_json(intervals: SignIntervals, **about: Any) -> bytes:
    """Returns a JSON document of `about` (video, tagger, ...) and the intervals, seconds to the millisecond."""

    def rows(tier: Iterable[Interval]) -> list[dict[str, Any]]:
        return [{"start_s": round(a, 3), "end_s": round(b, 3), "text": text} for a, b, text in tier]

    document = {**about, "signs": rows(intervals.signs), "sentences": rows(intervals.sentences)}
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()


def intervals_of_document(document: Mapping[str, Any]) -> SignIntervals:
    """Returns the intervals of a JSON object with `signs` or `sentences`. Raises ClipRejected `bad-labels`."""
    if not document.keys() & {"signs", "sentences"}:
        raise _bad("neither signs nor sentences")
    tiers: list[tuple[Interval, ...]] = []
    left_out: list[str] = []
    for tier in ("signs", "sentences"):
        items = document.get(tier, [])
        if not isinstance(items, list) or len(items) > MAX_INTERVALS:
            raise _bad(f"{tier} is not a list of at most {MAX_INTERVALS:,} intervals")
        rows = [
            (f"{tier}[{n}]", *_row(item, document.get("fps"), f"{tier}[{n}]")) for n, item in enumerate(items)
        ]
        kept, odd = sorted_intervals(rows)
        tiers.append(kept)
        left_out += odd
    return SignIntervals(signs=tiers[0], sentences=tiers[1], left_out=tuple(left_out))


def read_video_file(
    path: Path, sign_tier: str = SIGN_TIER, sentence_tier: str = SENTENCE_TIER
) -> SignIntervals:
    """Returns the intervals of a file of one video, .eaf or .json.

    Raises ClipRejected `bad-labels` for its content, OSError where it cannot be read.
    """
    if path.suffix.lower() == ".eaf":
        from sage_scale.segmentation.elan import read_eaf

        return read_eaf(path, sign_tier, sentence_tier)
    try:
        return intervals_of_document(parse_json_object(_limited(path)))
    except InvalidJSON as error:
        raise _bad(str(error)) from None


def read_table(path: Path) -> dict[str, SignIntervals]:
    """Returns the intervals of each video of a .csv or .jsonl file, by id. Raises UsageError where it is none."""
    try:
        data = _limited(path)
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        text = data.decode(encoding)
        return _read_jsonl(text) if path.suffix.lower() == ".jsonl" else _read_csv(text)
    except ClipRejected as error:
        reason = error.detail
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, csv.Error) as error:
        reason = message_line(error)
    raise UsageError(f"{shortened(path, 300)}: {reason}")


def table_column(path: Path, column: str, option: str) -> dict[str, str]:
    """Returns a column of a .csv or .jsonl table by id, of the rows that have it.

    Raises UsageError, which names the command's `option`, where the file is no table or no row has the column.
    """
    where = f"{option} {shortened(column)}"
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UsageError(f"{where} is a column of a table (.csv, .jsonl), which {path.name} is not")
    try:
        text = read_text(path)
        rows: Iterable[Mapping[str, Any]] = csv.DictReader(lines(text))
        if path.suffix.lower() == ".jsonl":
            rows = (parse_json_object(line) for line in lines(text) if line.strip())
        found = {
            str(row["id"]): str(row[column])
            for row in rows
            if "id" in row and row.get(column) not in (None, "")
        }
    except (OSError, ValueError, InvalidJSON, csv.Error) as error:
        raise UsageError(f"{where}: {shortened(path, 300)}: {message_line(error)}") from None
    if not found:
        raise UsageError(f"{where}: {shortened(path, 300)} has no such column")
    return found


def _read_jsonl(text: str) -> dict[str, SignIntervals]:
    found: dict[str, SignIntervals] = {}
    for number, line in enumerate(lines(text), start=1):
        if not line.strip():
            continue
        try:
            document = parse_json_object(line)
            name = document.get("id")
            if not isinstance(name, str) or not name or name in found:
                raise _bad("the id is missing, not text, or there twice")
            found[name] = intervals_of_document(document)
        except (InvalidJSON, ClipRejected) as error:
            raise ValueError(f"line {number}: {getattr(error, 'detail', '') or error}") from None
    return found


def _read_csv(text: str) -> dict[str, SignIntervals]:
    table = csv.DictReader(io.StringIO("\n".join(lines(text)), newline=""))
    if not {"id", "start_s", "end_s"} <= set(table.fieldnames or ()):
        raise ValueError(
            "the columns id, start_s and end_s (seconds) are needed, tier and text are read if there"
        )
    rows: dict[str, dict[str, list[tuple[str, float, float, str]]]] = {}
    for row in table:
        here, tier = f"line {table.line_num}", (row.get("tier") or SIGN_TIER).strip().lower().rstrip("s")
        if tier not in ("sign", "sentence"):
            continue
        try:
            times = float(row["start_s"]), float(row["end_s"])
        except (TypeError, ValueError):
            times = math.nan, math.nan
        rows.setdefault(row["id"], {"sign": [], "sentence": []})[tier].append(
            (here, *times, row.get("text") or "")
        )
    found = {}
    for name, tiers in rows.items():
        signs, odd = sorted_intervals(tiers["sign"])
        sentences, odder = sorted_intervals(tiers["sentence"])
        found[name] = SignIntervals(signs=signs, sentences=sentences, left_out=odd + odder)
    return found


def _row(item: Any, fps: Any, here: str) -> tuple[float, float, str]:
    """Returns start and end in seconds (NaN where they cannot be read) and text of an item of a document."""
    if isinstance(item, list) and len(item) == 2:
        item = {"start_s": item[0], "end_s": item[1]}
    if not isinstance(item, Mapping):
        raise _bad(f"{here} is neither [start, end] nor an object")
    text = item.get("text", item.get("gloss", ""))
    if not isinstance(text, str) or text_fault(text):
        raise _bad(f"the text of {here} is no text")
    for start, end, second in (
        ("start_s", "end_s", 1.0),
        ("start_ms", "end_ms", 1000.0),
        ("start", "end", None),
    ):
        if start in item and end in item:
            per_s = item.get("fps", fps) if second is None else second
            values = (item[start], item[end], per_s)
            if all(type(value) in (int, float) for value in values) and per_s > 0:
                return item[start] / per_s, item[end] / per_s, text
            raise _bad(
                f"{here}: its times are no numbers{' at a frame rate (fps)' if second is None else ''}"
            )
    raise _bad(f"{here} has no start_s and end_s")


def _limited(path: Path) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise _bad(f"{size:,} bytes, more than {MAX_BYTES:,}")
        return file.read()


def _bad(detail: str) -> ClipRejected:
    return ClipRejected("bad-labels", detail)
