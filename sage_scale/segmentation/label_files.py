"""Reads label files: .json, .jsonl, .csv and .pt of a whole corpus, .npy, .json and .pt of one clip.

Nothing in them is trusted: regular files of limited size, JSON with limits, arrays and tensors without pickled code.
A fault in one clip's labels is that clip's entry; a fault of the file is a UsageError.
"""

from __future__ import annotations

import csv
import functools
import io
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sage_scale.corpora.adapters import SPLIT_NAMES
from sage_scale.corpora.folder import VIDEO_SUFFIXES
from sage_scale.errors import ClipRejected, UsageError
from sage_scale.segmentation.intervals import SignIntervals, intervals_of_document
from sage_scale.segmentation.intervals import read_table as read_interval_table
from sage_scale.segmentation.rules import RULE_FPS, decode_oib, parse_letters
from sage_scale.untrusted.display import message_line, printable, shortened
from sage_scale.untrusted.files import lines, open_regular, read_text
from sage_scale.untrusted.json_values import InvalidJSON, parse_json

MAX_FILE_BYTES = 2 << 30
"""Largest label file: 2 GB are labels of 24,000 hours in bytes."""
MAX_NUMBERS = 1 << 24
"""Most numbers of one clip's labels."""
_OPTIONS = {"labels", "segments", "signs", "sentences", "fps"}


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of one clip as its file has them."""

    values: np.ndarray
    """int8 (T,) of O = 0, I = 1, B = 2; or float64 (N, 2), sign intervals in frames."""
    fps: float
    """Their frame rate."""
    of_video: bool = False
    """Frame 0 is the video's first, not the clip's."""
    left_out: tuple[str, ...] = ()
    """Why some intervals of the file were not read, one line each."""
    file: str = ""
    """Name of the file."""

    @property
    def notes(self) -> tuple[str, ...]:
        """A line on the intervals that were not read; none where all were."""
        if not self.left_out:
            return ()
        count = f"{len(self.left_out):,} annotation{'s' if len(self.left_out) > 1 else ''} left out"
        return (f"{shortened(self.file)}: {count}; the first: {self.left_out[0]}",)


Entry = Labels | str
"""Labels, or the reason why they cannot be used."""


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Labels of a corpus, by the names in the file."""

    by_split: Mapping[str, Mapping[str, Entry]]
    """Our name of the split ("" where the file has none) -> name -> entry."""

    def find(self, clip_id: str, split: str) -> Entry | None:
        """Returns the entry of a clip: by its id, with or without its split before it; None where there is none.

        Where the clip's own split does not have it, the others are searched, of which one alone may have it.
        """
        names = clip_names(clip_id, split)
        own = [self.by_split[part] for part in ("", split) if part in self.by_split]
        others = [entries for part, entries in self.by_split.items() if part not in ("", split)]
        for entries in own:
            for name in names:
                if name in entries:
                    return entries[name]
        found = [entries[name] for entries in others for name in names if name in entries]
        return found[0] if len(found) == 1 else "several splits have it" if found else None

    def first(self) -> str:
        """Returns the first name in the table, "" where it is empty."""
        return next((name for entries in self.by_split.values() for name in entries), "")


def clip_names(clip_id: str, split: str) -> list[str]:
    """Returns the names that labels of a clip may have: its id, also without its split or with another word for it
    (`dev/x`, `x`, `valid/x`), each also without the ending of its video file."""
    words = [split, *(word for word, ours in SPLIT_NAMES.items() if ours == split)]
    first, slash, rest = clip_id.partition("/")
    bare = rest if slash and first in words else clip_id
    names = [clip_id, bare, *(f"{word}/{bare}" for word in words)]
    if os.path.splitext(bare)[1].lower() in VIDEO_SUFFIXES:
        names += [os.path.splitext(name)[0] for name in names]
    return list(dict.fromkeys(names))


def read_table(path: Path) -> LabelTable:
    """Returns the labels of a .json, .csv or .pt file; read once a process. Raises UsageError where it is none."""
    try:
        stamp = path.stat()
        return _table(path, (stamp.st_mtime_ns, stamp.st_size))
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from None


@functools.lru_cache(maxsize=2)
def _table(path: Path, stamp: tuple[int, int]) -> LabelTable:
    if stamp[1] > MAX_FILE_BYTES:
        size = f"{stamp[1]:,} bytes are more than {MAX_FILE_BYTES:,}"
        raise _refused(path, f"{size}: give a folder with a file a clip")
    try:
        if path.suffix.lower() == ".jsonl":
            return _intervals(path)
        if path.suffix.lower() == ".csv":
            text = read_text(path)
            if "start_s" in next(csv.reader(text.splitlines()[:1]), ()):
                return _intervals(path)
            return LabelTable({"": _read_csv(text)})
        with open_regular(path) as file:
            is_pt = path.suffix.lower() in (".pt", ".pth")
            values = _load_pt(file) if is_pt else parse_json(file.read())
    except (InvalidJSON, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise _refused(path, f"not a label file (.json mapping, .pt mapping or .csv): {error}") from None
    if not isinstance(values, Mapping):
        raise _refused(path, "expected a mapping from clip id to labels")
    parts = values.values()
    split = parts and all(
        isinstance(part, Mapping) and (not part or part.keys() - _OPTIONS) for part in parts
    )
    table: dict[str, dict[str, Entry]] = {}
    for name, entries in values.items() if split else (("", values),):
        part = table.setdefault(SPLIT_NAMES.get(str(name).lower(), str(name)), {})
        for clip, value in entries.items():
            if not isinstance(clip, str | int):
                raise _refused(path, f"a name is {type(clip).__name__}, not text")
            part[str(clip)] = entry_of(value)
    return LabelTable(table)


def _intervals(path: Path) -> LabelTable:
    """Returns the labels of a table of intervals in seconds of their videos. Raises UsageError where it is none."""
    return LabelTable(
        {"": {name: labels_of_intervals(found) for name, found in read_interval_table(path).items()}}
    )


def read_clip_file(path: Path) -> Entry:
    """Returns the labels of one clip from a .npy, .json or .pt file. Raises OSError where it cannot be read."""
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        if size > 16 * MAX_NUMBERS:
            return f"{size:,} bytes are more than the labels of a clip"
        file.seek(0)
        try:
            if path.suffix == ".npy":
                return entry_of(_load_npy(file))
            return entry_of(_load_pt(file) if path.suffix == ".pt" else parse_json(file.read()))
        except ValueError as error:
            return _line(error)


def labels_of_intervals(intervals: SignIntervals) -> Labels:
    """Returns the signs of a video as intervals in seconds."""
    times_N2 = np.array([sign[:2] for sign in intervals.signs], np.float64).reshape(-1, 2)
    return Labels(times_N2, 1.0, of_video=True, left_out=intervals.left_out)


def entry_of(value: Any) -> Entry:
    """Returns one clip's labels, checked, or the reason why they cannot be used."""
    try:
        return _labels(value)
    except ClipRejected as error:
        return error.detail
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError, RuntimeError) as error:
        return _line(error)


def _labels(value: Any) -> Labels:
    fps, segments = RULE_FPS, False
    if isinstance(value, Mapping):
        rate = value.get("fps", RULE_FPS)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1000:
            raise ValueError(f"fps {shortened(rate)}")
        if "signs" in value:
            return labels_of_intervals(intervals_of_document(value))
        if not value.keys() & {"labels", "segments"}:
            raise ValueError("neither labels, segments nor signs")
        fps, segments = float(rate), "labels" not in value
        value = value["segments"] if segments else value["labels"]
    if isinstance(value, str):
        if len(value) > MAX_NUMBERS:
            raise ValueError(f"{len(value):,} labels are more than a clip has")
        if not value:
            raise ValueError("no labels")
        return Labels(parse_letters(value), fps)
    array = _array(value)
    if segments and array.size == 0:
        array = array.reshape(0, 2)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"labels of the type {array.dtype}, expected numbers")
    if not np.isfinite(array).all():
        raise ValueError("labels hold NaN or infinite numbers")
    if array.ndim == 2 and array.shape[1] == 2:
        if np.abs(array).max(initial=0) > MAX_NUMBERS or (array[:, 0] > array[:, 1]).any():
            raise ValueError("an interval ends before it starts, or counts more frames than a clip has")
        return Labels(array.astype(np.float64), fps)
    if segments:
        raise ValueError(f"segments of shape {array.shape}; expected (N, 2)")
    if array.ndim == 2 and array.shape[1] == 3 and len(array):
        return Labels(decode_oib(array, fps), fps)
    if array.ndim == 1 and len(array) and np.isin(array, (0, 1, 2)).all():
        return Labels(array.astype(np.int8), fps)
    if array.ndim == 1 and len(array):
        odd = array[~np.isin(array, (0, 1, 2))][0]
        raise ValueError(f"a label is {odd}, only 0, 1 and 2 (O, I, B) are known")
    raise ValueError(f"labels of shape {array.shape}; expected (T,) of 0, 1, 2, (T, 3) or (N, 2)")


def _array(value: Any) -> np.ndarray:
    if type(value).__module__.partition(".")[0] == "torch":
        import torch

        if not isinstance(value, torch.Tensor):
            raise ValueError(f"a {type(value).__name__}, not a tensor")
        if value.numel() > MAX_NUMBERS:
            raise ValueError(f"{value.numel():,} numbers are more than the labels of a clip")
        if value.is_complex():
            raise ValueError("complex numbers, no labels")
        value = value.detach().cpu()
        return np.array(value.float() if value.is_floating_point() else value)
    if isinstance(value, list) and len(value) > MAX_NUMBERS:
        raise ValueError(f"{len(value):,} labels are more than a clip has")
    if not isinstance(value, list | np.ndarray):
        raise ValueError(f"a {type(value).__name__}, no labels")
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError("lists of unlike lengths") from None
    if array.size > MAX_NUMBERS:
        raise ValueError(f"{array.size:,} numbers are more than the labels of a clip")
    return array


def _load_npy(file: BinaryIO) -> np.ndarray:
    """Returns the array of a .npy file, without objects. Raises ValueError for anything else."""
    try:
        with warnings.catch_warnings():  # of headers that Python 2 wrote
            warnings.simplefilter("ignore")
            array = np.load(file, allow_pickle=False)
    except Exception as error:  # of many types: the header is parsed as Python's literals
        raise ValueError(f"not a .npy of numbers: {_line(error)}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays, not a .npy")
    return array


def _load_pt(file: BinaryIO) -> Any:
    """Returns the object of a .pt file: containers, numbers and tensors. Raises ValueError for anything else."""
    try:
        if zipfile.is_zipfile(file):  # packed members could unpack to any size
            file.seek(0)
            with zipfile.ZipFile(file) as archive:
                if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                    raise ValueError("its parts are compressed, which torch.save does not do")
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ValueError(f"a damaged .pt: {_line(error)}") from None
    file.seek(0)
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except (
        Exception
    ):  # of many types for damaged files; its advice to load without the limit is not passed on
        raise ValueError(
            "not tensors and text as torch.save writes them; other objects are not loaded"
        ) from None


def _read_csv(text: str) -> dict[str, Entry]:
    rows = csv.DictReader(io.StringIO("\n".join(lines(text)), newline=""))
    names = set(rows.fieldnames or ())
    found: dict[str, Any] = {}
    if {"id", "labels"} <= names:
        for row in rows:
            again = row["id"] in found
            found[row["id"]] = "several rows have its id" if again else entry_of(row["labels"])
        return found
    if not {"id", "start", "end"} <= names:
        raise ValueError("columns id and labels, or id, start and end, are needed")
    for row in rows:
        signs = found.setdefault(row["id"], [])
        try:
            if isinstance(signs, list):
                signs.append([float(row["start"]), float(row["end"])])
        except (ValueError, TypeError):
            found[row["id"]] = f"start {shortened(row['start'])} or end {shortened(row['end'])} is no number"
    return {name: entry_of(signs) if isinstance(signs, list) else signs for name, signs in found.items()}


def _refused(path: Path, reason: str) -> UsageError:
    return UsageError(f"segmentation.labels: {printable(path)}: {message_line(reason)}")


def _line(error: BaseException) -> str:
    return shortened(message_line(error) or type(error).__name__, 120)
