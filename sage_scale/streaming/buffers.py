"""Reused memory: a pool of buffers in a process, and a shared batch buffer between loader workers and the trainer.

A fresh page costs a fault and 4 KiB of zeros, and ten times that on a virtual machine that gave its free memory back to
the host: for blocks of 8 MiB and batches of some MiB, more than fetching and copying the bytes.

torch sends each tensor of a batch in a file of its own: made, named, unlinked and filled with zeros in the worker, its
descriptor sent over a socket, mapped and faulted in again by the trainer. For batches of features that is three times
the cost of reading and checking them. Here trainer and workers share one nameless piece of memory (memfd) from the
start. A worker takes buffers in its own part of it, reads or decodes into them, and sends references; when the last
tensor of a buffer is gone, the trainer clears the buffer's flag, and the worker may take it again. The memory has no
name and no size in /dev/shm: a killed process leaves nothing behind, and the 64 MB that containers have there suffice.

Arrays that find no buffer go through the worker's pipe. Without memfd, or with another start method than fork, batches
go torch's way, through /dev/shm.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sage_scale.streaming.batch import Batch
from sage_scale.vision.packed import PackedVideo

LEAST_BYTES = 256 << 10
"""Smaller arrays come from the allocator's own free lists."""
SPARE_BYTES = 64 << 20
"""More free memory than this, beyond the buffer asked for, is given back."""
PART_BYTES = 16 << 30
"""Address space of a worker's buffers; memory is taken when a buffer is."""
MAX_BUFFERS = 4096
"""Buffers of a worker: as many flags, one byte each, lie at the beginning of its part."""
_OWN_REFERENCES = 3
"""References to a free buffer: the list's, the loop's and the argument of `sys.getrefcount`."""
_MEMFD_CLOEXEC = getattr(os, "MFD_CLOEXEC", 1)


class BufferPool:
    """Buffers of this process. One is free again when its array, and every view and tensor made of it, is gone.

    Reentrant. In a forked child the buffers are its own copies.
    """

    def __init__(self, spare: int = SPARE_BYTES) -> None:
        self.spare = spare
        self._buffers: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> NDArray[np.uint8]:
        """Returns uint8 (size,), uninitialised, not held elsewhere."""
        if size < LEAST_BYTES:
            return np.empty(size, np.uint8)
        with self._lock:
            best, kept, spare = None, [], 0
            for buffer in self._buffers:
                if sys.getrefcount(buffer) > _OWN_REFERENCES:
                    kept.append(buffer)
                elif size <= buffer.size <= 2 * size and (best is None or buffer.size < best.size):
                    if best is not None and spare + best.size <= self.spare:
                        kept.append(best)
                        spare += best.size
                    best = buffer
                elif spare + buffer.size <= self.spare:
                    kept.append(buffer)
                    spare += buffer.size
            if best is None:
                best = np.empty(size, np.uint8)
            kept.append(best)
            self._buffers = kept
            return best[:size]  # the view holds the buffer until it is dropped itself


class SharedBatchBuffer:
    """The shared memory of a trainer and its `workers`; made before they are forked. Raises OSError without memfd."""

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
        _SHARED[self.number] = self

    def pool(self, worker: int) -> SharedBufferPool:
        """Returns a worker's buffers; called in the worker, once."""
        return SharedBufferPool(self, worker * PART_BYTES)

    def view(self, offset: int, size: int) -> Any:
        """Returns `size` bytes as an object that numpy's arrays and torch's tensors made of it keep alive."""
        return (ctypes.c_char * size).from_buffer(self._memory, offset)

    def tensor(self, reference: TensorReference) -> Tensor:
        """Returns the tensor in the trainer; when nothing of it is left, the buffer is the worker's again."""
        dtype = np.dtype(reference.dtype)
        view = self.view(reference.offset, int(np.prod(reference.shape)) * dtype.itemsize)
        weakref.finalize(view, self._free, reference.flag).atexit = False
        return torch.from_numpy(np.frombuffer(view, dtype).reshape(reference.shape))

    def _free(self, flag: int) -> None:
        if os.getpid() == self._owner:  # a fork's copies of the tensors do not count
            self._flags[flag] = 0

    def __getstate__(self) -> Mapping[str, Any]:
        raise TypeError("a shared batch buffer is inherited by a fork, not sent")


_NUMBERS = itertools.count()
_SHARED: weakref.WeakValueDictionary[int, SharedBatchBuffer] = weakref.WeakValueDictionary()
"""Shared batch buffers of this process by number, for handles that come out of a queue."""


def shared_buffer_for(workers: int, context: str) -> SharedBatchBuffer | None:
    """Returns a shared batch buffer where processes are forked and the system has such memory; else None."""
    if context != "fork":
        return None
    with contextlib.suppress(OSError, AttributeError, ValueError):
        return SharedBatchBuffer(workers)
    return None


@dataclass(frozen=True)
class TensorReference:
    """Offset, shape and type of a tensor in the shared batch buffer."""

    offset: int
    flag: int
    """Offset of the buffer's flag, a byte that is 1 while the trainer has it."""
    shape: tuple[int, ...]
    dtype: str


@dataclass
class _SharedBuffer:
    offset: int
    size: int
    held: weakref.ref | None = None
    """The view that the worker has in hand."""


class SharedBufferPool:
    """The buffers of a worker, which has one thread."""

    def __init__(self, shared: SharedBatchBuffer, begin: int) -> None:
        self.shared = shared
        self._begin = begin
        self._end = begin + MAX_BUFFERS
        self._buffers: list[_SharedBuffer] = []
        self._flags = np.frombuffer(shared.view(begin, MAX_BUFFERS), np.uint8)
        self._flags[:] = 0
        self._base = ctypes.addressof(shared.view(begin, 1)) - begin

    def take(self, size: int) -> NDArray[np.uint8]:
        """Returns uint8 (size,), uninitialised, not held elsewhere; the allocator's where no buffer is free."""
        if size < LEAST_BYTES:
            return np.empty(size, np.uint8)
        best = None
        for buffer, flag in zip(self._buffers, self._flags):
            free = (buffer.held is None or buffer.held() is None) and not flag
            if free and size <= buffer.size <= 2 * size and (best is None or buffer.size < best.size):
                best = buffer
        best = best or self._new(size)
        if best is None:
            return np.empty(size, np.uint8)
        view = self.shared.view(best.offset, size)
        best.held = weakref.ref(view)
        return np.frombuffer(view, np.uint8)

    def reference(self, array: NDArray) -> TensorReference | None:
        """Hands an array in a buffer over to the trainer. Returns None for an array elsewhere."""
        at = array.ctypes.data - self._base
        if not (self._begin + MAX_BUFFERS <= at < self._end and array.flags.c_contiguous):
            return None
        number = next(n for n, own in enumerate(self._buffers) if own.offset <= at < own.offset + own.size)
        self._flags[number] = 1
        return TensorReference(at, self._begin + number, array.shape, array.dtype.str)

    def _new(self, size: int) -> _SharedBuffer | None:
        # With room for the next batch, which may be a little larger.
        size = -(-(size + size // 4) // mmap.PAGESIZE) * mmap.PAGESIZE
        if len(self._buffers) == MAX_BUFFERS or self._end + size > self._begin + PART_BYTES:
            return None
        buffer = _SharedBuffer(self._end, size)
        self._end += size
        self._buffers.append(buffer)
        return buffer


@dataclass(frozen=True)
class BatchHandle:
    """A batch on its way to the trainer: large tensors as references, the rest as numbers."""

    batch: Batch
    """Without video, segments and weights."""
    tensors: dict[str, TensorReference | NDArray | None]
    """The video's, by field."""
    segments_N2: NDArray[np.int32]
    weights_B: NDArray[np.float32]
    shared: int
    """Number of the shared batch buffer."""

    @classmethod
    def of(cls, batch: Batch, pool: SharedBufferPool) -> BatchHandle:
        """Packs a batch, in the worker."""
        tensors = {name: _pack(value, pool) for name, value in vars(batch.video).items()}
        segments_N2 = np.concatenate(batch.segments) if batch.segments else np.zeros((0, 2), np.int32)
        bare = replace(batch, video=None, segments=[], weights_B=None)  # type: ignore[arg-type]
        return cls(bare, tensors, segments_N2, batch.weights_B.numpy(), pool.shared.number)

    def unpack(self) -> Batch:
        """Returns the batch, in the trainer."""
        shared = _SHARED[self.shared]
        video = PackedVideo(**{name: _unpack(value, shared) for name, value in self.tensors.items()})  # type: ignore[arg-type]
        ends = np.cumsum(video.clip_segments_B.numpy()).tolist()  # torch's own starts its threads
        segments = [self.segments_N2[begin:end] for begin, end in zip([0, *ends], ends)]
        return replace(self.batch, video=video, segments=segments, weights_B=torch.from_numpy(self.weights_B))

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory (a DataLoader's own thread calls this); frees its buffers."""
        return self.unpack().pin_memory()


def _pack(tensor: Tensor | None, pool: SharedBufferPool) -> TensorReference | NDArray | None:
    if tensor is None:
        return None
    array = tensor.numpy()
    if array.nbytes < LEAST_BYTES:
        return array
    reference = pool.reference(array)
    if reference is None:
        copy = pool.take(array.nbytes).view(array.dtype).reshape(array.shape)
        copy[...] = array
        reference = pool.reference(copy)
    # Not as a tensor: in a full /dev/shm torch fails in the queue's own thread, and the trainer would wait forever.
    return array if reference is None else reference


def _unpack(value: TensorReference | NDArray | None, shared: SharedBatchBuffer) -> Tensor | None:
    if isinstance(value, TensorReference):
        return shared.tensor(value)
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
