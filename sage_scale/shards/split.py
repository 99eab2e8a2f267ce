"""Splits a dataset into parts: which samples a part gets (pure functions), and the datasets made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from sage_scale.errors import UsageError
from sage_scale.parallel import ProgressCallback
from sage_scale.shards.dataset import Dataset, read_metadata
from sage_scale.shards.layout import DatasetInfo, PlannedUnit, sample_key
from sage_scale.shards.merge import (
    NewShard,
    Selection,
    check_stores,
    compose,
    digest_of,
    notes_of,
    shared_info,
    with_split,
)
from sage_scale.storage import Store

Parts = dict[str, np.ndarray]
"""Rows of the dataset's records by part, ascending."""


def by_share(dataset: Dataset, shares: Mapping[str, float], seed: int = 0) -> Parts:
    """Returns parts with these shares of every split, to within one sample; shares may add up to less than 1.

    Hashes of the keys and `seed` decide, so that a dataset that grew parts its earlier samples in nearly the same way.
    """
    if not shares or min(shares.values()) <= 0 or sum(shares.values()) > 1 + 1e-9:
        raise UsageError("shares must be positive and together at most 1: --share train=0.9 --share dev=0.1")
    edges = np.cumsum([0.0, *shares.values()])
    return _cut(
        shares, [(rows, np.round(edges * len(rows)).astype(int)) for rows in _shuffled(dataset, seed)]
    )


def by_count(dataset: Dataset, counts: Mapping[str, int], seed: int = 0) -> Parts:
    """Returns parts with so many samples of every split, filled in this order."""
    if not counts or min(counts.values()) < 1:
        raise UsageError("counts must be positive: --count small=100")
    edges = np.cumsum([0, *counts.values()])
    return _cut(counts, [(rows, edges) for rows in _shuffled(dataset, seed)])


def by_signer(dataset: Dataset, signers: Mapping[str, Sequence[str]]) -> Parts:
    """Returns parts with the clips of these signers. Raises UsageError for an unknown signer, or one in two parts."""
    found = [str(meta["signer"]) for meta in read_metadata(dataset)]
    part_of = _part_of(signers, "signer")
    unknown = sorted(set(part_of) - set(found))
    if unknown:
        has = ", ".join(sorted(set(found))[:12])
        raise UsageError(f"{dataset.url} has no signer '{unknown[0]}'; it has {has}")
    return _sorted({name: [r for r, s in enumerate(found) if part_of.get(s) == name] for name in signers})


def by_ids(dataset: Dataset, ids: Mapping[str, Sequence[str]]) -> Parts:
    """Returns parts with the clips of these ids or keys. Raises UsageError for an unknown one, or one in two parts."""
    row_of = {f"{key:016x}": row for row, key in enumerate(dataset.records["key"].tolist())}
    parts: dict[str, list[int]] = {name: [] for name in ids}
    for clip, name in _part_of(ids, "clip").items():
        row = row_of.get(clip, row_of.get(sample_key(clip)))
        if row is None:
            raise UsageError(f"{dataset.url} has no clip '{clip}' (part {name})")
        parts[name].append(row)
    return _sorted(parts)


def with_rest(dataset: Dataset, parts: Parts, name: str) -> Parts:
    """Returns the parts and, unless `name` is empty, a part of that name with all other samples.

    Parts without a sample are left out. Raises UsageError where nothing is left.
    """
    taken = np.concatenate([np.zeros(0, np.int64), *parts.values()])
    if name in parts:
        raise UsageError(f"the part '{name}' is named already: give --rest another name, or an empty one")
    rest = np.setdiff1d(np.arange(len(dataset.records)), taken)
    whole = {**parts, name: rest} if name else parts
    filled = {part: rows for part, rows in whole.items() if len(rows)}
    if not filled:
        raise UsageError(f"{dataset.url}: no part gets a clip")
    return filled


def split_dataset(
    source: Dataset,
    outs: Mapping[str, Store],
    parts: Parts,
    *,
    as_splits: bool = False,
    progress: ProgressCallback | None = None,
) -> dict[str, Dataset]:
    """Makes a dataset of each part's rows, with the splits of the source. Rejects stay in the source.

    With `as_splits` all parts become one dataset, in the store that `outs` gives each of them, and its splits are the
    parts: only `split` in each sample's description is written anew.
    """
    check_stores(list(outs.values()), [source])
    shards = {name: _new_shards(source, rows, name if as_splits else "") for name, rows in parts.items()}
    if as_splits:
        shards = {"": [shard for name in parts for shard in shards[name]]}
        outs = {"": next(iter(outs.values()))}
    row_of = {key: row for row, key in enumerate(source.records["key"].tolist())}
    made = {}
    for name, new in shards.items():
        keys = [key for shard in new for chosen in shard.selections for key in chosen.records["key"].tolist()]
        info = DatasetInfo(
            units=tuple(PlannedUnit(split=shard.split, clips=shard.samples) for shard in new),
            manifest=digest_of(source.info.manifest, *(str(row_of[key]) for key in keys)),
            notes=notes_of(f"split {name}".strip(), [source]),
            **shared_info([source]),
        )
        made[name] = compose(outs[name], info, [source], new, progress)
    return made


def _new_shards(source: Dataset, rows: np.ndarray, split: str) -> list[NewShard]:
    """Returns shards of these rows, each of one split and no larger than the source's largest."""
    clips = max((unit.samples for unit in source.units), default=1)
    unit_of_row = source.unit_of_row
    by_split: dict[str, list[int]] = {}
    for row in rows.tolist():
        by_split.setdefault(split or source.units[unit_of_row[row]].split, []).append(row)
    shards = []
    for name, chosen in by_split.items():
        renamed = partial(with_split, split=name) if split else None
        for begin in range(0, len(chosen), clips):
            some = np.array(chosen[begin : begin + clips])
            units = dict.fromkeys(unit_of_row[some].tolist())
            selections = [Selection(source, u, source.records[some[unit_of_row[some] == u]]) for u in units]
            shards.append(NewShard(name, selections, change=renamed))
    return shards


def _part_of(parts: Mapping[str, Sequence[str]], what: str) -> dict[str, str]:
    part_of: dict[str, str] = {}
    for name, members in parts.items():
        for member in members:
            if part_of.setdefault(member, name) != name:
                raise UsageError(f"{what} '{member}' is in two parts, {part_of[member]} and {name}")
    return part_of


def _shuffled(dataset: Dataset, seed: int) -> list[list[int]]:
    """Returns the rows of each split, in the order of hashes of key and seed."""
    rows_of: dict[str, list[tuple[bytes, int]]] = {}
    for row, (unit, key) in enumerate(zip(dataset.unit_of_row.tolist(), dataset.records["key"].tolist())):
        rank = hashlib.sha256(f"{seed} {key:016x}".encode()).digest()
        rows_of.setdefault(dataset.units[unit].split, []).append((rank, row))
    return [[row for _, row in sorted(pairs)] for pairs in rows_of.values()]


def _cut(names: Iterable[str], splits: Sequence[tuple[list[int], np.ndarray]]) -> Parts:
    """Returns, for name n, the rows between edges n and n + 1 of every split."""
    return _sorted(
        {
            name: [row for rows, edges in splits for row in rows[edges[n] : edges[n + 1]]]
            for n, name in enumerate(names)
        }
    )


def _sorted(parts: Mapping[str, Sequence[int]]) -> Parts:
    return {name: np.sort(np.asarray(rows, np.int64)) for name, rows in parts.items()}
