"""Which sample goes to which part when a dataset is split: pure functions of the dataset and the arguments."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from sage_scale.errors import UsageError
from sage_scale.shards.dataset import Dataset
from sage_scale.shards.layout import sample_key
from sage_scale.shards.texts import read_texts

Parts = dict[str, np.ndarray]
"""Rows of the dataset's records by part, ascending."""


def by_share(dataset: Dataset, shares: Mapping[str, float], seed: int = 0) -> Parts:
    """Parts that get these shares of every split, to within one sample; what is left over of 1 is not in any.

    Which samples is decided by hashes of their keys and `seed`, so that a dataset with more clips parts those that it
    had before in nearly the same way.
    """
    if not shares or min(shares.values()) <= 0 or sum(shares.values()) > 1 + 1e-9:
        raise UsageError("shares must be positive and together at most 1: --share train=0.9 --share dev=0.1")
    parts: dict[str, list[int]] = {name: [] for name in shares}
    for rows in _shuffled(dataset, seed):
        edges = np.round(np.cumsum([0.0, *shares.values()]) * len(rows)).astype(int)
        for name, begin, end in zip(shares, edges[:-1].tolist(), edges[1:].tolist()):
            parts[name] += rows[begin:end]
    return _sorted(parts)


def by_count(dataset: Dataset, counts: Mapping[str, int], seed: int = 0) -> Parts:
    """Parts that get so many samples of every split, in this order, as far as there are any."""
    if not counts or min(counts.values()) < 1:
        raise UsageError("counts must be positive: --count small=100")
    parts: dict[str, list[int]] = {name: [] for name in counts}
    for rows in _shuffled(dataset, seed):
        begin = 0
        for name, count in counts.items():
            parts[name] += rows[begin : begin + count]
            begin += count
    return _sorted(parts)


def by_signer(dataset: Dataset, signers: Mapping[str, Sequence[str]]) -> Parts:
    """Parts that get the clips of these signers. Raises UsageError for an unknown signer, or one in two parts."""
    found = [str(meta["signer"]) for meta in read_texts(dataset)]
    owner = _owners(signers, "signer")
    unknown = sorted(set(owner) - set(found))
    if unknown:
        has = ", ".join(sorted(set(found))[:12])
        raise UsageError(f"{dataset.url} has no signer '{unknown[0]}'; it has {has}")
    return _sorted({name: [r for r, s in enumerate(found) if owner.get(s) == name] for name in signers})


def by_ids(dataset: Dataset, ids: Mapping[str, Sequence[str]]) -> Parts:
    """Parts that get the clips of these ids (or keys). Raises UsageError for an unknown one, or one in two parts."""
    row_of = {f"{key:016x}": row for row, key in enumerate(dataset.records["key"].tolist())}
    parts: dict[str, list[int]] = {name: [] for name in ids}
    for clip, name in _owners(ids, "clip").items():
        row = row_of.get(clip, row_of.get(sample_key(clip)))
        if row is None:
            raise UsageError(f"{dataset.url} has no clip '{clip}' (part {name})")
        parts[name].append(row)
    return _sorted(parts)


def with_rest(dataset: Dataset, parts: Parts, name: str) -> Parts:
    """The parts, and (unless `name` is empty) one of that name with all samples that are in none of them.

    Parts without a sample are left out. Raises UsageError where nothing is left.
    """
    taken = np.concatenate([np.zeros(0, np.int64), *parts.values()])
    if name in parts:
        raise UsageError(f"the part '{name}' is named already: give --rest another name, or an empty one")
    rest = np.setdiff1d(np.arange(len(dataset.records)), taken)
    whole = {**parts, name: rest} if name else dict(parts)
    filled = {part: rows for part, rows in whole.items() if len(rows)}
    if not filled:
        raise UsageError(f"{dataset.url}: no part gets a clip")
    return filled


def _owners(groups: Mapping[str, Sequence[str]], what: str) -> dict[str, str]:
    owner: dict[str, str] = {}
    for name, members in groups.items():
        for member in members:
            if owner.setdefault(member, name) != name:
                raise UsageError(f"{what} '{member}' is in two parts, {owner[member]} and {name}")
    return owner


def _shuffled(dataset: Dataset, seed: int) -> list[list[int]]:
    """Rows of each split, in the order of their hashes."""
    rows_of: dict[str, list[tuple[bytes, int]]] = {}
    row = 0
    for unit in dataset.units:
        for _ in range(unit.samples):
            key = int(dataset.records[row]["key"])
            rank = hashlib.sha256(f"{seed} {key:016x}".encode()).digest()
            rows_of.setdefault(unit.split, []).append((rank, row))
            row += 1
    return [[row for _, row in sorted(pairs)] for pairs in rows_of.values()]


def _sorted(parts: Mapping[str, Sequence[int]]) -> Parts:
    return {name: np.sort(np.asarray(rows, np.int64)) for name, rows in parts.items()}
