"""Memory that loader workers fill and the trainer reads, used again once the trainer has dropped it.

torch sends each tensor of a batch in a file of its own: made, named, unlinked and filled with zeros in the worker, its
descriptor sent over a socket, mapped and faulted in again by the trainer. For batches of features that is three times
what reading and checking them costs. Here trainer and workers share one nameless piece of memory (memfd) from the
start. A worker takes rooms in its own part of it, reads or decodes into them, and sends their places; when the last
tensor of a room is gone, the trainer clears the room's flag, and the worker may take it again. It has no name and no
size in /dev/shm, so that a killed process leaves nothing behind, and the 64 MB that containers have there are enough.

What finds no room there is sent through the worker's pipe, which needs no shared memory. Where there is no shelf (no
memfd, another start method than fork) batches go torch's way, through /dev/shm.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sage_scale.streaming.batch import Batch
from sage_scale.streaming.rooms import LEAST_BYTES
from sage_scale.vision.packed import PackedVideo

PART_BYTES = 16 << 30
"""Most that a worker's rooms take, in addresses; memory is taken when a room is."""
MOST_ROOMS = 4096
"""BufferPool of a worker: as many flags, one byte each, lie at the beginning of its part."""
_MEMFD_CLOEXEC = getattr(os, "MFD_CLOEXEC", 1)


class SharedBatchBuffer:
    """The shared memory of a trainer and its `workers`; made before they are forked. Raises OSError where the system
    has no such memory."""

    def __init__(self, workers: int) -> None:
        file = os.memfd_create("sage-scale-batches", _MEMFD_CLOEXEC)
        try:
            os.ftruncate(file, workers * PART_BYTES)
            self._memory = mmap.mmap(file, workers * PART_BYTES)
        finally:
            os.close(file)  # the mapping, which a fork inherits, keeps it
        self._flags = np.frombuffer(self._memory, np.uint8)
        self._owner = os.getpid()
        self.number = next(_NUMBERS)
        _SHELVES[self.number] = self

    def rooms(self, worker: int) -> SharedBufferPool:
        """What a worker takes rooms from; called in the worker, once."""
        return SharedBufferPool(self, worker * PART_BYTES)

    def piece(self, offset: int, size: int) -> Any:
        """`size` bytes; whatever is made of it, numpy's arrays and torch's tensors, keeps the object alive."""
        return (ctypes.c_char * size).from_buffer(self._memory, offset)

    def lend(self, place: Place) -> Tensor:
        """In the trainer: the tensor at a place. The room is the worker's again when nothing of it is left."""
        dtype = np.dtype(place.dtype)
        piece = self.piece(place.offset, int(np.prod(place.shape)) * dtype.itemsize)
        weakref.finalize(piece, self._give_back, place.flag).atexit = False
        return torch.from_numpy(np.frombuffer(piece, dtype).reshape(place.shape))

    def _give_back(self, flag: int) -> None:
        if os.getpid() == self._owner:  # a fork's copies of the tensors mean nothing
            self._flags[flag] = 0

    def __getstate__(self) -> Mapping[str, Any]:
        raise TypeError("a shelf is inherited by a fork, not sent")


_NUMBERS = itertools.count()
_SHELVES: weakref.WeakValueDictionary[int, SharedBatchBuffer] = weakref.WeakValueDictionary()
"""Shelves of this process by number: what comes out of a queue knows no more of its own."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies on the shelf."""

    offset: int
    flag: int
    """Place of the room's flag, a byte that is 1 while the trainer has it."""
    shape: tuple[int, ...]
    dtype: str


@dataclass
class _Room:
    offset: int
    size: int
    flag: int
    held: weakref.ref | None = None
    """The piece that this process has in hand."""


class SharedBufferPool:
    """A worker's rooms; it has one thread."""

    def __init__(self, shelf: SharedBatchBuffer, begin: int) -> None:
        self.shelf = shelf
        self._begin = begin
        self._end = begin + MOST_ROOMS
        self._rooms: list[_Room] = []
        self._flags = np.frombuffer(shelf.piece(begin, MOST_ROOMS), np.uint8)
        self._flags[:] = 0
        self._base = ctypes.addressof(shelf.piece(begin, 1)) - begin

    def take(self, size: int) -> NDArray[np.uint8]:
        """uint8 (size,), uninitialised, held by nobody else; the allocator's where no room is to be had."""
        if size < LEAST_BYTES:
            return np.empty(size, np.uint8)
        fit = None
        for number, room in enumerate(self._rooms):
            free = (room.held is None or room.held() is None) and not self._flags[number]
            if free and size <= room.size <= 2 * size and (fit is None or room.size < fit.size):
                fit = room
        if fit is None:
            fit = self._new(size)
        if fit is None:
            return np.empty(size, np.uint8)
        piece = self.shelf.piece(fit.offset, size)
        fit.held = weakref.ref(piece)
        return np.frombuffer(piece, np.uint8)

    def send(self, array: NDArray) -> Place | None:
        """The place of an array that lies in a room, which is the trainer's from now on; None for any other."""
        at = array.ctypes.data - self._base
        if not (self._begin + MOST_ROOMS <= at < self._end and array.flags.c_contiguous):
            return None
        number = next(n for n, room in enumerate(self._rooms) if room.offset <= at < room.offset + room.size)
        self._flags[number] = 1
        return Place(at, self._begin + number, array.shape, array.dtype.str)

    def _new(self, size: int) -> _Room | None:
        # The next batch is a little larger.
        size = -(-(size + size // 4) // mmap.PAGESIZE) * mmap.PAGESIZE
        if len(self._rooms) == MOST_ROOMS or self._end + size > self._begin + PART_BYTES:
            return None
        room = _Room(self._end, size, len(self._rooms))
        self._end += size
        self._rooms.append(room)
        return room


@dataclass(frozen=True)
class BatchHandle:
    """A batch on its way: what is large as places on the shelf, the rest as numbers."""

    batch: Batch
    """Without video and segments."""
    tensors: dict[str, Place | NDArray | None]
    """The video's, by field."""
    segments_N2: NDArray[np.int32]
    weights_B: NDArray[np.float32]
    shelf: int
    """Its number."""

    @classmethod
    def of(cls, batch: Batch, rooms: SharedBufferPool) -> BatchHandle:
        """In the worker: packed."""
        tensors = {name: _packed(value, rooms) for name, value in vars(batch.video).items()}
        segments_N2 = np.concatenate(batch.segments) if batch.segments else np.zeros((0, 2), np.int32)
        bare = replace(batch, video=None, segments=[], weights_B=None)  # type: ignore[arg-type]
        return cls(bare, tensors, segments_N2, batch.weights_B.numpy(), rooms.shelf.number)

    def unpack(self) -> Batch:
        """In the trainer: the batch."""
        shelf = _SHELVES[self.shelf]
        video = PackedVideo(**{name: _unpacked(value, shelf) for name, value in self.tensors.items()})  # type: ignore[arg-type]
        ends = np.cumsum(video.clip_segments_B.numpy()).tolist()  # torch's own starts its threads
        segments = [self.segments_N2[begin:end] for begin, end in zip([0, *ends], ends)]
        return replace(self.batch, video=video, segments=segments, weights_B=torch.from_numpy(self.weights_B))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (what a DataLoader's own thread calls); its room is free at once."""
        return self.unpack().pin_memory()


def shared_buffer_for(workers: int, context: str) -> SharedBatchBuffer | None:
    """A shelf, where processes are forked and the system has memory of this kind; else None."""
    if context != "fork":
        return None
    with contextlib.suppress(OSError, AttributeError, ValueError):
        return SharedBatchBuffer(workers)
    return None


def _packed(tensor: Tensor | None, rooms: SharedBufferPool) -> Place | NDArray | None:
    if tensor is None:
        return None
    array = tensor.numpy()
    if array.nbytes < LEAST_BYTES:
        return array
    place = rooms.send(array)
    if place is None:
        room = rooms.take(array.nbytes).view(array.dtype).reshape(array.shape)
        room[...] = array
        place = rooms.send(room)
    # Not as a tensor: in a full /dev/shm torch fails in the queue's own thread, and the trainer would wait for ever.
    return array if place is None else place


def _unpacked(value: Place | NDArray | None, shelf: SharedBatchBuffer) -> Tensor | None:
    if isinstance(value, Place):
        return shelf.lend(value)
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
