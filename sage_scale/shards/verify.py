"""Verifies a dataset: every hash, every member, every count, in parallel.

Index and marker are rebuilt from each tar and compared, byte for byte, with the stored ones and with index.json.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sage_scale.errors import DatasetError
from sage_scale.parallel import ProgressCallback, map_threads
from sage_scale.shards import layout
from sage_scale.shards.addition_plan import load_additions
from sage_scale.shards.dataset import Dataset, index_json, open_dataset, unfinished_units
from sage_scale.shards.index import build_index, make_marker
from sage_scale.shards.rejects import key_numbers, removed_keys
from sage_scale.shards.sample import check_stored_samples
from sage_scale.shards.tar import map_tar
from sage_scale.storage import NotFound, Store, open_store


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Outcome of a verification."""

    url: str
    units: int
    samples: int
    bytes: int
    problems: tuple[str, ...]
    """One line each, naming shard and sample."""


def verify_dataset(
    source: str | Path | Store, *, threads: int = 4, progress: ProgressCallback | None = None
) -> VerifyReport:
    """Reads every byte of a finished dataset and compares it. Reports damage, does not raise it.

    Raises DatasetError where index.json is missing or damaged, StorageError where the dataset cannot be read.
    """
    dataset = open_dataset(source if isinstance(source, Store) else open_store(source))
    problems = _check_documents(dataset) + _check_objects(dataset)
    found = map_threads(
        lambda part: check_unit(dataset, *part),
        zip(dataset.units, dataset.records_by_unit()),
        threads=threads,
        progress=progress,
        size=lambda part: part[0].bytes,
    )
    return VerifyReport(
        url=dataset.url,
        units=len(dataset.units),
        samples=len(dataset.records),
        bytes=sum(unit.bytes for unit in dataset.units),
        problems=(*problems, *(problem for unit in found for problem in unit)),
    )


def check_unit(dataset: Dataset, unit: layout.Marker, records: np.ndarray) -> list[str]:
    """Returns the problems of one unit, one line each. `records` are its part of index.json."""
    store = dataset.store
    where = f"{store.url}/{unit.tar}"
    problems = []
    try:
        with map_tar(store, unit.tar) as view:
            problems = [problem for problem in check_stored_samples(view, records, where) if problem]
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
        name = next(name for name in vars(marker) if getattr(marker, name) != getattr(unit, name))
        problems.append(f"{where} differs from index.json ({name})")
    for name, expected in (
        (layout.index_name(unit.unit, unit.generation), index.to_bytes()),
        (layout.marker_name(unit.unit, unit.generation), marker.to_bytes()),
    ):
        try:
            if store.get(name) != expected:
                problems.append(f"{store.url}/{name} does not belong to its tar: it is stale or damaged")
        except NotFound:
            problems.append(f"{store.url}/{name} is missing")
    return problems


def _check_documents(dataset: Dataset) -> list[str]:
    """Returns the problems of dataset.json and index.json."""
    store, problems = dataset.store, []
    try:
        if store.get(layout.DATASET_JSON) != dataset.info.to_bytes():
            problems.append(f"{store.url}/{layout.DATASET_JSON} differs from the copy in {layout.INDEX_JSON}")
    except NotFound:
        problems.append(f"{store.url}/{layout.DATASET_JSON} is missing")
    if missing := unfinished_units(dataset):
        problems.append(
            f"{store.url}/{layout.INDEX_JSON} lacks {len(missing)} planned units, first {missing[0]:06d}"
        )
    numbers = [unit.unit for unit in dataset.units]
    if numbers != sorted(set(numbers)):
        problems.append(f"{store.url}/{layout.INDEX_JSON} names a unit twice or in disorder")
    written = index_json(dataset.info, dataset.units, dataset.records, dataset.additions)
    if layout.checksum_of(written) != dataset.digest:
        problems.append(f"{store.url}/{layout.INDEX_JSON} is not as the writer leaves it")
    return problems


def _check_objects(dataset: Dataset) -> list[str]:
    """Returns shards that index.json does not know, and the leftovers of a removal or addition that was cut off."""
    store = dataset.store
    generation = {unit.unit: unit.generation for unit in dataset.units}
    problems, older = [], 0
    try:
        begun = load_additions(store)[len(dataset.additions) :]
    except DatasetError as error:
        problems.append(str(error))
        begun = []
    added = {unit: number for number, plan in enumerate(begun) for unit in plan.addition.units}
    stored = Counter[int]()
    for entry in store.list():
        found = layout.unit_object(entry.name)
        if found is None:
            continue
        known = generation.get(found.unit)
        older += known is not None and found.generation < known
        if found.ending != "tar":
            continue
        if known is None and found.unit in added:
            stored[added[found.unit]] += 1
        elif known is None or found.generation > known:
            problems.append(
                f"{store.url}/{entry.name} is a shard that {layout.INDEX_JSON} does not know: the index is stale"
            )
    for number, shards in sorted(stored.items()):
        option = "--extend" if begun[number].manifest else "--retry-rejects"
        problems.append(
            f"{store.url}: {shards} of {len(begun[number].units)} shards of precompute's {option} are there, and no "
            f"reader sees them: it was cut off, or is at work; run precompute with {option} again"
        )
    if older:
        problems.append(
            f"{store.url}: {older} objects of older generations are still there: run `sage-scale shards repair "
            f"{store.url}`, which deletes them"
        )
    if left := int(np.isin(dataset.records["key"], key_numbers(removed_keys(store))).sum()):
        problems.append(
            f"{store.url}: {left} clips that were to be removed are still in it: run `sage-scale shards remove "
            f"{store.url}` to finish that"
        )
    return problems
