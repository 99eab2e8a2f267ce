"""What a dataset leaves out as things stand: a clip that a later shard made, or set aside again, counts by that."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sage_scale.shards.dataset import Dataset, in_parallel, read_rejects
from sage_scale.shards.generations import reject_key
from sage_scale.shards.layout import Reject, Unit

REPEATED = "repeated-id"
"""A row whose id an earlier row has: what becomes of that clip says nothing about the row."""


def standing_rejects(dataset: Dataset) -> Iterator[tuple[Unit, Reject]]:
    """The rejects that no later shard has overtaken, with their units, in the order of the units.

    A shard of `--retry-rejects` or `--extend` tells again of clips that an earlier one had set aside; the earlier
    reject then stays in its tar, but is no longer true. Raises DatasetError where a tar is damaged.
    """
    planned = len(dataset.info.units)
    told = list(in_parallel(lambda unit: read_rejects(dataset.store, unit), dataset.units))
    latest: dict[str, int] = {}
    if any(unit.unit >= planned for unit in dataset.units):
        starts = np.cumsum([0, *(unit.samples for unit in dataset.units)])
        for ordinal, unit in enumerate(dataset.units):
            if unit.unit >= planned:
                keys = dataset.records["key"][starts[ordinal] : starts[ordinal + 1]]
                again = {f"{int(key):016x}" for key in keys} | {reject_key(row) for row in told[ordinal]}
                latest.update((key, max(unit.unit, latest.get(key, 0))) for key in again)
    for unit, rows in zip(dataset.units, told, strict=True):
        for row in rows:
            if row.reason == REPEATED or latest.get(reject_key(row), -1) <= unit.unit:
                yield unit, row
