"""Checking a dataset whole: every hash, every member, every count, in parallel.

Index and marker are rebuilt from each tar and compared byte for byte with what is stored beside it and with
index.json: nothing that differs from what the writer left goes unnoticed, and a message names shard and sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sage_scale.errors import DatasetError
from sage_scale.shards.additions import load_additions
from sage_scale.shards.dataset import (
    Dataset,
    index_json,
    open_dataset,
    open_units,
)
from sage_scale.shards.index import build_index, make_marker
from sage_scale.shards.layout import (
    DATASET_JSON,
    INDEX_JSON,
    Unit,
    index_name,
    marker_name,
    unit_object,
)
from sage_scale.shards.removed import as_numbers, removed_keys
from sage_scale.shards.sample import check_sample, read_sample
from sage_scale.shards.stored import stored_tar
from sage_scale.storage import NotFound, Store, open_store


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What a verification looked at and found."""

    url: str
    units: int
    samples: int
    bytes: int
    problems: tuple[str, ...]
    """One line each, naming shard and sample."""


def verify_dataset(
    place: str | Path | Store,
    *,
    threads: int = 4,
    progress: Callable[[int, int, int], None] | None = None,
) -> VerifyReport:
    """Read every byte of a finished dataset and compare all of it. Damage is reported, not raised.

    `progress(done, total, bytes)` is called after each unit. Raises DatasetError where there is no dataset to
    compare with (no index.json, or a damaged one), StorageError where it cannot be read.
    """
    store = place if isinstance(place, Store) else open_store(place)
    dataset = open_dataset(store)
    problems = _check_frame(dataset)
    starts = np.concatenate([[0], np.cumsum([unit.samples for unit in dataset.units])]).astype(int)
    read = 0
    found: dict[int, list[str]] = {}
    with ThreadPoolExecutor(max(1, threads)) as pool:
        jobs = {
            pool.submit(check_unit, dataset, unit, dataset.records[starts[i] : starts[i + 1]]): i
            for i, unit in enumerate(dataset.units)
        }
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                found[jobs[job]] = job.result()
                read += dataset.units[jobs[job]].bytes
                if progress:
                    progress(done, len(jobs), read)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for i in sorted(found):
        problems += found[i]
    return VerifyReport(
        url=dataset.url,
        units=len(dataset.units),
        samples=len(dataset.records),
        bytes=read,
        problems=tuple(problems),
    )


def check_unit(dataset: Dataset, unit: Unit, records: np.ndarray) -> list[str]:
    """Problems of one unit, one line each; `records` are its part of index.json."""
    store = dataset.store
    where = f"{store.url}/{unit.tar}"
    problems = []
    try:
        with stored_tar(store, unit.tar) as view:
            problems += _check_samples(view, records, where)
            index = build_index(view, where)
    except NotFound:
        return [f"{where} is missing"]
    except DatasetError as error:
        return problems or [str(error)]
    marker = make_marker(index)
    if marker.unit != unit.unit or marker.dataset != dataset.info.digest:
        problems.append(
            f"{where} is the shard of unit {marker.unit} of dataset {marker.dataset}: it was exchanged"
        )
    elif marker != unit and not problems:
        problems.append(f"{where} differs from index.json ({_first_difference(marker, unit)})")
    for name, expected in (
        (index_name(unit.unit, unit.generation), index.to_bytes()),
        (marker_name(unit.unit, unit.generation), marker.to_bytes()),
    ):
        try:
            if store.get(name) != expected:
                problems.append(f"{store.url}/{name} does not belong to its tar: it is stale or damaged")
        except NotFound:
            problems.append(f"{store.url}/{name} is missing")
    return problems


def _check_frame(dataset: Dataset) -> list[str]:
    """Problems of the dataset as a whole: dataset.json, index.json, objects too many."""
    store, problems = dataset.store, []
    try:
        if store.get(DATASET_JSON) != dataset.info.to_bytes():
            problems.append(f"{store.url}/{DATASET_JSON} differs from the copy in {INDEX_JSON}")
    except NotFound:
        problems.append(f"{store.url}/{DATASET_JSON} is missing")
    numbers = [unit.unit for unit in dataset.units]
    missing = open_units(dataset)
    if missing:
        problems.append(
            f"{store.url}/{INDEX_JSON} lacks {len(missing)} planned units, first {missing[0]:06d}"
        )
    if numbers != sorted(set(numbers)):
        problems.append(f"{store.url}/{INDEX_JSON} names a unit twice or in disorder")
    written = index_json(dataset.info, dataset.units, dataset.records, dataset.additions)
    if written[9:41].decode() != dataset.digest:
        problems.append(f"{store.url}/{INDEX_JSON} is not as the writer leaves it")
    problems += _check_generations(dataset)
    return problems


def _check_generations(dataset: Dataset) -> list[str]:
    """Shards that index.json does not know, and what a removal that was cut off has left."""
    store = dataset.store
    generation = {unit.unit: unit.generation for unit in dataset.units}
    problems = []
    older = 0
    try:
        begun = load_additions(store)[len(dataset.additions) :]
    except DatasetError as error:
        problems.append(str(error))
        begun = []
    added = {unit: number for number, plan in enumerate(begun) for unit in plan.addition.units}
    stored = Counter[int]()
    for entry in store.list():
        found = unit_object(entry.name)
        if found is None:
            continue
        known = generation.get(found.unit)
        if found.ending == "tar" and known is None and found.unit in added:
            stored[added[found.unit]] += 1
        elif found.ending == "tar" and (known is None or found.generation > known):
            problems.append(
                f"{store.url}/{entry.name} is a shard that {INDEX_JSON} does not know: the index is stale"
            )
        older += known is not None and found.generation < known
    for number, there in sorted(stored.items()):
        option = "--extend" if begun[number].manifest else "--retry-rejects"
        problems.append(
            f"{store.url}: {there} of {len(begun[number].units)} shards of precompute's {option} are there, and no "
            f"reader sees them: it was cut off, or is at work; run precompute with {option} again"
        )
    if older:
        problems.append(
            f"{store.url}: {older} objects of older generations are still there: run `sage-scale shards repair "
            f"{store.url}`, which deletes them"
        )
    removed = removed_keys(store)
    left = int(np.isin(dataset.records["key"], as_numbers(removed)).sum()) if removed else 0
    if left:
        problems.append(
            f"{store.url}: {left} clips that were to be taken out are still in it: run `sage-scale shards remove "
            f"{store.url}` to finish that"
        )
    return problems


def _check_samples(view: memoryview, records: np.ndarray, where: str) -> list[str]:
    problems = []
    for record in records:
        key, start, length = f"{int(record['key']):016x}", int(record["offset"]), int(record["length"])
        if start + length > len(view):
            problems.append(f"{where}, sample {key}: it is missing, the tar was cut off at byte {len(view)}")
            continue
        data = bytes(view[start : start + length])
        try:
            sample = read_sample(data, key=key, digest=record["hash"].tobytes(), where=where)
            check_sample(sample, where)
        except DatasetError as error:
            problems.append(str(error).split("; run `")[0])
    return problems


def _first_difference(one: Unit, other: Unit) -> str:
    return next(name for name in vars(one) if getattr(one, name) != getattr(other, name))
