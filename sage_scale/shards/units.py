"""The markers of a dataset as a sequence that holds them as text and parses one when it is asked for.

100,000 markers as objects take 150 MB and seconds in every process. Two arrays hold what a stream needs of all of them
and the text of each, and can be shared by the processes of a node.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from sage_scale.shards import layout

UNIT = np.dtype([
    ("end", "<i8"), ("unit", "<i8"), ("samples", "<i8"), ("generation", "<i4"), ("split", "<i4"), ("languages", "<i4"),
])  # fmt: skip
"""End of the marker's text; number, samples and generation; ordinals in `Units.splits` and `Units.languages`."""


class Units(Sequence[layout.Marker]):
    """The markers of the finished units, by unit number. Equal to any sequence of the same markers."""

    def __init__(
        self,
        text: NDArray[np.uint8],
        table: NDArray[Any],
        splits: Sequence[str],
        languages: Sequence[tuple[str, ...]],
        where: str,
    ) -> None:
        self.text = text
        self.table = table
        """UNIT (units,)."""
        self.splits = tuple(splits)
        self.languages = tuple(languages)
        """Each list of languages that a unit has; ("",) for units from before languages were stored."""
        self.where = where

    @classmethod
    def of(cls, markers: Iterable[layout.Marker], where: str) -> Units:
        """Returns the sequence of these markers."""
        builder = UnitsBuilder(where)
        for marker in markers:
            builder.add(marker, layout.canonical_json(marker.to_mapping()))
        return builder.finish()

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, number: int) -> layout.Marker: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[layout.Marker, ...]: ...
    def __getitem__(self, number: int | slice) -> layout.Marker | tuple[layout.Marker, ...]:
        if isinstance(number, slice):
            return tuple(self[one] for one in range(*number.indices(len(self))))
        at = range(len(self))[number]
        begin = int(self.table["end"][at - 1]) if at else 0
        return layout.marker_from(
            json.loads(self.text[begin : int(self.table["end"][at])].tobytes()), self.where
        )

    def __iter__(self) -> Iterator[layout.Marker]:
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(map(layout.Marker.__eq__, self, other))
        )

    __hash__ = None  # type: ignore[assignment]

    def tar(self, ordinal: int) -> str:
        """Returns the name of a unit's tar."""
        return layout.tar_name(int(self.table["unit"][ordinal]), int(self.table["generation"][ordinal]))

    def tars(self) -> tuple[str, ...]:
        """Returns the name of each unit's tar."""
        numbers, generations = self.table["unit"].tolist(), self.table["generation"].tolist()
        return tuple(map(layout.tar_name, numbers, generations))

    def language_lists(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Returns (units + 1,) begins and the concatenated language numbers of each unit, as the flags of records
        count them; numbers are ordinals in the sorted languages of all units."""
        known = {
            name: number for number, name in enumerate(sorted({n for some in self.languages for n in some}))
        }
        lengths = np.array([len(some) for some in self.languages], np.int64)
        begins = np.r_[0, np.cumsum(lengths[self.table["languages"]])]
        lists = [np.array([known[name] for name in some], np.int32) for some in self.languages]
        of_units = [lists[code] for code in self.table["languages"].tolist()]
        return begins, np.concatenate([np.zeros(0, np.int32), *of_units])


class UnitsBuilder:
    """Collects markers, one after another."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._text = bytearray()
        self._rows: list[tuple[int, ...]] = []
        self._splits: dict[str, int] = {}
        self._languages: dict[tuple[str, ...], int] = {}

    def add(self, marker: layout.Marker, text: bytes) -> None:
        """Adds a marker and its JSON."""
        self._text += text
        languages = marker.languages or ("",)
        self._rows.append(
            (
                len(self._text),
                marker.unit,
                marker.samples,
                marker.generation,
                self._splits.setdefault(marker.split, len(self._splits)),
                self._languages.setdefault(languages, len(self._languages)),
            )
        )

    def finish(self, allocate: Callable[[int], NDArray[np.uint8]] | None = None) -> Units:
        """Returns the sequence, its text in memory by `allocate`."""
        text = np.empty(len(self._text), np.uint8) if allocate is None else allocate(len(self._text))
        text[:] = np.frombuffer(self._text, np.uint8)
        table = np.array(self._rows, UNIT)
        return Units(text, table, tuple(self._splits), tuple(self._languages), self.where)
