"""The samples of chosen splits, as columns over the records of the index.

Records are not copied where the chosen samples lie in a row: a table of ten million samples then costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sage_scale.shards.index import LANGUAGE_MASK, LANGUAGE_SHIFT

_COPIED_ROWS = 1 << 18
Rows = NDArray[np.int64] | NDArray[np.bool_] | slice


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleTable:
    """The samples of chosen splits, in the order of units and tars: row i of each column is sample i.

    A column of another type than the records' own is made at its first use and kept: 8 bytes a sample. Code that needs
    few rows of a large table asks for `take(rows)` first.
    """

    records: np.ndarray
    """Structured (samples,), with the fields of RECORD."""
    unit: NDArray[np.int32]
    """Ordinal in `Dataset.units`, not the unit's number."""
    languages: tuple[NDArray[np.int64], NDArray[np.int32]]
    """`Units.language_lists` of the units."""

    def __len__(self) -> int:
        return len(self.unit)

    def take(self, rows: Rows, allocate: Callable[[int], NDArray[np.uint8]] | None = None) -> SampleTable:
        """Returns the table of these rows: indices, a mask, or a slice, which copies nothing.

        Copies lie in memory by `allocate`, where given.
        """
        if isinstance(rows, slice) or allocate is None:
            return SampleTable(records=self.records[rows], unit=self.unit[rows], languages=self.languages)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        records = allocate(len(rows) * self.records.itemsize).view(self.records.dtype)
        unit = allocate(4 * len(rows)).view(np.int32)
        for begin in range(0, len(rows), _COPIED_ROWS):  # at once, the copy would exist twice
            some = slice(begin, begin + _COPIED_ROWS)
            records[some], unit[some] = self.records[rows[some]], self.unit[rows[some]]
        return SampleTable(records=records, unit=unit, languages=self.languages)

    @property
    def offset(self) -> NDArray[np.int64]:
        """First byte in the tar."""
        return self.records["offset"].view(np.int64)

    @property
    def hash(self) -> NDArray[np.uint8]:
        """(samples, 16): xxh3-128 of the bytes."""
        return self.records["hash"]

    @property
    def key(self) -> NDArray[np.uint64]:
        """The key's 16 hex digits as a number."""
        return self.records["key"]

    @property
    def flags(self) -> NDArray[np.uint32]:
        """Bit 0: the sample has a sentence."""
        return self.records["flags"]

    @cached_property
    def length(self) -> NDArray[np.int64]:
        """Bytes."""
        return self.records["length"].astype(np.int64)

    @cached_property
    def frames(self) -> NDArray[np.int64]:
        """Frames of the clip at the recipe's rate."""
        return self.records["frames"].astype(np.int64)

    @cached_property
    def segments(self) -> NDArray[np.int64]:
        """Segments (65,535 means at least)."""
        return self.records["segments"].astype(np.int64)

    @cached_property
    def glosses(self) -> NDArray[np.int64]:
        """Pseudo-glosses (65,535 means at least)."""
        return self.records["glosses"].astype(np.int64)

    @cached_property
    def language(self) -> NDArray[np.int32]:
        """Index of the sample's language in `Dataset.languages`."""
        begins, numbers = self.languages
        own = (self.flags >> LANGUAGE_SHIFT) & LANGUAGE_MASK
        own = np.minimum(own, np.diff(begins)[self.unit] - 1).astype(np.int64)
        return numbers[begins[self.unit] + own]
