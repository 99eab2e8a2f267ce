"""The node-local cache: blocks of remote shards as plain files, shared by all ranks and workers of a host.

    FOLDER/ledger                           bytes in the cache, 16 hex digits; its lock guards the bound
    FOLDER/<dataset digest>/<block>         a block: NNNNNN-BEGIN-END, unit number and bytes of the tar, hexadecimal
    FOLDER/<dataset digest>/<block>.part    a block in the making; its lock says that somebody is making it

Safe under SIGKILL at any moment:

- A block is written as `.part` and renamed; half of one is never seen under its own name.
- The `.part` file *is* the lock (flock): the kernel frees it with its holder, and whoever waits for it goes on
  with the block. One without a holder is removed by the next process that opens the cache.
- Bytes are entered in the ledger before they are written, so a process that dies leaves too high a sum, never
  too low a one; an eviction, which counts the files, puts it right.

The least recently used blocks (by modification time, which every use renews) go when the bound would be passed.
A dataset that changed has another digest, and what is read is checked against the index in any case: a damaged
block is dropped and fetched again. Anything that does not work (no room, no permission) is told once, and reading
goes on without the cache.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sage_scale.untrusted.files import expanded
from sage_scale.untrusted.printer import logger

log = logger("sage_scale.streaming")

KEEP_SHARE = 0.9
"""An eviction makes room down to this share of the bound, so that the files are counted seldom."""
RENEW_S = 1.0
"""How exactly the time of a block's last use is kept."""
PATIENCE_S = 10.0
"""So long is another process waited for that makes the same block; then the store is asked directly."""
LEDGER_PATIENCE_S = 5.0
_BLOCK = re.compile(r"(\d{6,})-([0-9a-f]+)-([0-9a-f]+)(\.part)?")
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


class CacheFailed(Exception):
    """The cache cannot be used; reading goes on without it."""


@dataclass(frozen=True)
class BlockLock:
    """The right to make a block: its `.part`, open and locked."""

    name: str
    descriptor: int


class BlockCache:
    """The blocks of one dataset in the cache folder of this host. Reentrant; nothing is kept in the process."""

    def __init__(self, folder: Path, digest: str, limit: int) -> None:
        """At most `limit` bytes lie in the folder, over all datasets and processes. Raises CacheFailed."""
        self.folder = folder
        self.limit = limit
        self._blocks = folder / digest
        self._place = str(self._blocks)
        with _explained(folder):
            self._blocks.mkdir(parents=True, exist_ok=True)
            self._sweep()

    def open(self, name: str) -> int | None:
        """A descriptor of the block, for the caller to close, or None. Counts as a use."""
        try:
            descriptor = os.open(f"{self._place}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        status = os.fstat(descriptor)
        if time.time() - status.st_mtime > RENEW_S:
            with contextlib.suppress(OSError):  # a cache of somebody else's may be readable and no more
                os.utime(descriptor)
        if status.st_size != _size(name):
            os.close(descriptor)
            self.drop(name)
            return None
        return descriptor

    def claim(self, name: str, patience_s: float = PATIENCE_S) -> BlockLock | None:
        """The right to make the block, to be given to `publish` or `release`.

        None where it is there by now, or another process has been making it for longer than the patience. Raises
        CacheFailed.
        """
        end, pause = time.monotonic() + patience_s, 0.002
        with _explained(self.folder):
            while not (self._blocks / name).exists():
                claim = self._try_claim(name)
                if claim or time.monotonic() >= end:
                    return claim
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
        return None

    def _try_claim(self, name: str) -> BlockLock | None:
        part = self._blocks / (name + _PART)
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # an eviction removed the empty folder
            self._blocks.mkdir(parents=True, exist_ok=True)
            return None
        claim = BlockLock(name, descriptor)
        if not _lock(descriptor):
            os.close(descriptor)
            return None
        # Between opening and locking the maker may have published the block, or a sweep removed the file.
        if not _is_file(descriptor, part):
            _unlock(descriptor)
            return None
        if (self._blocks / name).exists():
            self.release(claim)
            return None
        return claim

    def publish(self, claim: BlockLock, data: bytes | bytearray | memoryview) -> None:
        """Put the block in its place, and give the claim back. Raises CacheFailed, with nothing left behind."""
        part = self._blocks / (claim.name + _PART)
        published = False
        try:
            with _explained(self.folder):
                if not self._reserve(len(data), part):
                    return
                view = memoryview(data)
                place = os.lseek(claim.descriptor, 0, os.SEEK_SET)
                os.ftruncate(claim.descriptor, 0)
                while place < len(view):
                    place += os.write(claim.descriptor, view[place:])
                with contextlib.suppress(FileNotFoundError):  # emptied by hand, too
                    os.rename(part, self._blocks / claim.name)
                    published = True
        finally:
            if published:
                _unlock(claim.descriptor)
            else:
                self.release(claim)

    def release(self, claim: BlockLock) -> None:
        """Give the claim back without a block."""
        with contextlib.suppress(OSError):
            os.unlink(self._blocks / (claim.name + _PART))
        _unlock(claim.descriptor)

    def drop(self, name: str) -> None:
        """Remove a block that is damaged; the ledger learns of it at the next eviction."""
        with contextlib.suppress(OSError):
            os.unlink(self._blocks / name)

    def _reserve(self, size: int, own: Path) -> bool:
        """Enter `size` bytes in the ledger, evicting what must go; False where there can be no room."""
        if size > self.limit * KEEP_SHARE:
            return False
        with self._ledger() as ledger:
            total = _number(os.pread(ledger, 16, 0))
            if total is None or total + size > self.limit:
                total = self._evict(int(self.limit * KEEP_SHARE) - size, own)
            os.pwrite(ledger, b"%016x" % (total + size), 0)
        return True

    def _evict(self, keep: int, own: Path) -> int:
        """Remove blocks of any dataset, the least recently used first, until `keep` bytes are left; how many are."""
        found, total = [], 0
        for folder in _folders(self.folder):
            for entry in os.scandir(folder):
                match = _BLOCK.fullmatch(entry.name)
                if not match or entry.path == str(own):
                    continue
                if match[4] and _remove_if_nobodys(Path(entry.path)):
                    continue
                total += _size(entry.name)  # what is being written counts as a whole
                with contextlib.suppress(FileNotFoundError):
                    if not match[4]:
                        found.append((entry.stat().st_mtime_ns, entry.path, _size(entry.name)))
        for _, path, size in sorted(found):
            if total <= keep:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
        for folder in _folders(self.folder):
            if folder != self._blocks:
                with contextlib.suppress(OSError):
                    folder.rmdir()  # only an empty one can be
        return total

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[int]:
        self._blocks.mkdir(parents=True, exist_ok=True)  # somebody may have emptied the folder
        descriptor = os.open(self.folder / "ledger", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + LEDGER_PATIENCE_S
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
        """Remove what processes that died were making."""
        for folder in _folders(self.folder):
            for entry in os.scandir(folder):
                if entry.name.endswith(_PART) and _BLOCK.fullmatch(entry.name):
                    _remove_if_nobodys(Path(entry.path))


def block_name(unit: int, begin: int, end: int) -> str:
    """File name of the bytes [begin, end) of a unit's tar."""
    return f"{unit:06d}-{begin:x}-{end:x}"


def open_cache(chosen: str, digest: str, limit: int) -> BlockCache:
    """The cache in the recipe's folder (stream.cache_dir); empty: this user's own in $TMPDIR, else in /var/tmp.

    Not /tmp, which is memory on many systems. Raises CacheFailed.
    """
    if chosen:
        folder = expanded(chosen)
    else:
        place = os.environ.get("TMPDIR") or (
            "/var/tmp" if os.path.isdir("/var/tmp") else tempfile.gettempdir()
        )
        folder = Path(place) / f"sage-scale-{os.getuid()}"
    with _explained(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.lstat(folder)
    if not chosen and (not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid()):
        raise CacheFailed(f"{folder} was made by another user: set stream.cache_dir")
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


def _remove_if_nobodys(part: Path) -> bool:
    """Remove a `.part` whose maker has died; whether it is gone."""
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
    """Whether the file is ours now. Not waiting: a holder may be stopped, and nothing must hang for it."""
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
