"""Arrays that one rank of a node makes and the node's other ranks map: one GET and one parse of an index a node.

A *node* is the ranks that can pass descriptors to each other: one kernel, one network namespace, one user. They find
each other by a collective of the job, so the launcher does not matter. For each set of arrays:

1. The first rank of each node makes them in memory files without a name (memfd): in no folder, whatever the size of
   /dev/shm, gone with the last process that maps them, and sealed, so that nothing changes or shortens them.
2. All ranks learn the address of each node's first rank (an abstract Unix socket with a random name), and size, type,
   place and xxh3-128 of its arrays; or its error, which every rank raises.
3. The others connect, receive the descriptors, and map them. Both sides refuse a peer of another user, and nothing is
   used that has another owner, mode, size or hash than announced.
4. A rank that could not, says why in one line of its node, makes the arrays itself, and compares their hashes.

So nothing stale or foreign is read, and a kill at any moment leaves nothing behind. Where two nodes read different
datasets (index.json was replaced while the job started), every rank raises one error.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sage_scale.errors import DatasetError, SageError
from sage_scale.shards.index_json import Arrays, Make, private
from sage_scale.untrusted.printer import logger

log = logger("sage_scale.streaming")

Gather = Callable[[Any], list[Any]]
"""Collective: returns every rank's value, in rank order."""

CONNECT_S = 60.0
"""Longest wait for the first rank of the node, which may be stopped; then a rank makes the arrays itself."""
_FUTURE_WRITE = 0x0010
"""F_SEAL_FUTURE_WRITE (Linux 5.1): no new mapping may write; F_SEAL_WRITE would refuse the maker's own."""


@dataclass(frozen=True)
class _Place:
    """An array in a memory file."""

    memory: int
    """Ordinal of the file among all of the node; -1 for an array without bytes."""
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Offer:
    """The arrays of a node's first rank."""

    hashes: dict[str, str]
    places: dict[str, _Place] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    """Bytes of the new memory files."""
    address: str = ""
    """Of the socket that passes their descriptors."""
    why: str = ""
    """Reason why nothing is shared."""


class _Memory:
    """A mapped memory file."""

    def __init__(self, descriptor: int, size: int, access: int) -> None:
        self.descriptor = descriptor
        self.content = np.frombuffer(mmap.mmap(descriptor, size, prot=access), np.uint8)

    @classmethod
    def new(cls, size: int) -> _Memory:
        """Returns a new file. Raises OSError where there is no room, or no memfd."""
        descriptor = os.memfd_create("sage-scale-index", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(descriptor, 0o600)
            os.posix_fallocate(descriptor, 0, size)  # a page that cannot be had later is a SIGBUS
            return cls(descriptor, size, mmap.PROT_READ | mmap.PROT_WRITE)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def received(cls, descriptor: int, size: int) -> _Memory:
        """Returns the file of a received descriptor. Raises OSError for any but a sealed one of this user."""
        status = os.fstat(descriptor)
        sealed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        if (status.st_uid, stat.S_IMODE(status.st_mode), status.st_size) != (
            os.getuid(),
            0o600,
            size,
        ) or fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & sealed != sealed:
            raise OSError("the first rank passed a file of another owner, mode or size")
        return cls(descriptor, size, mmap.PROT_READ)

    def offset_of(self, array: NDArray[Any]) -> int:
        """Returns the array's first byte in this file, -1 where it lies elsewhere."""
        at = array.__array_interface__["data"][0] - self.content.__array_interface__["data"][0]
        return at if array.flags.c_contiguous and 0 <= at <= self.content.nbytes - array.nbytes else -1

    def seal(self, used: int) -> None:
        """Cuts the file to `used` bytes; from then on nothing can change it but mappings that exist."""
        os.ftruncate(self.descriptor, used)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals | _FUTURE_WRITE)
        except OSError:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)

    def close(self) -> None:
        """Closes the descriptor; the mapping stays as long as an array in it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class OncePerNode:
    """Makes arrays once on each node. Every rank calls it with the same `make`s, in the same order (a collective)."""

    def __init__(self, gather: Gather) -> None:
        self._gather = gather
        own = (_node(), secrets.token_hex(8))
        entries = gather(own)
        nodes = [node for node, _ in entries]
        self._first = nodes.index(own[0])
        self._leads = entries[self._first] == own
        self._ranks = nodes.count(own[0])
        self._alone = len(entries) == 1
        self._memories: list[_Memory] = []
        self._listener: socket.socket | None = None
        self._why_not = ""
        """Reason why this rank shares nothing (any more)."""
        self._told = False

    def __call__(self, make: Make, where: str) -> Arrays:
        """Returns the arrays of `make(allocate)`, called on the first rank of each node; `where` is for messages.

        Raises the SageError of any node's `make` on every rank, and DatasetError where the nodes' arrays differ.
        """
        if self._alone:
            return make(private)
        known, self._listener = len(self._memories), None
        try:
            arrays, offer = self._make(make) if self._leads else ({}, None)
            descriptors = [memory.descriptor for memory in self._memories[known:]]
            with _served(self._listener, descriptors):
                offers = self._gather(offer)
                theirs = self._chosen(offers, where)
                if not self._leads:
                    arrays = self._map(theirs)
                answers = self._gather((self._first, self._why_not))
        finally:
            for memory in self._memories[known:]:
                memory.close()
        if not self._leads and self._why_not:
            arrays = make(private)
            if _hashes(arrays) != theirs.hashes:
                raise _changed(where)
        if self._leads and not self._told:
            self._say([why for first, why in answers if first == self._first and why])
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def _make(self, make: Make) -> tuple[Arrays, _Offer | SageError]:
        """Returns the arrays of this node, and the offer, or the error of `make`."""
        known, shares = len(self._memories), self._ranks > 1 and not self._why_not
        try:
            arrays = make(self._allocate if shares else private)
        except SageError as error:
            return {}, error
        if shares and not self._why_not:
            try:
                return arrays, self._offer(arrays, known)
            except OSError as error:
                self._why_not = _reason(error)
        for memory in self._memories[known:]:
            memory.close()
        del self._memories[known:]
        return arrays, _Offer(_hashes(arrays), why=self._why_not)

    def _allocate(self, size: int) -> NDArray[np.uint8]:
        if not self._why_not and size:
            try:
                self._memories.append(_Memory.new(size))
                return self._memories[-1].content
            except OSError as error:
                self._why_not = _reason(error)
        return private(size)

    def _offer(self, arrays: Arrays, known: int) -> _Offer:
        """Returns the offer of the arrays; those that lie in no memory file yet are moved. Raises OSError."""
        places, used = {}, [0] * len(self._memories)
        for name, array in arrays.items():
            at, memory = -1, -1
            if array.nbytes:
                offsets = [one.offset_of(array) for one in self._memories]
                memory = next((number for number, offset in enumerate(offsets) if offset >= 0), len(offsets))
                at = offsets[memory] if memory < len(offsets) else 0
            if memory == len(self._memories):
                self._memories.append(_Memory.new(array.nbytes))
                used.append(0)
                moved = self._memories[-1].content.view(array.dtype).reshape(array.shape)
                moved[...] = array
                arrays[name] = moved
            if memory >= 0:
                used[memory] = max(used[memory], at + array.nbytes)
            places[name] = _Place(memory, at, array.dtype, array.shape)
        used = [max(1, one) for one in used]  # an empty file cannot be mapped
        for made, bytes_used in zip(self._memories[known:], used[known:]):
            made.seal(bytes_used)
        address = f"sage-scale-{secrets.token_hex(16)}"
        self._listener = _listening(address)
        return _Offer(_hashes(arrays), places, tuple(used[known:]), address)

    def _chosen(self, offers: list[Any], where: str) -> _Offer:
        """Returns the offer of this node. Raises the first error of any, DatasetError where two differ."""
        for offer in offers:
            if isinstance(offer, SageError):
                raise offer
        mine: _Offer = offers[self._first]
        if any(isinstance(offer, _Offer) and offer.hashes != mine.hashes for offer in offers):
            raise _changed(where)
        return mine

    def _map(self, offer: _Offer) -> Arrays:
        """Returns the arrays of the node's first rank; without them, sets the reason."""
        self._why_not = self._why_not or offer.why
        if self._why_not:
            return {}
        known = len(self._memories)
        try:
            if offer.sizes:
                for descriptor, size in zip(_received(offer.address, len(offer.sizes)), offer.sizes):
                    self._memories.append(_Memory.received(descriptor, size))
            arrays = {name: self._array(place) for name, place in offer.places.items()}
            if _hashes(arrays) != offer.hashes:
                raise OSError("the first rank passed other bytes than it announced")
            return arrays
        except (OSError, ValueError) as error:
            self._why_not = _reason(error)
            for memory in self._memories[known:]:
                memory.close()
            del self._memories[known:]
            return {}

    def _array(self, place: _Place) -> NDArray[Any]:
        if place.memory < 0:
            return np.zeros(place.shape, place.dtype)
        size = place.dtype.itemsize * int(np.prod(place.shape, dtype=np.int64))
        content = self._memories[place.memory].content[place.offset : place.offset + size]
        return content.view(place.dtype).reshape(place.shape)

    def _say(self, reasons: list[str]) -> None:
        if reasons:
            self._told = True
            log.warning(
                "%d of the %d ranks on %s read the index themselves, which takes its memory and time again: %s",
                max(1, len(reasons) - self._leads * bool(self._why_not)), self._ranks, socket.gethostname(), reasons[0],
            )  # fmt: skip


def _node() -> str:
    """Returns the text that ranks have in common which can pass descriptors to each other."""
    if not hasattr(os, "memfd_create"):
        return secrets.token_hex(8)
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            kernel = file.read(64).strip()
        network = os.stat("/proc/self/ns/net").st_ino
    except OSError:
        kernel, network = "", 0
    return f"{socket.gethostname()} {kernel} {network} {os.getuid()}"


def _listening(address: str) -> socket.socket:
    """Returns a socket that listens at the abstract address. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind("\0" + address)
        listener.listen(1024)
        listener.settimeout(0.1)
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _served(listener: socket.socket | None, descriptors: list[int]) -> Iterator[None]:
    """Passes the descriptors to every process of this user that connects, meanwhile."""
    if listener is None:
        yield
        return
    with listener:
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):  # a time-out, or a rank that died
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(CONNECT_S)
                        if _peer(connection) == os.getuid():
                            socket.send_fds(connection, [b"d"], descriptors)

        thread = threading.Thread(target=serve, name="shared index", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _received(address: str, count: int) -> list[int]:
    """Returns the descriptors that the node's first rank passes. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_S)
        connection.connect("\0" + address)
        if _peer(connection) != os.getuid():
            raise OSError("a process of another user has the address of the first rank")
        _, descriptors, _, _ = socket.recv_fds(connection, 1, count)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    if len(descriptors) != count:
        for descriptor in descriptors:
            os.close(descriptor)
        raise OSError("the first rank passed too few files")
    return descriptors


def _peer(connection: socket.socket) -> int:
    """Returns the user id of the process at the other end."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(user)


def _hashes(arrays: Arrays) -> dict[str, str]:
    return {
        name: xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        for name, array in arrays.items()
    }


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _changed(where: str) -> DatasetError:
    return DatasetError(
        f"{where}: the ranks of this job read different versions of it, since it was changed while the job started: "
        "start the job again"
    )
