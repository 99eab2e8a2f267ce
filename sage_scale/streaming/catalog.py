"""The samples of a stream: in which tars of which store each lies, and where in them.

Shape letter: S samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_scale.shards import HAS_SENTENCE, Dataset, SampleTable
from sage_scale.shards.index_json import Allocate, private
from sage_scale.streaming.subset import in_fraction

COALESCE_GAP = 128 << 10
"""Unused bytes between two samples up to which they share one GET: 128 KiB take about a millisecond, a request tens of
them."""

_HASHED_ROWS = 1 << 18


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalog:
    """S samples of one dataset, in dataset order (unit after unit, offset after offset), or of several, joined."""

    url: str
    """Store of the dataset."""
    shards: tuple[str, ...]
    """Names of its tars; `samples.unit` is an index into them."""
    samples: SampleTable
    """Shard, offset, length and hash of each sample: 10^8 samples can be held and forked."""
    names: tuple[str, ...] = ()
    """Keys of samples whose keys are no numbers (another writer's WebDataset)."""
    parts: tuple[Catalog, ...] = ()
    """Catalogs of the joined datasets; empty for one dataset."""
    left_out: int = 0
    """Samples that `subset` left out."""
    known_digest: str = ""
    """Of all samples, where it was computed before."""

    @classmethod
    def of(cls, dataset: Dataset, *splits: str, require_text: bool, allocate: Allocate = private) -> Catalog:
        """Returns the samples of the named splits, with `require_text` only those that have a sentence.

        Raises DatasetError for an unknown split.
        """
        samples = dataset.samples(*splits)
        if require_text and not (told := samples.flags & HAS_SENTENCE != 0).all():
            samples = samples.take(told, allocate)
        return cls(url=dataset.url, shards=dataset.units.tars(), samples=samples)

    @classmethod
    def joined(
        cls,
        parts: Sequence[Catalog],
        records: NDArray[Any] | None = None,
        unit: NDArray[np.int32] | None = None,
    ) -> Catalog:
        """Returns all samples of the parts, one after another; a single part is returned itself.

        Samples and shards are numbered through; language numbers stay each dataset's own. `records` and `unit` are the
        joined ones, where they were made before.
        """
        if len(parts) == 1:
            return parts[0]
        begins = np.cumsum([0, *(len(part.shards) for part in parts)]).tolist()
        if records is None or unit is None:
            records = np.concatenate([part.samples.records for part in parts])
            units = [part.samples.unit + begin for part, begin in zip(parts, begins)]
            unit = np.concatenate(units).astype(np.int32)
        language_begins, languages = zip(*(part.samples.languages for part in parts))
        numbers = np.cumsum([0, *map(len, languages)]).tolist()
        samples = SampleTable(
            records=records,
            unit=unit,
            languages=(
                np.concatenate(
                    [[0], *(some[1:] + number for some, number in zip(language_begins, numbers))]
                ).astype(np.int64),
                np.concatenate(languages),
            ),
        )
        bounds = np.cumsum([0, *map(len, parts)]).tolist()
        return cls(
            url=" + ".join(part.url for part in parts),
            shards=tuple(shard for part in parts for shard in part.shards),
            samples=samples,
            parts=tuple(  # over the joined records: theirs are not kept
                replace(part, samples=replace(part.samples, records=samples.records[begin:end]))
                for part, begin, end in zip(parts, bounds, bounds[1:])
            ),
            left_out=sum(part.left_out for part in parts),
        )

    def take(self, rows: NDArray[np.int64]) -> Catalog:
        """Returns the catalog of these rows, in this order."""
        names = tuple(self.names[row] for row in rows.tolist()) if self.names else ()
        return replace(self, samples=self.samples.take(rows), names=names, known_digest="")

    def subset(self, fraction: float) -> Catalog:
        """Returns the samples that `stream.fraction` chooses, in the same order; all of them at 1."""
        if fraction == 1:
            return self
        rows = np.flatnonzero(in_fraction(self.samples.key, fraction))
        return replace(self.take(rows), left_out=self.left_out + len(self) - len(rows))

    def describe_subset(self, fraction: float) -> str:
        """Returns `48 of 480 training clips (stream.fraction=0.1)`, or `480 training clips`."""
        if fraction == 1:
            return f"{len(self):,} training clips"
        return f"{len(self):,} of {len(self) + self.left_out:,} training clips (stream.fraction={fraction:g})"

    def read_bytes(self) -> NDArray[np.integer[Any]]:
        """Returns (S,): bytes that an object store sends for each sample; of a subset, with the short gap before it.

        Of a whole dataset these are the records' own lengths: sums of them take an int64.
        """
        table = self.samples
        if not self.left_out or len(self) < 2:
            return table.records["length"]
        bytes_S = table.records["length"].astype(np.int64)
        gap = table.offset[1:] - table.offset[:-1] - bytes_S[:-1]
        short = (table.unit[1:] == table.unit[:-1]) & (gap > 0) & (gap <= COALESCE_GAP)
        bytes_S[1:] += np.where(short, gap, 0)
        return bytes_S

    def __len__(self) -> int:
        return len(self.samples)

    def digest(self) -> str:
        """Returns 16 hex digits that change with any sample, its bytes or its position in the order."""
        if self.known_digest:
            return self.known_digest
        records, sha = self.samples.records, hashlib.sha256()
        columns = (
            (records["key"], "<u8"),
            (records["hash"], "u1"),
            (self.samples.unit, "<i8"),
            (records["length"], "<i8"),
        )
        for column, kind in columns:
            for begin in range(0, len(column), _HASHED_ROWS):  # a column as a whole would be copied
                sha.update(np.ascontiguousarray(column[begin : begin + _HASHED_ROWS], dtype=kind).data)
        return sha.hexdigest()[:16]

    @cached_property
    def shard_urls(self) -> tuple[str, ...]:
        """URL of each tar, for messages."""
        if self.parts:
            return tuple(url for part in self.parts for url in part.shard_urls)
        return tuple(f"{self.url}/{shard}" for shard in self.shards)

    @cached_property
    def part_bounds(self) -> NDArray[np.int64]:
        """(parts + 1,): the first sample of each part, and the end."""
        return np.cumsum([0, *(len(part) for part in self.parts)])

    def keys(self, samples: NDArray[np.int64]) -> list[str]:
        """Returns the keys of these samples."""
        if self.names:
            return [self.names[sample] for sample in samples.tolist()]
        digits = self.samples.key[samples].astype(">u8").tobytes().hex()
        return [digits[begin : begin + 16] for begin in range(0, len(digits), 16)]

    def key(self, sample: int) -> str:
        """Returns the sample's key as in the names of its members."""
        return self.keys(np.array([sample]))[0]

    def shard(self, sample: int) -> str:
        """Returns the name of the tar that holds the sample."""
        return self.shards[int(self.samples.unit[sample])]

    def describe(self, sample: int) -> str:
        """Returns shard and sample, for a message."""
        record = self.samples.records[sample]
        begin = int(record["offset"])
        end = begin + int(record["length"])
        url = self.shard_urls[int(self.samples.unit[sample])]
        return f"sample {self.key(sample)} of {url} (bytes {begin} to {end})"
