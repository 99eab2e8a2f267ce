"""Memory for what is read, used again once nobody holds it.

A fresh page costs a fault and 4 KiB of zeros, and ten times that on a virtual machine that gave its free memory back to
the host: for blocks of 8 MiB and batches of some MiB, more than fetching and copying the bytes.
"""

from __future__ import annotations

import sys
import threading

import numpy as np
from numpy.typing import NDArray

LEAST_BYTES = 256 << 10
"""Smaller pieces come from the allocator's own free lists."""
SPARE_BYTES = 64 << 20
"""More free memory than this, beyond the piece asked for, is given back."""
_OWN_REFERENCES = 3
"""The list's, the loop's and the one that `sys.getrefcount` is called with."""


class BufferPool:
    """Pieces of memory. A piece is free again when its array, and every view and tensor made of it, is gone.

    Reentrant. In a forked child the pieces are its own copies.
    """

    def __init__(self, spare: int = SPARE_BYTES) -> None:
        self.spare = spare
        self._rooms: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> NDArray[np.uint8]:
        """uint8 (size,), uninitialised, held by nobody else."""
        if size < LEAST_BYTES:
            return np.empty(size, np.uint8)
        with self._lock:
            best, kept, spare = None, [], 0
            for room in self._rooms:
                if sys.getrefcount(room) > _OWN_REFERENCES:
                    kept.append(room)
                elif size <= room.size <= 2 * size and (best is None or room.size < best.size):
                    if best is not None and spare + best.size <= self.spare:
                        kept.append(best)
                        spare += best.size
                    best = room
                elif spare + room.size <= self.spare:
                    kept.append(room)
                    spare += room.size
            if best is None:
                best = np.empty(size, np.uint8)
            kept.append(best)
            self._rooms = kept
            # The view holds the room until it is dropped itself.
            return best[:size]

    def __getstate__(self) -> dict[str, int]:
        return {"spare": self.spare}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["spare"])  # type: ignore[misc]
