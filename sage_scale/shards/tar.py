"""Tar members, written the same way every time and read without trust.

Only what the format needs: POSIX ustar headers of regular files with short ASCII names. No clock, owner or
host name is written; on reading, links, devices, absolute names, `..`, sizes beyond the buffer and wrong
header checksums are refused by name and offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sage_scale.errors import DatasetError

BLOCK = 512
END = bytes(2 * BLOCK)
_MAX_NAME = 100
_MAX_SIZE = 8**11 - 1
_BEFORE_SIZE = b"0000644\0" + 2 * b"0000000\0"
_AFTER_SIZE = b"\0" + b"00000000000\0"
_AFTER_CHECKSUM = b"\0 0" + bytes(100) + b"ustar\00000" + bytes(64) + 2 * b"0000000\0" + bytes(167)
# The checksum is the sum of the block's bytes, its own eight taken for blanks.
_CONSTANT_SUM = sum(_BEFORE_SIZE) + sum(_AFTER_SIZE) + sum(_AFTER_CHECKSUM) - sum(b"\0 ") + 8 * ord(" ")


class Member(NamedTuple):
    """A file in a tar: its header starts at `start`, its `size` bytes at `offset`, the next member at
    `end`."""

    name: str
    start: int
    offset: int
    size: int
    end: int


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a member's data: mode 0644, owner 0, time 0."""
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= _MAX_NAME or not 0 <= size <= _MAX_SIZE:
        raise DatasetError(f"member '{name}' of {size} bytes does not fit a plain tar header")
    octal = b"%011o" % size
    checksum = b"%06o" % (_CONSTANT_SUM + sum(encoded) + sum(octal))
    return b"".join(
        (
            encoded,
            bytes(_MAX_NAME - len(encoded)),
            _BEFORE_SIZE,
            octal,
            _AFTER_SIZE,
            checksum,
            _AFTER_CHECKSUM,
        )
    )


def padding(size: int) -> bytes:
    """Zeros that fill a member's data up to a whole block."""
    return bytes(-size % BLOCK)


def walk(data: bytes | memoryview, where: str) -> Iterator[Member]:
    """Every member of a whole tar, in order. Raises DatasetError at the first thing that is not plain and
    whole.

    `where` names the shard in messages.
    """
    at, total = 0, len(data)
    while True:
        if at + BLOCK > total:
            raise DatasetError(f"{where}: cut off at byte {total}: the end of the tar is missing")
        block = bytes(data[at : at + BLOCK])
        if not block.strip(b"\0"):
            if total - at != len(END) or bytes(data[at:]).strip(b"\0"):
                raise DatasetError(f"{where}: unexpected bytes after the end of the tar at byte {at}")
            return
        name = _text(block, where, at)
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


def _text(block: bytes, where: str, at: int) -> str:
    raw = block[:_MAX_NAME].split(b"\0", 1)[0]
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError:
        raise DatasetError(f"{where}: the member at byte {at} has a damaged name") from None
    if not name.isprintable() or not name:
        raise DatasetError(f"{where}: the member at byte {at} has a damaged name")
    return name
