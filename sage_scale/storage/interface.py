"""The one interface behind which a folder and an object store look the same.

There are two ways to write: `put_if_absent`, on which the whole commit protocol stands (of several writers
exactly one wins, and whoever is killed leaves nothing half-written), and `put`, which replaces an object as
a whole. Names are relative, parts joined by `/`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sage_scale.errors import StorageError, UsageError
from sage_scale.untrusted.display import redacted, shortened
from sage_scale.untrusted.files import expanded, text_fault

MAX_OBJECT_BYTES = 5 * 1024**3
"""Largest object of one PUT (S3), and so the largest shard."""


_URL = re.compile(r"(s3a?|gs|gcs|az|abfss?|hdfs|https?|ftp|file):/", re.IGNORECASE)

Buffer = bytes | bytearray | memoryview
"""Bytes of an answer."""


class NotFound(StorageError):
    """There is no object of this name."""


class NoBucket(StorageError):
    """The bucket that was named is not there, or cannot be: the wrong place, not a store in trouble."""

    exit_code = 2


class Unavailable(StorageError):
    """The store does not answer, or not to the end; the same request may succeed a moment later."""


@dataclass(frozen=True, order=True)
class Entry:
    """One object of a listing: its name, relative to the store, and its size in bytes."""

    name: str
    size: int


class Store(ABC):
    """Named objects under one URL. Reentrant (threads may share it) and pickled by its URL."""

    url: str

    @abstractmethod
    def get(self, name: str) -> bytes:
        """The whole object. Raises NotFound, or StorageError where it cannot be read."""

    @abstractmethod
    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; a shorter object is a StorageError, never a short answer."""

    def try_range(
        self,
        name: str,
        offset: int,
        length: int,
        abandoned: Callable[[], bool] = lambda: False,
        room: memoryview | None = None,
    ) -> Buffer:
        """`get_range` in one attempt with short time-outs, for callers who repeat and hedge requests themselves.

        The answer may lie in `room` (at least `length` bytes), which is then the caller's to leave alone. Raises
        Unavailable for what may pass, and where `abandoned()` became true meanwhile.
        """
        return self.get_range(name, offset, length)

    @abstractmethod
    def put_if_absent(self, name: str, data: bytes | Path) -> bool:
        """Store the bytes (or the file) unless the name is taken.

        True where this very call stored it, even if the answer was lost on the way and the request repeated;
        False where another object is there, which stays as it is. Nothing half-written is ever visible.
        """

    @contextlib.contextmanager
    def draft(self, scratch: Path) -> Iterator[Path]:
        """A local file to write an object to before `put_if_absent` stores it; it goes with the context.

        `scratch` is where it lies unless the store has a place that spares a copy. Its name may say nothing of either.
        """
        try:
            yield scratch
        finally:
            scratch.unlink(missing_ok=True)

    def check_writable(self) -> None:  # noqa: B027 - a store need not know
        """Raises StorageError where nothing can be written here, and removes what killed writers left.

        Leaves nothing behind. Of S3 neither is needed: a key without permission is refused at the first object.
        """

    @abstractmethod
    def put(self, name: str, data: bytes | Path) -> None:
        """Store the bytes (or the file), replacing an older object as a whole."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of the object. Raises NotFound."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every object whose name starts with `prefix`, in the order of the names' bytes.

        Objects that `get` would refuse by name (`is_name`) are left out: `.a.tmp`, `.git/x`.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove the object; no error where there is none."""

    def exists(self, name: str) -> bool:
        """Whether the object is there."""
        try:
            self.size(name)
        except NotFound:
            return False
        return True

    def local_path(self, name: str) -> Path | None:
        """The object as a file of this machine, to be mapped or read with `pread`; None where remote."""
        check_name(name)
        return None

    def single_attempt(self) -> Store:
        """The same store for callers who repeat failed calls themselves: each is one attempt with short time-outs."""
        return self

    def child(self, prefix: str) -> Store:
        """The store of the objects below `prefix/`."""
        check_name(prefix)
        return open_store(f"{self.url.rstrip('/')}/{prefix}")

    def __reduce__(self) -> tuple:
        return open_store, (self.url,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


def is_name(name: str) -> bool:
    """Returns whether a name is a plain relative one; listings, of folders and of S3, leave out all others."""
    odd = "\0" in name or "\\" in name
    return not odd and all(part and not part.startswith(".") for part in name.split("/"))


def check_name(name: str) -> str:
    """The name itself where it is a plain relative one; StorageError for one that could leave the store.

    Names whose parts begin with a dot are refused too: they are kept for files in the making.
    """
    if not is_name(name):
        raise StorageError(
            f"'{name!r}' is no name of an object: it must be relative, without empty or dotted parts"
        )
    return name


def open_store(url: str | Path) -> Store:
    """The store at a folder's path, a file:// URL or s3://bucket/prefix. Nothing is contacted or created yet.

    For S3 the endpoint, region and credentials come from the environment (AWS_ENDPOINT_URL, AWS_REGION,
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE). Raises UsageError for another kind of URL, and where a file
    stands in the folder's place.
    """
    from sage_scale.storage.folder import FolderStore

    text = str(url)
    if not text:
        raise UsageError("an empty path is no place for data: give a folder or s3://bucket/prefix")
    _check_text(text)
    scheme, sign, rest = text.partition("://")
    shown = redacted(text)
    if isinstance(url, Path) or not sign:
        if _URL.match(text):
            raise UsageError(
                f"{shown} is neither a folder nor a URL: write s3://bucket/prefix, with two slashes"
            )
        return FolderStore(_folder(Path(text)))
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise UsageError(f"{shown}: a file:// URL names a path of this machine, file:///path")
        path = unquote(parts.path, errors="surrogateescape")
        _check_text(path)
        return FolderStore(_folder(Path(path)))
    if scheme == "s3":
        if shown != text:
            raise UsageError(
                f"{shown}: an S3 URL is s3://bucket/prefix, without user, password or query: credentials belong in "
                "the AWS_* variables or in a profile (AWS_PROFILE)"
            )
        from sage_scale.storage.s3 import S3Store  # boto3 takes half a second to import

        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise UsageError(f"{shown}: name a bucket, s3://bucket/prefix")
        return S3Store(bucket, prefix.strip("/"))
    raise UsageError(
        f"{shown}: '{shortened(scheme)}://' is not supported; give a folder, file:///path or s3://bucket/prefix"
    )


def open_to_write(url: str | Path) -> Store:
    """Returns `open_store(url)`. Raises UsageError, before anything is begun, where nothing can be written there."""
    store = open_store(url)
    try:
        store.check_writable()
    except StorageError as error:
        raise UsageError(str(error)) from None
    return store


def on_this_machine(path: str | Path, what: str) -> Path:
    """A path of this machine. Raises UsageError where it looks like a URL, which would become a folder named `s3:`, or
    where nothing can bear that name (too long, below a file, links in a circle).

    `what` is what has to lie in a folder, for the message ("a run"). Also `s3:/bucket` is refused: a Path of a URL has
    one slash left.
    """
    if _URL.match(str(path)):
        raise UsageError(
            f"{redacted(str(path))} is not a local folder or file: {what} must lie on this machine"
        )
    _check_text(str(path))
    _mode(expanded(path))
    return Path(path)


def _mode(path: Path) -> int:
    """The mode of an expanded path, 0 where it is missing. Raises UsageError where nothing can bear that name."""
    if str(path).startswith("~") and not os.path.lexists(path) and len(path.parts[0]) > 1:
        raise UsageError(f"{shortened(path)}: there is no user of that name: give another path")
    try:
        return path.stat().st_mode
    except OSError as error:  # of others: the reader or writer there says what is wrong
        if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP):
            raise UsageError(f"{shortened(path)}: {error.strerror}: give another path") from None
        return 0


def _check_text(path: str) -> None:
    if fault := text_fault(path):
        raise UsageError(f"'{shortened(path)}' is no path or URL in UTF-8: it has {fault}")


def _folder(path: Path) -> Path:
    path = expanded(path)
    _check_text(os.path.abspath(path))
    mode = _mode(path)
    if mode and not stat.S_ISDIR(mode):
        raise UsageError(f"{path} is a file: name the folder that holds, or shall hold, the data")
    return path
