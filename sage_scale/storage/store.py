"""The interface behind which a folder and an object store look the same.

There are two ways to write: `put_if_absent`, which carries the commit protocol (of several writers exactly one wins,
and a killed writer leaves nothing half-written), and `put`, which replaces a whole object. Names are relative, parts
joined by `/`.
"""

from __future__ import annotations

import contextlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sage_scale.errors import StorageError

MAX_OBJECT_BYTES = 5 * 1024**3
"""Largest object of one PUT (S3), and so the largest shard."""

Buffer = bytes | bytearray | memoryview
"""Bytes of an answer."""
PIECE_BYTES = 1 << 20
"""Bytes of a piece of an object that is read so."""
T = TypeVar("T")


class NotFound(StorageError):
    """There is no object of this name."""


class NoBucket(StorageError):
    """The named bucket does not exist or has an impossible name: a usage error, not an outage."""

    exit_code = 2


class Unconditional(StorageError):
    """The store replaces an object although the PUT forbids it: a usage error, since two writers would collide."""

    exit_code = 2

    def __init__(self, url: str) -> None:
        super().__init__(
            f"{url}: its server ignores `If-None-Match: *` on PUT, so that two writers overwrite each other: use one "
            "that honours it, as Amazon's and Ceph's do"
        )


class Unavailable(StorageError):
    """The store does not answer, or breaks off its answer; the same request may succeed a moment later."""


@dataclass(frozen=True, order=True)
class Entry:
    """One object of a listing."""

    name: str
    """Name relative to the store."""
    size: int
    """Bytes."""


class Store(ABC):
    """Named objects under one URL. Reentrant (threads may share it) and picklable."""

    url: str

    @abstractmethod
    def get(self, name: str) -> bytes:
        """Returns the whole object. Raises NotFound, StorageError where it cannot be read."""

    def read(self, name: str, parse: Callable[[int, Iterator[Buffer]], T]) -> T:
        """Returns `parse(bytes, pieces)` of a large object, by one GET whose body is never held as a whole.

        A piece is valid until the next. After a body that broke off, `parse` is called again, from the first byte.
        Raises as `get`.
        """
        data = self.get(name)
        return parse(len(data), iter((data,)))

    @abstractmethod
    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Returns exactly `length` bytes from `offset`. Raises StorageError for a shorter object."""

    def try_range(
        self,
        name: str,
        offset: int,
        length: int,
        abandoned: Callable[[], bool] = lambda: False,
        into: memoryview | None = None,
    ) -> Buffer:
        """Returns `get_range` of one attempt with short time-outs, for callers that repeat and hedge requests.

        The answer may lie in `into` (at least `length` bytes). Raises Unavailable for transient errors, and when
        `abandoned()` becomes true.
        """
        return self.get_range(name, offset, length)

    def md5(self, name: str) -> str:
        """Returns the MD5 (hexadecimal) that the object's writer recorded, "" where none is known. Raises NotFound."""
        return ""

    def download(self, name: str, path: Path) -> None:
        """Writes the whole object to a local file, compared with its recorded MD5. Raises as `get`, OSError for the
        file."""
        path.write_bytes(self.get(name))

    @abstractmethod
    def put_if_absent(self, name: str, data: bytes | Path) -> bool:
        """Stores the bytes (or the file) unless the name is taken; nothing half-written is ever visible.

        True where this very call stored it, even if the answer was lost and the request repeated. False where
        another object has the name, which stays as it is.
        """

    @contextlib.contextmanager
    def draft(self, scratch: Path) -> Iterator[Path]:
        """Yields a temporary local file to write before `put_if_absent` stores it.

        It lies at `scratch` unless the store can spare a copy; then its name says nothing.
        """
        try:
            yield scratch
        finally:
            scratch.unlink(missing_ok=True)

    def check_writable(self) -> None:  # noqa: B027 - S3 refuses a key without permission at the first object
        """Raises StorageError where nothing can be written, and removes files left by killed writers."""

    def try_conditional_put(self) -> str:
        """Stores, protects, reads and deletes an object. Returns its name where it may not be deleted, else "".

        Raises StorageError where it cannot be stored or read, Unconditional where a second PUT replaced it.
        """
        name, data = f"preflight-{secrets.token_hex(8)}", secrets.token_bytes(16)
        left = name
        try:
            stored, again = self.put_if_absent(name, data), self.put_if_absent(name, b"another writer's")
            if again or self.get(name) != data or not stored:
                raise Unconditional(self.url)
        finally:
            with contextlib.suppress(StorageError):
                self.delete(name)
                left = ""
        return left

    @abstractmethod
    def put(self, name: str, data: bytes | Path) -> None:
        """Stores the bytes (or the file), replacing an older object as a whole."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Returns the bytes of the object. Raises NotFound."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Yields every object whose name starts with `prefix`, in the order of the names' bytes.

        Leaves out names that `get` would refuse (`is_name`): `.a.tmp`, `.git/x`.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Removes the object; no error where there is none."""

    @abstractmethod
    def child(self, prefix: str) -> Store:
        """Returns the store of the objects below `prefix/`."""

    def exists(self, name: str) -> bool:
        """Returns whether the object is there."""
        try:
            self.size(name)
        except NotFound:
            return False
        return True

    def local_path(self, name: str) -> Path | None:
        """Returns the object as a file of this machine, to be mapped or read with `pread`; None where remote."""
        check_name(name)
        return None

    def single_attempt(self) -> Store:
        """Returns the same store with one short attempt a call, for callers that repeat failed calls themselves."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


def is_name(name: str) -> bool:
    """Returns whether a name is a plain relative one; listings leave out all others."""
    odd = "\0" in name or "\\" in name
    return not odd and all(part and not part.startswith(".") for part in name.split("/"))


def check_name(name: str) -> str:
    """Returns the name. Raises StorageError where it could leave the store, or has a part that begins with a dot
    (reserved for unfinished files)."""
    if not is_name(name):
        raise StorageError(
            f"'{name!r}' is no name of an object: it must be relative, without empty or dotted parts"
        )
    return name
