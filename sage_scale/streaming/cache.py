"""Bounded caches: values in the memory of a process, and blocks of remote shards in files that a host shares.

The node-local cache:

    FOLDER/ledger                           bytes in the cache, 16 hex digits; its lock guards the bound
    FOLDER/<dataset digest>/<block>         a block: NNNNNN-BEGIN-END, unit number and bytes of the tar, hexadecimal
    FOLDER/<dataset digest>/<block>.part    an unfinished block; its writer holds the lock of the file

Safe under SIGKILL at any moment:

- A block is written as `.part` and renamed; half of one is never seen under its own name.
- The `.part` file *is* the lock (flock): the kernel frees it with its holder, and the next waiting process writes the
  block. The next process that opens the cache removes one without a holder.
- Bytes are entered in the ledger before they are written, so a process that dies leaves too high a sum, never too low
  a one; an eviction, which counts the files, corrects it.

The least recently used blocks (by modification time, which every use renews) go when the bound would be passed. A
changed dataset has another digest, and every sample is checked against the index: a damaged block is dropped and
fetched again. A failure of the cache (no room, no permission) is logged once, and reading goes on without it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from sage_scale.untrusted.files import expanded, own_folder

K = TypeVar("K")
V = TypeVar("V")

KEEP_SHARE = 0.9
"""An eviction leaves this share of the bound, so that the files are counted seldom."""
RENEW_S = 1.0
"""Resolution of the time of a block's last use."""
LOCK_TIMEOUT_S = 10.0
"""Longest wait for another process that writes the same block; then the store is asked directly."""
LEDGER_TIMEOUT_S = 5.0
_BLOCK = re.compile(r"(\d{6,})-([0-9a-f]+)-([0-9a-f]+)(?:\.part)?")
_DATASET = re.compile(r"[0-9a-f]{16}")
_PART = ".part"

_locked: set[int] = set()


def _close_inherited() -> None:
    # A forked child shares its parent's locks: without this they would outlive the parent in it.
    for descriptor in _locked:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _locked.clear()


os.register_at_fork(after_in_child=_close_inherited)


class LRUCache(Generic[K, V]):
    """Values in at most `limit` bytes, the least recently used dropped first. Threads may share it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.RLock()  # a value may be dropped by garbage collection in the midst of a call

    def get(self, key: K) -> V | None:
        """Returns the value, if it is kept."""
        with self._lock:
            if key not in self._items:
                return None
            self._items.move_to_end(key)
            return self._items[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keeps a value of `size` bytes; one larger than the whole cache is not kept."""
        with self._lock:
            if key in self._items or size > self.limit:
                return
            self._items[key] = value, size
            self.size += size
            while self.size > self.limit:
                _, (_, dropped) = self._items.popitem(last=False)
                self.size -= dropped

    def drop(self, key: K) -> None:
        """Removes a value, if it is kept."""
        with self._lock:
            _, dropped = self._items.pop(key, (None, 0))
            self.size -= dropped


class CacheFailed(Exception):
    """The cache cannot be used; reading goes on without it."""


@dataclass(frozen=True)
class BlockLock:
    """The exclusive right to write a block: its `.part`, open and locked."""

    name: str
    descriptor: int


class BlockCache:
    """The blocks of one dataset in the cache folder of this host. Reentrant; nothing is kept in the process."""

    def __init__(self, folder: Path, digest: str, limit: int) -> None:
        """At most `limit` bytes lie in the folder, over all datasets and processes. Raises CacheFailed."""
        self.folder = folder
        self.limit = limit
        self._blocks = folder / digest
        self._path = str(self._blocks)
        with _explained(folder):
            self._blocks.mkdir(parents=True, exist_ok=True)
            self._sweep()

    def open(self, name: str) -> int | None:
        """Returns a descriptor of the block, for the caller to close, or None. Counts as a use."""
        try:
            descriptor = os.open(f"{self._path}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        status = os.fstat(descriptor)
        if time.time() - status.st_mtime > RENEW_S:
            with contextlib.suppress(OSError):  # another user's cache may be read-only
                os.utime(descriptor)
        if status.st_size != _size(name):
            os.close(descriptor)
            self.drop(name)
            return None
        return descriptor

    def lock(self, name: str, timeout_s: float = LOCK_TIMEOUT_S) -> BlockLock | None:
        """Returns the right to write the block, for `publish` or `release`. Raises CacheFailed.

        None where the block is there by now, or another process writes it for longer than the time-out.
        """
        end, pause = time.monotonic() + timeout_s, 0.002
        with _explained(self.folder):
            while not (self._blocks / name).exists():
                lock = self._try_lock(name)
                if lock or time.monotonic() >= end:
                    return lock
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
        return None

    def _try_lock(self, name: str) -> BlockLock | None:
        part = self._blocks / (name + _PART)
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # an eviction removed the empty folder
            self._blocks.mkdir(parents=True, exist_ok=True)
            return None
        lock = BlockLock(name, descriptor)
        if not _lock(descriptor):
            os.close(descriptor)
            return None
        # Between opening and locking the block may have been published, or a sweep removed the file.
        if not _is_file(descriptor, part):
            _unlock(descriptor)
            return None
        if (self._blocks / name).exists():
            self.release(lock)
            return None
        return lock

    def publish(self, lock: BlockLock, data: bytes | bytearray | memoryview) -> None:
        """Writes the block and releases the lock. Raises CacheFailed, with nothing left behind."""
        part = self._blocks / (lock.name + _PART)
        published = False
        try:
            with _explained(self.folder):
                if not self._reserve(len(data), part):
                    return
                view = memoryview(data)
                written = os.lseek(lock.descriptor, 0, os.SEEK_SET)
                os.ftruncate(lock.descriptor, 0)
                while written < len(view):
                    written += os.write(lock.descriptor, view[written:])
                with contextlib.suppress(FileNotFoundError):  # emptied by hand
                    os.rename(part, self._blocks / lock.name)
                    published = True
        finally:
            if published:
                _unlock(lock.descriptor)
            else:
                self.release(lock)

    def release(self, lock: BlockLock) -> None:
        """Releases the lock without a block."""
        with contextlib.suppress(OSError):
            os.unlink(self._blocks / (lock.name + _PART))
        _unlock(lock.descriptor)

    def drop(self, name: str) -> None:
        """Removes a damaged block; the next eviction corrects the ledger."""
        with contextlib.suppress(OSError):
            os.unlink(self._blocks / name)

    def _reserve(self, size: int, own: Path) -> bool:
        """Enters `size` bytes in the ledger, evicting blocks; returns False where there can be no room."""
        if size > self.limit * KEEP_SHARE:
            return False
        with self._ledger() as ledger:
            total = _number(os.pread(ledger, 16, 0))
            if total is None or total + size > self.limit:
                total = self._evict(int(self.limit * KEEP_SHARE) - size, own)
            os.pwrite(ledger, b"%016x" % (total + size), 0)
        return True

    def _evict(self, keep: int, own: Path) -> int:
        """Removes blocks of any dataset, the least recently used first, down to `keep` bytes; returns the rest."""
        found, total = [], 0
        for path in self._files():
            unfinished = path.suffix == _PART
            if path == own or (unfinished and _remove_if_abandoned(path)):
                continue
            total += _size(path.name)  # an unfinished block counts as a whole
            with contextlib.suppress(FileNotFoundError):
                if not unfinished:
                    found.append((path.stat().st_mtime_ns, path, _size(path.name)))
        for _, path, size in sorted(found):
            if total <= keep:
                break
            path.unlink(missing_ok=True)
            total -= size
        for folder in _folders(self.folder):
            if folder != self._blocks:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only an empty one can be
        return total

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[int]:
        self._blocks.mkdir(parents=True, exist_ok=True)  # emptied by hand
        descriptor = os.open(self.folder / "ledger", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + LEDGER_TIMEOUT_S
        while not _lock(descriptor):
            if time.monotonic() >= end:
                os.close(descriptor)
                raise CacheFailed(f"{self.folder}/ledger is locked by a process that does not go on")
            time.sleep(0.001)
        try:
            yield descriptor
        finally:
            _unlock(descriptor)

    def _sweep(self) -> None:
        """Removes the unfinished blocks of dead processes."""
        for path in self._files():
            if path.suffix == _PART:
                _remove_if_abandoned(path)

    def _files(self) -> list[Path]:
        """Returns the blocks of all datasets, unfinished ones among them."""
        entries = (entry for folder in _folders(self.folder) for entry in os.scandir(folder))
        return [Path(entry.path) for entry in entries if _BLOCK.fullmatch(entry.name)]


def block_name(unit: int, begin: int, end: int) -> str:
    """Returns the file name of the bytes [begin, end) of a unit's tar."""
    return f"{unit:06d}-{begin:x}-{end:x}"


def open_cache(chosen: str, digest: str, limit: int) -> BlockCache:
    """Opens the cache in the recipe's folder (stream.cache_dir); empty: the user's own (`own_folder`). Raises
    CacheFailed."""
    try:
        folder = expanded(chosen) if chosen else own_folder()
    except OSError as error:
        raise CacheFailed(f"{error.filename}: {error.strerror}: set stream.cache_dir") from None
    with _explained(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return BlockCache(folder, digest, limit)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else (error.strerror or repr(error))
        raise CacheFailed(f"{folder}: {why}") from None


def _folders(root: Path) -> list[Path]:
    return [Path(entry.path) for entry in os.scandir(root) if _DATASET.fullmatch(entry.name)]


def _size(name: str) -> int:
    _, begin, end = name.removesuffix(_PART).split("-")
    return int(end, 16) - int(begin, 16)


def _number(text: bytes) -> int | None:
    try:
        return int(text, 16) if len(text) == 16 else None
    except ValueError:
        return None


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    own = os.fstat(descriptor)
    return (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)


def _remove_if_abandoned(part: Path) -> bool:
    """Removes a `.part` whose writer has died; returns whether it is gone."""
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    if not _lock(descriptor):
        os.close(descriptor)
        return False
    if _is_file(descriptor, part):
        os.unlink(part)
    _unlock(descriptor)
    return True


def _lock(descriptor: int) -> bool:
    """Locks the file without waiting (a holder may be stopped); returns whether it is ours now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    _locked.add(descriptor)
    return True


def _unlock(descriptor: int) -> None:
    # Explicitly, since a child forked meanwhile may hold the same open file.
    _locked.discard(descriptor)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
