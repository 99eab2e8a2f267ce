"""The samples that a stream is made of: which, in which tars of which store, and where in them.

Shape letter: S samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sage_scale.shards import HAS_SENTENCE, Dataset, SampleTable


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalog:
    """S samples of one dataset, in dataset order (unit after unit, offset after offset)."""

    url: str
    """Store of the dataset."""
    shards: tuple[str, ...]
    """Names of its tars; `samples.unit` numbers them."""
    samples: SampleTable
    """Where each sample lies, its length and its hash, as columns: 10^8 samples can be held and forked."""

    @classmethod
    def of(cls, dataset: Dataset, *splits: str, require_text: bool) -> Catalog:
        """The samples of the named splits, with `require_text` only those that have a sentence.

        Raises DatasetError for an unknown split.
        """
        samples = dataset.samples(*splits)
        if require_text:
            samples = samples.take(samples.flags & HAS_SENTENCE != 0)
        return cls(url=dataset.url, shards=tuple(unit.tar for unit in dataset.units), samples=samples)

    def take(self, rows: NDArray[np.int64]) -> Catalog:
        """The catalog of these rows, in this order."""
        return replace(self, samples=self.samples.take(rows))

    def __len__(self) -> int:
        return len(self.samples)

    def digest(self) -> str:
        """16 hex digits that change with any sample, its bytes or its place in the order."""
        table = self.samples
        sha = hashlib.sha256()
        for column, kind in (
            (table.key, "<u8"),
            (table.hash, "u1"),
            (table.unit, "<i8"),
            (table.length, "<i8"),
        ):
            sha.update(np.ascontiguousarray(column, dtype=kind).tobytes())
        return sha.hexdigest()[:16]

    @cached_property
    def places(self) -> tuple[str, ...]:
        """URL of each tar, for messages."""
        return tuple(f"{self.url}/{shard}" for shard in self.shards)

    def keys(self, samples: NDArray[np.int64]) -> list[str]:
        """Keys of these samples."""
        digits = self.samples.key[samples].astype(">u8").tobytes().hex()
        return [digits[begin : begin + 16] for begin in range(0, len(digits), 16)]

    def key(self, sample: int) -> str:
        """The sample's key as in the names of its members."""
        return f"{int(self.samples.key[sample]):016x}"

    def shard(self, sample: int) -> str:
        """Name of the tar that the sample lies in."""
        return self.shards[int(self.samples.unit[sample])]

    def describe(self, sample: int) -> str:
        """Shard and sample, for a message."""
        begin = int(self.samples.offset[sample])
        end = begin + int(self.samples.length[sample])
        return f"sample {self.key(sample)} of {self.url}/{self.shard(sample)} (bytes {begin} to {end})"


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedCatalog(Catalog):
    """Samples of several datasets, one after another."""

    parts: tuple[Catalog, ...]
    """The datasets' own catalogs; their samples and shards are numbered through."""

    @classmethod
    def of_parts(cls, parts: Sequence[Catalog]) -> JoinedCatalog:
        """All samples of the parts; the numbers of their languages stay each dataset's own."""
        begins = np.cumsum([0, *(len(part.shards) for part in parts)])
        columns = {
            name: np.concatenate([getattr(part.samples, name) for part in parts])
            for name in vars(parts[0].samples)
        }
        columns["unit"] = np.concatenate(
            [part.samples.unit + begin for part, begin in zip(parts, begins.tolist())]
        ).astype(np.int32)
        return cls(
            url=" + ".join(part.url for part in parts),
            shards=tuple(shard for part in parts for shard in part.shards),
            samples=SampleTable(**columns),
            parts=tuple(parts),
        )

    @cached_property
    def places(self) -> tuple[str, ...]:
        """URL of each tar, for messages."""
        return tuple(place for part in self.parts for place in part.places)

    @cached_property
    def begins(self) -> NDArray[np.int64]:
        """(parts + 1,): number of the first sample of each part, and the end."""
        return np.cumsum([0, *(len(part) for part in self.parts)])

    def describe(self, sample: int) -> str:
        """Shard and sample, for a message."""
        part = int(np.searchsorted(self.begins, sample, side="right")) - 1
        return self.parts[part].describe(sample - int(self.begins[part]))


def joined(catalogs: Sequence[Catalog]) -> Catalog:
    """One catalog of all samples; a single one stays itself."""
    return catalogs[0] if len(catalogs) == 1 else JoinedCatalog.of_parts(catalogs)
