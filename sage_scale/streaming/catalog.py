"""The samples that a stream is made of: which, in which tars of which store, and where in them.

Shape letter: S samples.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
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
        return [f"{key:016x}" for key in self.samples.key[samples].tolist()]

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
