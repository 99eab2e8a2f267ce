"""The tagger `precomputed`: O/I/B labels or sign intervals that lie beside a corpus.

`segmentation.labels` is a folder or one file. A folder has a file a clip, named by the clip's id (with / as
__) or key: `.npy` with labels (T,) as 0, 1, 2, scores (T, 3) or intervals (N, 2) in frames, or `.json`. One
file is `.json`, a mapping from clip id, or `.csv` with the columns id and labels, or id, start and end
(frames, one sign a row).

A JSON value is a string of the letters O, I, B; a list of numbers 0, 1, 2; a list of [start, end]; or a
mapping with `labels` or `segments` and, where they were made at another frame rate than 25, `fps`.
"""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from sage_scale.errors import ClipRejected, UsageError
from sage_scale.segmentation.rules import (
    RULE_FPS,
    decode_oib,
    parse_letters,
    resample_labels,
    segments_to_labels,
)


def precomputed_labels(place: str, clip_id: str, key: str, total: int, fps: float) -> np.ndarray:
    """Labels int8 (total,) at `fps` of one clip; ClipRejected `no-labels` or `bad-labels`, UsageError for
    `place`."""
    path = Path(place)
    if not place:
        raise UsageError("segmentation.tagger=precomputed needs segmentation.labels=FILE_OR_FOLDER")
    if not path.exists():
        raise UsageError(f"segmentation.labels: there is no {path}")
    try:
        entry = _from_folder(path, clip_id, key) if path.is_dir() else _table(path).get(clip_id)
        if entry is None:
            raise ClipRejected("no-labels", f"{path.name} has none for this clip")
        return _to_labels(entry, total, fps)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ClipRejected("bad-labels", " ".join(str(error).split())[:120]) from None


def _from_folder(folder: Path, clip_id: str, key: str) -> Any:
    for stem in (clip_id.replace("/", "__"), key):
        if (npy := folder / f"{stem}.npy").is_file():
            return np.load(npy, allow_pickle=False)
        if (text := folder / f"{stem}.json").is_file():
            return json.loads(text.read_text(encoding="utf-8"))
    return None


@functools.lru_cache(maxsize=2)
def _table(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".csv":
            return _read_csv(path)
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a label file (.json mapping or .csv): {error}") from None
    if not isinstance(table, dict):
        raise UsageError(f"{path}: expected a mapping from clip id to labels")
    return table


def _read_csv(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        names = set(rows.fieldnames or ())
        if {"id", "labels"} <= names:
            return {row["id"]: row["labels"] for row in rows}
        if not {"id", "start", "end"} <= names:
            raise ValueError("columns id and labels, or id, start and end, are needed")
        for row in rows:
            table.setdefault(row["id"], []).append([int(row["start"]), int(row["end"])])
    return table


def _to_labels(entry: Any, total: int, fps: float) -> np.ndarray:
    source_fps = RULE_FPS
    if isinstance(entry, dict):
        source_fps = float(entry.get("fps", RULE_FPS))
        if not 0 < source_fps <= 1000:
            raise ValueError(f"fps {source_fps}")
        entry = entry["labels"] if "labels" in entry else np.asarray(entry["segments"]).reshape(-1, 2)
    if isinstance(entry, str):
        labels_S = parse_letters(entry)
    else:
        values = np.asarray(entry)
        if values.ndim == 2 and values.shape[1] == 2:
            scaled = np.floor(values * fps / source_fps + 0.5).astype(int)
            return segments_to_labels(scaled, total)
        if values.ndim == 2 and values.shape[1] == 3:
            labels_S = decode_oib(values, source_fps)
        elif values.ndim == 1 and len(values) and np.isin(values, (0, 1, 2)).all():
            labels_S = values.astype(np.int8)
        else:
            raise ValueError(f"labels of shape {values.shape}; expected (T,) of 0, 1, 2, (T, 3) or (N, 2)")
    if source_fps == fps and len(labels_S) == total:
        return labels_S
    seconds, needed = len(labels_S) / source_fps, total / fps
    if abs(seconds - needed) > max(0.5, 0.05 * needed):
        raise ValueError(f"labels last {seconds:.2f} s, the clip {needed:.2f} s")
    return resample_labels(labels_S, source_fps, total, fps)
