"""The words of a dataset without its pictures: the description of each sample, read from the head of its bytes.

The JSON member comes first in a sample, so a few thousand bytes of each are fetched, in parallel.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

from sage_scale.errors import DatasetError
from sage_scale.shards.dataset import Dataset, SampleTable, in_parallel, open_dataset
from sage_scale.shards.tar import BLOCK
from sage_scale.untrusted.json_values import parse_stored

HEAD = 4096
"""Bytes fetched first; a longer description is fetched again, whole."""


def read_texts(place: str | Path | Dataset, *splits: str, most: int = 0) -> list[dict[str, Any]]:
    """Returns the meta mapping of each sample of the named splits (all where none is named), in the dataset's order.

    Where there are more than `most` (0: no limit), as many are read, at even distances.
    """
    dataset = place if isinstance(place, Dataset) else open_dataset(place)
    known = [split for split in splits if split in dataset.splits]
    if splits and not known:
        return []
    table = dataset.samples(*known)
    count = min(most or len(table), len(table))
    rows = (number * len(table) // count for number in range(count))
    return in_parallel(lambda row: _meta(dataset, table, row), rows)


def _meta(dataset: Dataset, table: SampleTable, row: int) -> dict[str, Any]:
    tar = dataset.units[int(table.unit[row])].tar
    offset, length = int(table.offset[row]), int(table.length[row])
    head = dataset.store.get_range(tar, offset, min(HEAD, length))
    key = f"{int(table.key[row]):016x}"
    where = f"{dataset.url}/{tar}, sample {key}"
    try:
        if head[: len(key) + 6] != f"{key}.json\0".encode():
            raise ValueError("the first member is not its description")
        size = int(head[124:135], 8)
        if BLOCK + size > len(head):
            head = dataset.store.get_range(tar, offset, min(BLOCK + size, length))
        meta = parse_stored(head[BLOCK : BLOCK + size])
    except ValueError as error:
        raise DatasetError(f"{where}: {error}; run `sage-scale shards verify {quote(dataset.url)}`") from None
    return meta
