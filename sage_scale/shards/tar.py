"""Tars of shards: their headers, their members, and a stored tar as bytes in memory.

Only POSIX ustar headers of regular files with short ASCII names, without clock, owner or host name. A reader refuses
links, devices, absolute names, `..`, sizes beyond the buffer and wrong checksums, and names the byte.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from sage_scale.errors import DatasetError, StorageError
from sage_scale.storage import Store
from sage_scale.untrusted.files import open_regular

BLOCK = 512
END = bytes(2 * BLOCK)
_MAX_NAME = 100
_MAX_SIZE = 8**11 - 1
_FETCH_BYTES = 16 << 20
_BEFORE_SIZE = b"0000644\0" + 2 * b"0000000\0"
_AFTER_SIZE = b"\0" + b"00000000000\0"
_AFTER_CHECKSUM = b"\0 0" + bytes(100) + b"ustar\00000" + bytes(64) + 2 * b"0000000\0" + bytes(167)
# The checksum is the sum of the block's bytes, its own eight taken for blanks.
_CONSTANT_SUM = sum(_BEFORE_SIZE) + sum(_AFTER_SIZE) + sum(_AFTER_CHECKSUM) - sum(b"\0 ") + 8 * ord(" ")


class Member(NamedTuple):
    """A file in a tar: its first header is at byte `start`, its `size` bytes at `offset`, the next member at `end`."""

    name: str
    start: int
    offset: int
    size: int
    end: int


def header(name: str, size: int) -> bytes:
    """Returns the 512 bytes before a member's data: mode 0644, owner 0, time 0."""
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= _MAX_NAME or not 0 <= size <= _MAX_SIZE:
        raise DatasetError(f"member '{name}' of {size} bytes does not fit a plain tar header")
    octal = b"%011o" % size
    checksum = b"%06o" % (_CONSTANT_SUM + sum(encoded) + sum(octal))
    name_field = encoded.ljust(_MAX_NAME, b"\0")
    return b"".join((name_field, _BEFORE_SIZE, octal, _AFTER_SIZE, checksum, _AFTER_CHECKSUM))


def padding(size: int) -> bytes:
    """Returns the zeros that fill a member's data up to a whole block."""
    return bytes(-size % BLOCK)


def walk(data: bytes | memoryview, where: str) -> Iterator[Member]:
    """Yields every member of a whole tar. Raises DatasetError, with `where`, at the first fault."""
    at, total = 0, len(data)
    while True:
        if at + BLOCK > total:
            raise DatasetError(f"{where}: cut off at byte {total}: the end of the tar is missing")
        block = bytes(data[at : at + BLOCK])
        if not block.strip(b"\0"):
            if total - at != len(END) or bytes(data[at:]).strip(b"\0"):
                raise DatasetError(f"{where}: unexpected bytes after the end of the tar at byte {at}")
            return
        try:
            name = block[:_MAX_NAME].split(b"\0", 1)[0].decode("ascii")
        except UnicodeDecodeError:
            name = ""
        if not name or not name.isprintable():
            raise DatasetError(f"{where}: the member at byte {at} has a damaged name")
        if block[257:262] != b"ustar" or block[156:157] not in (b"0", b"\0") or block[345:500].strip(b"\0"):
            raise DatasetError(f"{where}: member '{name}' at byte {at} is not a plain file with a short name")
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise DatasetError(f"{where}: member '{name}' at byte {at} has a name that leaves the tar")
        try:
            size, checksum = int(block[124:135], 8), int(block[148:154], 8)
        except ValueError:
            raise DatasetError(f"{where}: member '{name}' at byte {at} has a damaged header") from None
        if checksum != sum(block) - sum(block[148:156]) + 8 * 32:
            raise DatasetError(f"{where}: member '{name}' at byte {at} has a damaged header (checksum)")
        end = at + BLOCK + size + (-size % BLOCK)
        if size < 0 or end > total:
            raise DatasetError(
                f"{where}: member '{name}' at byte {at} is longer than the tar: it was cut off"
            )
        yield Member(name, at, at + BLOCK, size, end)
        at = end


@contextmanager
def map_file(path: Path, where: str = "") -> Iterator[memoryview]:
    """Gives the bytes of a regular file, mapped read-only. Messages name `where`, or the path.

    Raises DatasetError where the file is missing or empty, StorageError where it cannot be read.
    """
    where = where or str(path)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_regular(path))
            area = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            raise DatasetError(f"{where} does not exist") from None
        except ValueError:  # mmap refuses an empty file
            raise DatasetError(f"{where} is empty: it was cut off") from None
        except OSError as error:
            raise StorageError(f"{where} cannot be read: {error.strerror}") from None
        yield stack.enter_context(memoryview(area))


@contextmanager
def map_tar(store: Store, name: str) -> Iterator[memoryview]:
    """Gives the bytes of a stored tar: a local file is mapped, a remote one first fetched to a temporary file.

    Raises NotFound, StorageError, and DatasetError for an empty tar.
    """
    path, where, total = store.local_path(name), f"{store.url}/{name}", store.size(name)
    if path is not None:
        with map_file(path, where) as view:
            yield view
        return
    with tempfile.NamedTemporaryFile(prefix="sage-scale-", suffix=".tar") as file:
        try:
            for offset in range(0, total, _FETCH_BYTES):
                file.write(store.get_range(name, offset, min(_FETCH_BYTES, total - offset)))
            file.flush()
        except OSError as error:
            raise StorageError(
                f"{file.name} cannot be written: {error.strerror}; set TMPDIR to a larger disk"
            ) from None
        with map_file(Path(file.name), where) as view:
            yield view
