"""Tars that others wrote: every common dialect is read, nothing in them is believed.

Understood are plain ustar, its prefix for long names, GNU long names (`L`), PAX records of path and size (`x`), sizes
in base 256 and headers older than ustar. Nothing is ever unpacked, so a name is only a name: members whose names leave
the tar (`/x`, `../x`) or hold control characters are set aside and counted, as are links, devices and folders. What
cannot be read for certain (sparse files, a size beyond the end, a wrong checksum, no end) is refused by name and byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from sage_scale.errors import DatasetError
from sage_scale.shards.tar import BLOCK

MAX_EXTENSION_BYTES = 1 << 20
"""Largest PAX record or long name; real ones have hundreds of bytes."""
MOST_NAMED = 3
_ASIDE = {b"1": "hard link", b"2": "link", b"3": "device", b"4": "device", b"5": "folder", b"6": "pipe"}
_META = re.compile(r"__[^/]*__($|/)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_LEFT_BEHIND = (".DS_Store", "Thumbs.db", "desktop.ini")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}


BEHIND = "tar with bytes behind its end, such as of another tar joined to it, which no reader takes"


@dataclass(frozen=True)
class AnyMember:
    """A regular file in a tar: `start` is where its first header lies, extensions included."""

    name: str
    start: int
    offset: int
    size: int
    end: int


@dataclass
class Aside:
    """Members that were set aside, or are odd, by what they are, and the first few names of each."""

    tar: str = ""
    """Name of the tar that is read."""
    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, name: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if what != "folder" and len(self.names.setdefault(what, [])) < MOST_NAMED:
            self.names[what].append(f"{name[:80]!r}" + (f" in {self.tar}" if self.tar else ""))

    def update(self, other: Aside) -> None:
        for what, count in other.counts.items():
            self.counts[what] = self.counts.get(what, 0) + count
        for what, names in other.names.items():
            self.names[what] = (self.names.get(what, []) + names)[:MOST_NAMED]


@dataclass
class _Extensions:
    """What the headers before a member say of it."""

    start: int = -1
    name: str | None = None
    size: int | None = None


def members(
    data: bytes | memoryview, where: str, *, part: bool = False, aside: Aside | None = None
) -> Iterator[AnyMember]:
    """The regular members of a tar, or (`part`) of a run of members cut out of one.

    Raises DatasetError, with `where`, at what cannot be read for certain.
    """
    at, total = 0, len(data)
    if not part and total >= 2 and bytes(data[:2]) in _COMPRESSED and not _is_header(bytes(data[:BLOCK])):
        packer = _COMPRESSED[bytes(data[:2])]
        raise DatasetError(
            f"{where} is compressed ({packer}): samples in it have no place to be read from; unpack it first"
        )
    said = _Extensions()
    while True:
        if at == total and part:
            return
        if at + BLOCK > total:
            raise DatasetError(f"{where}: cut off at byte {total}: the end of the tar is missing")
        block = bytes(data[at : at + BLOCK])
        if not any(block):
            if said.start >= 0:
                raise DatasetError(f"{where}: an extended header before byte {at} belongs to no member")
            if aside is not None and (first := _behind(data, at)) < total:
                aside.add(BEHIND, f"byte {first}")
            return
        if not _is_header(block):
            raise DatasetError(f"{where}: no tar header at byte {at}: the tar is damaged, or is none")
        size = _number(block[124:136], where, at)
        kind = block[156:157]
        if said.size is not None and kind not in b"xgLK":
            size = said.size
        end = at + BLOCK + size + (-size % BLOCK)
        name = said.name if said.name is not None else _name(block)
        if kind in (b"1", b"2", b"3", b"4", b"5", b"6"):  # whatever size they claim, they have no data
            end = at + BLOCK
        if end > total:
            raise DatasetError(
                f"{where}: member {name[:80]!r} at byte {at} claims {size:,} bytes, of which "
                f"{max(0, total - at - BLOCK):,} are there: the tar was cut off, or lies"
            )
        start = said.start if said.start >= 0 else at
        if kind in (b"x", b"L", b"K", b"g"):
            if size > MAX_EXTENSION_BYTES:
                raise DatasetError(f"{where}: an extended header of {size:,} bytes at byte {at} is no name")
            _extend(said, kind, bytes(data[at + BLOCK : at + BLOCK + size]), where, at)
            if kind != b"g" and said.start < 0:
                said.start = at
        else:
            said = _Extensions()
            if kind == b"S":
                raise DatasetError(
                    f"{where}: member {name[:80]!r} at byte {at} is a sparse file: repack the tar without"
                )
            what = _ASIDE.get(kind, "" if kind in (b"0", b"\0", b"7") else "member of unknown kind")
            if kind == b"\0" and name.endswith("/"):
                what = "folder"
            if not what and _leaves(name):
                what = "name that leaves the tar"
            if not what and _CONTROL.search(name):
                what = "name with control characters"
            if what:
                if aside is not None:
                    aside.add(what, name)
            else:
                yield AnyMember(name, start, at + BLOCK, size, end)
        at = end


def _behind(data: bytes | memoryview, at: int) -> int:
    """The first byte from `at` on that is not zero; the length of the data where all are."""
    for start in range(at, len(data), 1 << 20):
        part = bytes(data[start : start + (1 << 20)])
        if left := len(part.lstrip(b"\0")):
            return start + len(part) - left
    return len(data)


def key_and_extension(name: str) -> tuple[str, str] | None:
    """Key and extension as webdataset parts them: at the first dot of the last component; None where it has none.

    Folders are part of the key, extensions are lower-cased. A hidden file (`a/.b`) belongs to the key `a/`, provided
    that its folder's name has no dot.
    """
    if _META.match(name):
        return None
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not dot:
        return None
    if stem:
        return f"{folder}{slash}{stem}", extension.lower()
    if slash and "." not in folder.rpartition("/")[2]:
        return f"{folder}/", extension.lower()
    return None


def left_behind(name: str) -> bool:
    """Returns whether an operating system left the file beside the user's own (macOS's `._x`, `.DS_Store`).

    webdataset takes `d/._x.jpg` for a member of the sample `d/`, which parts the members before it from those behind.
    """
    base = name.rpartition("/")[2]
    return base.startswith("._") or base in _LEFT_BEHIND or "__MACOSX" in name.split("/")


def _is_header(block: bytes) -> bool:
    """Whether the checksum is right, counted unsigned or (as some old writers do) signed."""
    field = block[148:156].split(b"\0", 1)[0].strip()
    try:
        claimed = int(field, 8)
    except ValueError:
        return False
    rest = block[:148] + block[156:]
    unsigned = sum(rest) + 8 * 32
    return claimed in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest))


def _number(field: bytes, where: str, at: int) -> int:
    if field[0] in (0x80, 0xFF):  # base 256, two's complement
        value = int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    else:
        text = field.split(b"\0", 1)[0].strip()
        try:
            value = int(text, 8) if text else 0
        except ValueError:
            value = -1
    if value < 0:
        raise DatasetError(f"{where}: the member at byte {at} has a damaged size")
    return value


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _extend(said: _Extensions, kind: bytes, body: bytes, where: str, at: int) -> None:
    if kind == b"L":
        said.name = _text(body.split(b"\0", 1)[0])
    if kind not in b"xg":
        return
    for key, value in _pax(body, where, at):
        if key.startswith(b"GNU.sparse") or (kind == b"g" and key in (b"path", b"size")):
            raise DatasetError(
                f"{where}: the extended header at byte {at} sets {key.decode('ascii', 'replace')}: repack the tar "
                "without sparse files and global names"
            )
        if key == b"path":
            said.name = _text(value).rstrip("/") or "/"
        elif key == b"size":
            if not value.isdigit():
                raise DatasetError(f"{where}: the extended header at byte {at} has a damaged size")
            said.size = int(value)


def _pax(body: bytes, where: str, at: int) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place < len(body) and body[place]:
        digits, space, _ = body[place : place + 21].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = body[place + len(digits) + 1 : place + length]
        key, equals, value = record.partition(b"=")
        if length <= len(digits) + 2 or place + length > len(body) or not equals or not value.endswith(b"\n"):
            raise DatasetError(f"{where}: the extended header at byte {at} is damaged")
        yield key, value[:-1]
        place += length


def _leaves(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/") or "\\" in name
