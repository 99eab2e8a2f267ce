"""A folder of this machine that mirrors the objects below a URL, for work that needs files.

Logs that grow, weights that are mapped and pages that are written in place need a folder; a run in object storage has
a working copy. `fetch` makes the folder equal to the objects, `upload` sends the files that changed since. The objects
are the truth: files that they lack are removed by `fetch`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sage_scale.errors import StorageError
from sage_scale.storage.store import Entry, NotFound, Store, is_name
from sage_scale.untrusted.files import open_descriptor, read_bytes

THREADS = 8
"""Objects that are fetched at once."""
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_GROWING = re.compile(r"\.jsonl$|(^|/)events\.out\.tfevents\.")
"""Files that other threads append to: their bytes are read once before they are sent."""

State = tuple[int, int, int]
"""Size, modification time (ns) and inode of a file: an equal state is taken for equal content."""


class WorkingCopy:
    """The folder and the store. Threads may share it."""

    def __init__(
        self, store: Store, folder: Path, mirrored: Callable[[str], bool] = lambda name: True
    ) -> None:
        """Names for which `mirrored` is false are neither fetched, sent nor removed."""
        self.store, self.folder = store, folder
        self._mirrored = mirrored
        self._single = store.single_attempt()
        self._equal: dict[str, State] | None = None
        """States of the files that equal their objects, or are not to be sent; None before they are known."""
        self._sending = threading.Lock()

    def fetch(
        self,
        wanted: Callable[[str], bool] = lambda name: True,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Make the files with `wanted` names equal to their objects; returns the number of these objects.

        `progress` is told the files done and in all. One process of this machine fetches at a time. Raises
        StorageError.
        """
        with _explained(self.folder), _alone(self.folder.parent):
            found = [
                entry for entry in self.store.list() if self._mirrored(entry.name) and wanted(entry.name)
            ]
            kept = {entry.name for entry in found}
            for leftover in self.folder.rglob(".*.tmp"):
                if _TEMPORARY.fullmatch(leftover.name):  # of a killed process: nobody else fetches now
                    leftover.unlink(missing_ok=True)
            for name in self._files():
                if wanted(name) and name not in kept:
                    (self.folder / name).unlink(missing_ok=True)
            pool = ThreadPoolExecutor(THREADS, "fetch")
            try:
                for done, _ in enumerate(pool.map(self._fetch, found), 1):
                    progress(done, len(found))
            finally:
                pool.shutdown(cancel_futures=True)
            self.adopt()
        return len(found)

    def adopt(self) -> None:
        """Take the files as they are for equal to their objects: another process of this machine keeps them so."""
        self._equal = self._files()

    def upload(self, single_attempt: bool = False) -> None:
        """Send the files that changed since `fetch` or `adopt`, and delete the objects of those that were removed.

        Nothing is sent before one of the two: an old folder's files would replace newer objects. `single_attempt` is
        for callers that repeat it: what was sent is not sent again. Raises StorageError.
        """
        store = self._single if single_attempt else self.store
        with _explained(self.folder), self._sending:
            equal = self._equal
            if equal is None:
                return
            found = self._files()
            for name, state in found.items():
                if equal.get(name) != state:
                    path = self.folder / name
                    try:
                        store.put(name, read_bytes(path) if _GROWING.search(name) else path)
                    except (FileNotFoundError, NotFound):
                        continue  # replaced or removed meanwhile: of another upload
                    equal[name] = state
            for name in equal.keys() - found.keys():
                store.delete(name)
                del equal[name]

    def _files(self) -> dict[str, State]:
        """Returns the mirrored files, by name in order."""
        found: dict[str, State] = {}
        for folder, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for file in files:
                path = os.path.join(folder, file)
                name = os.path.relpath(path, self.folder)
                if is_name(name) and self._mirrored(name) and not os.path.islink(path):
                    with contextlib.suppress(FileNotFoundError):
                        found[name] = _state(path)
        return dict(sorted(found.items()))

    def _fetch(self, entry: Entry) -> None:
        path = self.folder / entry.name
        try:
            if not self._is_equal(path, entry):
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
                try:
                    self.store.download(entry.name, temporary)
                    temporary.replace(path)
                finally:
                    temporary.unlink(missing_ok=True)
        except NotFound:  # deleted since it was listed
            path.unlink(missing_ok=True)

    def _is_equal(self, path: Path, entry: Entry) -> bool:
        try:
            with open(open_descriptor(path), "rb") as file:
                if os.fstat(file.fileno()).st_size != entry.size:
                    return False
                return hashlib.file_digest(file, "md5").hexdigest() == self.store.md5(entry.name)
        except FileNotFoundError:
            return False


def _state(path: str | Path) -> State:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns, found.st_ino


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for, and hold, the lock of a folder, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise StorageError(
            f"{where}, in the working folder of the run: {error.strerror or error}; make room, or set TMPDIR to a "
            "folder that can be written"
        ) from None
