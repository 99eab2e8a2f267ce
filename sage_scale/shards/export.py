"""Exports a dataset to a folder or bucket in a format of others: one file a shard, and a description of the export.

`data/<split>/000042.parquet` holds the clips of shard 42. The same command resumes: files that are there stay, and
after a repair, a removal or an addition only files of changed shards are written, and those of older generations
deleted.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from sage_scale.errors import DatasetError, StorageError, UsageError
from sage_scale.parallel import ProgressCallback, map_threads
from sage_scale.shards.dataset import Dataset
from sage_scale.shards.layout import Marker, canonical_json
from sage_scale.shards.publish import verified_samples
from sage_scale.shards.sample import Sample, check_sample, read_sample
from sage_scale.storage import NotFound, Store
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object

EXPORT_JSON, CARD = "sage-export.json", "README.md"
_EXPORTED = re.compile(r"data/\w+/\d{6,}(\.g[1-9]\d*)?\.(parquet|tar)")
_RESERVED = "all"
"""No name of a split: `datasets` takes it for all of them."""


class Format(Protocol):
    """A format of exports."""

    name: str
    """As `shards export --format` has it."""
    ending: str
    """Of its files, without the dot."""
    members: list[tuple[str, str]]
    """Names and meanings of its columns or members."""

    def write(self, path: Path, samples: Iterable[Sample]) -> None:
        """Write the samples of a shard to a local file, one after the other. Raises OSError, DatasetError."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export did."""

    written: int
    """Files written now; the others were there."""
    deleted: int
    """Files of older generations of shards."""
    bytes: int
    """Size of all files."""
    problems: tuple[str, ...]
    """A line for each shard that could not be exported, since it is damaged."""


def export_dataset(
    dataset: Dataset, out: Store, form: Format, *, threads: int = 4, progress: ProgressCallback | None = None
) -> Exported:
    """Writes the shards of a dataset to `out`. A damaged shard is named in the outcome and does not end the others.

    Memory holds a few MB of a shard a thread. Raises UsageError where `out` holds anything else, StorageError.
    """
    _claim(dataset, out, form)
    names = file_names(dataset, form.ending)
    there = {entry.name: entry.size for entry in out.list("data/")}
    records = dataset.records_by_unit()
    problems: dict[int, str] = {}
    written: list[int] = []

    def make(number: int) -> None:
        if names[number] in there:
            return
        unit = dataset.units[number]
        samples = _samples(dataset, unit, records[number])
        with tempfile.TemporaryDirectory(prefix="sage-scale-") as scratch:
            try:
                with out.draft(Path(scratch) / f"export.{form.ending}") as path:
                    form.write(path, samples)
                    out.put_if_absent(names[number], path)
                written.append(number)
            except DatasetError as error:
                problems[number] = str(error)
            except OSError as error:
                raise StorageError(
                    f"{out.url}/{names[number]} cannot be written: {error.strerror or error}"
                ) from None

    numbers = range(len(names))
    map_threads(make, numbers, threads=threads, progress=progress, size=lambda n: dataset.units[n].bytes)
    stale = [name for name in there if _EXPORTED.fullmatch(name) and name not in names]
    for name in stale:
        out.delete(name)
    now = {entry.name: entry.size for entry in out.list("data/")}
    return Exported(
        written=len(written),
        deleted=len(stale),
        bytes=sum(now.get(name, 0) for name in names),
        problems=tuple(problems[number] for number in sorted(problems)),
    )


def first_sample(dataset: Dataset) -> Sample:
    """Returns the first clip of the first shard where it is intact. Raises DatasetError without any."""
    table, problem = dataset.samples(), DatasetError(f"{dataset.url} has no clips to export")
    for row in np.unique(dataset.unit_of_row, return_index=True)[1].tolist():
        try:
            _check_size(dataset, dataset.units[int(table.unit[row])])
            return dataset.read(table, row)
        except DatasetError as error:
            problem = error
    raise problem


def split_names(splits: Sequence[str]) -> dict[str, str]:
    """Returns a name of letters, digits and _ for each split, as `datasets` wants it; names stay distinct."""
    names: dict[str, str] = {}
    for split in splits:
        name = re.sub(r"\W", "_", split) or "_"
        while name == _RESERVED or name in names.values():
            name += "_"
        names[split] = name
    return names


def file_names(dataset: Dataset, ending: str) -> list[str]:
    """Returns the name of each unit's file, `data/train/000000.parquet`."""
    splits = split_names(list(dataset.splits))
    stems = ((splits[unit.split], unit.tar.removesuffix(".tar")) for unit in dataset.units)
    return [f"data/{split}/{stem}.{ending}" for split, stem in stems]


def _claim(dataset: Dataset, out: Store, form: Format) -> None:
    """Write the description of the export, or compare it with the one that is there."""
    described = {
        "format": "sage-scale-export",
        "version": 1,
        "kind": form.name,
        "dataset": dataset.info.digest,
    }
    try:
        data = out.get(EXPORT_JSON)
    except NotFound:
        if other := next(out.list(), None):
            raise UsageError(
                f"{out.url} holds other things ({other.name}): give an empty or new folder"
            ) from None
        out.put_if_absent(EXPORT_JSON, canonical_json(described) + b"\n")
        data = out.get(EXPORT_JSON)
    try:
        found = parse_json_object(data)
    except InvalidJSON as error:
        raise UsageError(
            f"{out.url}/{EXPORT_JSON} is damaged ({error}): export into another folder"
        ) from None
    if found != described:
        what = "of another format" if found.get("kind") != form.name else "of another dataset"
        raise UsageError(f"{out.url} holds an export {what}: give another folder")


def _samples(dataset: Dataset, unit: Marker, records: np.ndarray) -> Iterator[Sample]:
    _check_size(dataset, unit)
    where = f"{dataset.url}/{unit.tar}"
    for data in verified_samples(partial(dataset.store.get_range, unit.tar), records, where):
        sample = read_sample(data, where=where)
        check_sample(sample, where)
        yield sample


def _check_size(dataset: Dataset, unit: Marker) -> None:
    """Raises DatasetError for a missing shard, or one of other bytes than its marker says."""
    where = f"{dataset.url}/{unit.tar}"
    try:
        found = dataset.store.size(unit.tar)
    except NotFound:
        raise DatasetError(f"{where}: the shard is missing") from None
    if found != unit.bytes:
        raise DatasetError(f"{where}: {found:,} bytes, it was written with {unit.bytes:,}")
