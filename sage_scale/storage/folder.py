"""A store in a folder of this machine (or a shared file system with hard links).

An object is written to an unnamed file (O_TMPFILE) and appears under its name by one `link`, which fails where the
name is taken: a writer killed at any moment leaves nothing behind. File systems without unnamed files, and replacing,
get a hidden temporary file beside the target (leading dot); `check_writable` removes the ones of killed writers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

from sage_scale.errors import StorageError
from sage_scale.storage.store import PIECE_BYTES, Buffer, Entry, NotFound, Store, T, check_name, is_name
from sage_scale.untrusted.files import check_regular, open_descriptor, open_regular, read_bytes

_NO_UNNAMED_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
_COPY_BYTES = 1 << 20
_HIDDEN = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_DESCRIPTORS = "/proc/self/fd/"


class FolderStore(Store):
    """Objects as files below `root`, which need not exist before the first write."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(os.path.expanduser(root)))
        self.url = str(self.root)

    def __reduce__(self) -> tuple:
        return FolderStore, (self.root,)

    def local_path(self, name: str) -> Path:
        return self.root / check_name(name)

    def child(self, prefix: str) -> FolderStore:
        return FolderStore(self.local_path(prefix))

    def get(self, name: str) -> bytes:
        path = self.local_path(name)
        with _explained(_reading, path):
            return read_bytes(path)

    def read(self, name: str, parse: Callable[[int, Iterator[Buffer]], T]) -> T:
        path = self.local_path(name)
        with _explained(_reading, path), open_regular(path) as file:
            return parse(os.fstat(file.fileno()).st_size, _pieces(file))

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        path = self.local_path(name)
        pieces, left = [], length
        with _explained(_reading, path), contextlib.ExitStack() as stack:
            descriptor = open_descriptor(path)
            stack.callback(os.close, descriptor)
            while left:
                piece = os.pread(descriptor, left, offset + length - left)
                if not piece:
                    raise StorageError(
                        f"{path} ends before byte {offset + length}: it was cut off or exchanged"
                    )
                pieces.append(piece)
                left -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def put_if_absent(self, name: str, data: bytes | Path) -> bool:
        path = self.local_path(name)
        with _explained(_writing, path):
            return not path.exists() and _write(path, data, replace=False)

    @contextlib.contextmanager
    def draft(self, scratch: Path) -> Iterator[Path]:
        """Yields an unnamed file of the folder, to which `put_if_absent` only gives a name."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno not in _NO_UNNAMED_FILES:
                raise _writing(self.root / scratch.name, error) from None
            with super().draft(scratch) as path:
                yield path
            return
        try:
            yield Path(f"{_DESCRIPTORS}{descriptor}")
        finally:
            os.close(descriptor)

    def check_writable(self) -> None:
        hidden = self.root / f".writable.{secrets.token_hex(6)}.tmp"
        with self._new_folders_removed(), _explained(_writing, self.root / "index.json"):
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                _create_hidden(self.root, hidden)[0].close()
            finally:
                hidden.unlink(missing_ok=True)
        for leftover in self.root.rglob(".*.tmp"):
            _remove_leftover(leftover)

    def try_conditional_put(self) -> str:
        with self._new_folders_removed():
            return super().try_conditional_put()

    @contextlib.contextmanager
    def _new_folders_removed(self) -> Iterator[None]:
        """Removes the store's folder and those above it at the end, where they are new and empty."""
        made = [folder for folder in (self.root, *self.root.parents) if not folder.exists()]
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()

    def put(self, name: str, data: bytes | Path) -> None:
        path = self.local_path(name)
        with _explained(_writing, path):
            _write(path, data, replace=True)

    def size(self, name: str) -> int:
        path = self.local_path(name)
        with _explained(_reading, path):
            found = path.stat()
            check_regular(found.st_mode, path)
            return found.st_size

    def list(self, prefix: str = "") -> Iterator[Entry]:
        entries = []
        # A prefix `a/b` can only match below the folder `a`.
        start = self.root / prefix.rpartition("/")[0]
        if ".." in prefix.split("/") or prefix.startswith("/"):
            raise StorageError(f"'{prefix}' is no prefix of names: it must be relative")

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise _reading(Path(error.filename or start), error) from None

        for folder, folders, files in os.walk(start, onerror=refuse):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = os.path.relpath(folder, self.root)
            for file in files:
                name = file if inside == "." else f"{inside}/{file}"
                if is_name(name) and name.startswith(prefix):
                    with contextlib.suppress(FileNotFoundError):  # deleted while the listing ran
                        entries.append(Entry(name, os.stat(os.path.join(folder, file)).st_size))
        yield from sorted(entries, key=lambda entry: os.fsencode(entry.name))

    def delete(self, name: str) -> None:
        path = self.local_path(name)
        with _explained(_writing, path):
            path.unlink(missing_ok=True)


def _pieces(file: BinaryIO) -> Iterator[Buffer]:
    buffer = memoryview(bytearray(PIECE_BYTES))
    while size := file.readinto(buffer):  # type: ignore[attr-defined]
        yield buffer[:size]


def _write(path: Path, data: bytes | Path, *, replace: bool) -> bool:
    """Writes `data` to a hidden file, flushes it to the disk, then names it in one step; False where that is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not replace and isinstance(data, Path) and str(data).startswith(_DESCRIPTORS):
        try:
            return _link_draft(path, data)
        except OSError as error:
            if error.errno != errno.EXDEV:  # a draft of another store
                raise
    hidden = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp"
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file, source = _create_hidden(path.parent, hidden)
        with file:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)  # for `_remove_leftover`
            if isinstance(data, Path):
                with open(data, "rb") as original:
                    shutil.copyfileobj(original, file, _COPY_BYTES)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
            # A file without a name can only be linked to a new one; to replace, it first gets one of its own.
            target = hidden if replace else path
            if source != str(target) and not _link(source, target.name, folder):
                return False
            if replace:
                os.replace(hidden, path)
        os.fsync(folder)
        return True
    finally:
        os.close(folder)
        hidden.unlink(missing_ok=True)


def _link_draft(path: Path, draft: Path) -> bool:
    """Names an unnamed file; False where the name is taken."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(int(draft.name))
        linked = _link(draft, path.name, folder)
        os.fsync(folder)
        return linked
    finally:
        os.close(folder)


def _link(source: str | Path, name: str, folder: int) -> bool:
    try:  # with a folder's descriptor Python calls linkat, which follows /proc/self/fd
        os.link(source, name, dst_dir_fd=folder, follow_symlinks=True)
        return True
    except FileExistsError:
        return False


def _create_hidden(folder: Path, hidden: Path) -> tuple[IO[bytes], str]:
    """Returns an open file that no listing shows, and the path by which it can be linked."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        return os.fdopen(descriptor, "wb"), f"{_DESCRIPTORS}{descriptor}"
    except OSError as error:
        if error.errno not in _NO_UNNAMED_FILES:
            raise
    return open(hidden, "xb"), str(hidden)


def _remove_leftover(hidden: Path) -> None:
    """Removes a killed writer's hidden file: no process has it locked, and it is older than a second."""
    if not _HIDDEN.fullmatch(hidden.name):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(hidden, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if time.time() - os.fstat(descriptor).st_mtime > 1:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                hidden.unlink()
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _explained(explain: Callable[[Path, OSError], StorageError], path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise explain(path, error) from None


def _reading(path: Path, error: OSError) -> StorageError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFound(f"{path} does not exist")
    if isinstance(error, PermissionError):
        return StorageError(f"{path} may not be read by this user: change its permissions")
    if isinstance(error, IsADirectoryError):
        return StorageError(f"{path} is a folder where a file was expected")
    return StorageError(f"{path} cannot be read: {error.strerror or error}")


def _writing(path: Path, error: OSError) -> StorageError:
    if isinstance(error, FileNotFoundError) and error.filename not in (str(path.parent), None):
        return NotFound(f"{error.filename} does not exist")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"the disk of {path.parent} is full: free some space and run the same command again"
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return StorageError(f"{path.parent} may not be written by this user: choose another folder")
    if isinstance(error, NotADirectoryError | FileExistsError):
        return StorageError(f"{path.parent} is not a folder: choose another path")
    if error.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV):
        return StorageError(f"{path.parent} is on a file system without hard links: choose another folder")
    return StorageError(f"{path} cannot be written: {error.strerror or error}")
