"""Shards in files of this machine: `pread` through cached descriptors."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sage_scale.errors import StorageError
from sage_scale.streaming.catalog import Catalog
from sage_scale.streaming.readers import ADVICE, DamagedSample, SampleReader, Source
from sage_scale.untrusted.files import open_descriptor

MAX_DESCRIPTORS = 256


class Descriptor:
    """An open file that closes when the last thread lets go of it."""

    def __init__(self, path: Path) -> None:
        self.number = open_descriptor(path)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class FileReader(SampleReader):
    """Shards in files of this machine. `pread` has no position: threads and forked workers may share it."""

    remote = False

    def __init__(self, catalog: Catalog, paths: Sequence[Path]) -> None:
        super().__init__(catalog)
        self.paths = paths
        self._open: OrderedDict[int, Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def fetch(self, samples: Sequence[int]) -> Iterator[bytes | DamagedSample]:
        table = self.catalog.samples
        picked = np.asarray(samples, dtype=np.int64)
        places = zip(
            samples, table.unit[picked].tolist(), table.offset[picked].tolist(), table.length[picked].tolist()
        )
        for place in places:
            yield self._read(*place)

    def sources(self, samples: NDArray[np.int64]) -> Iterator[Source | DamagedSample]:
        table = self.catalog.samples
        for shard, offset in zip(table.unit[samples].tolist(), table.offset[samples].tolist()):
            held = self.descriptor(shard)
            yield held.number, offset

    def _read(self, sample: int, shard: int, offset: int, size: int) -> bytes | DamagedSample:
        try:
            data = os.pread(self.descriptor(shard).number, size, offset)
        except FileNotFoundError:
            return DamagedSample(f"{self.catalog.describe(sample)}: the shard is missing; {ADVICE}")
        except OSError as error:
            raise StorageError(f"{self.catalog.describe(sample)} cannot be read: {error.strerror}") from None
        if len(data) < size:  # a file's end; Linux gives up to 2 GiB at once
            return DamagedSample(f"{self.catalog.describe(sample)}: the shard is cut off; {ADVICE}")
        return data

    def descriptor(self, shard: int) -> Descriptor:
        """The shard's open file, open for as long as somebody holds it. Raises OSError where there is none."""
        with self._lock:
            found = self._open.get(shard)
            if found is None:
                found = self._open[shard] = Descriptor(self.paths[shard])
                if len(self._open) > MAX_DESCRIPTORS:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(shard)
            return found

    def __getstate__(self) -> dict[str, Any]:
        return {"catalog": self.catalog, "paths": self.paths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["catalog"], state["paths"])  # type: ignore[misc]
