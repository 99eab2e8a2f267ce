"""Reads tars of other writers, in every common dialect, without trust in their contents.

Read are plain ustar and its prefix for long names, GNU long names (`L`), PAX records of path and size (`x`), sizes in
base 256, and headers older than ustar. Nothing is unpacked. Skipped and counted are members whose names leave the tar
(`/x`, `../x`) or hold control characters, links, devices and folders. Refused, with name and byte, are sparse files,
sizes beyond the end, wrong checksums, and a missing end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from sage_scale.errors import DatasetError
from sage_scale.shards.tar import BLOCK, Member

MAX_EXTENSION_BYTES = 1 << 20
"""Largest PAX record or long name; real ones have hundreds of bytes."""
BEHIND = "tar with bytes behind its end, such as of another tar joined to it, which no reader takes"
_NAMED = 3
_SKIPPED = {b"1": "hard link", b"2": "link", b"3": "device", b"4": "device", b"5": "folder", b"6": "pipe"}
_META = re.compile(r"__[^/]*__($|/)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_SYSTEM_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}


@dataclass
class SkippedMembers:
    """Counts of members that were skipped, or are odd, by kind, and the first names of each kind."""

    tar: str = ""
    """Name of the tar."""
    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Counts a member."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind != "folder" and len(self.names.setdefault(kind, [])) < _NAMED:
            self.names[kind].append(f"{name[:80]!r}" + (f" in {self.tar}" if self.tar else ""))

    def update(self, other: SkippedMembers) -> None:
        """Adds the counts of another tar."""
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
        for kind, names in other.names.items():
            self.names[kind] = (self.names.get(kind, []) + names)[:_NAMED]


@dataclass
class _Extensions:
    """Values that extended headers give for the next member."""

    start: int = -1
    """First byte of the first extended header; -1 where there is none."""
    name: str | None = None
    size: int | None = None


def members(
    data: bytes | memoryview, where: str, *, part: bool = False, skipped: SkippedMembers | None = None
) -> Iterator[Member]:
    """Yields the regular members of a tar, or (`part`) of a run of members cut out of a tar.

    `Member.start` is the member's first header, extended headers included. Raises DatasetError, with `where`, for all
    that is not readable for certain.
    """
    at, total = 0, len(data)
    if not part and bytes(data[:2]) in _COMPRESSED and not _is_header(bytes(data[:BLOCK])):
        packer = _COMPRESSED[bytes(data[:2])]
        raise DatasetError(
            f"{where} is compressed ({packer}): samples in it have no offsets; unpack it first"
        )
    extended = _Extensions()
    while not (part and at == total):
        if at + BLOCK > total:
            raise DatasetError(f"{where}: cut off at byte {total}: the end of the tar is missing")
        block = bytes(data[at : at + BLOCK])
        if not any(block):
            if extended.start >= 0:
                raise DatasetError(f"{where}: an extended header before byte {at} belongs to no member")
            if skipped is not None and (first := _first_not_zero(data, at)) < total:
                skipped.add(BEHIND, f"byte {first}")
            return
        if not _is_header(block):
            raise DatasetError(f"{where}: no tar header at byte {at}: the tar is damaged, or is none")
        size, type_ = _number(block[124:136], where, at), block[156:157]
        if extended.size is not None and type_ not in b"xgLK":
            size = extended.size
        name = extended.name if extended.name is not None else _name(block)
        stored = 0 if type_ in _SKIPPED else size  # links and devices have no data, whatever size they claim
        end = at + BLOCK + stored + (-stored % BLOCK)
        if end > total:
            raise DatasetError(
                f"{where}: member {name[:80]!r} at byte {at} claims {size:,} bytes, of which "
                f"{max(0, total - at - BLOCK):,} are there: the tar was cut off, or lies"
            )
        start = extended.start if extended.start >= 0 else at
        if type_ in (b"x", b"L", b"K", b"g"):
            if size > MAX_EXTENSION_BYTES:
                raise DatasetError(f"{where}: an extended header of {size:,} bytes at byte {at} is no name")
            _extend(extended, type_, bytes(data[at + BLOCK : at + BLOCK + size]), where, at)
            if type_ != b"g":
                extended.start = start
        else:
            extended = _Extensions()
            if type_ == b"S":
                raise DatasetError(
                    f"{where}: member {name[:80]!r} at byte {at} is a sparse file: repack the tar without"
                )
            kind = _skipped_kind(type_, name)
            if not kind:
                yield Member(name, start, at + BLOCK, size, end)
            elif skipped is not None:
                skipped.add(kind, name)
        at = end


def key_and_extension(name: str) -> tuple[str, str] | None:
    """Returns key and extension, split as webdataset does: at the first dot of the last component; None without a dot.

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


def is_system_file(name: str) -> bool:
    """Returns whether an operating system left the file beside the user's own (macOS's `._x`, `.DS_Store`).

    webdataset takes `d/._x.jpg` for a member of the sample `d/`, which splits the sample around it.
    """
    base = name.rpartition("/")[2]
    return base.startswith("._") or base in _SYSTEM_FILES or "__MACOSX" in name.split("/")


def _skipped_kind(type_: bytes, name: str) -> str:
    """Returns the reason to skip a member; empty for a regular one."""
    if type_ in _SKIPPED:
        return _SKIPPED[type_]
    if type_ not in (b"0", b"\0", b"7"):
        return "member of unknown kind"
    if type_ == b"\0" and name.endswith("/"):
        return "folder"
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        return "name that leaves the tar"
    return "name with control characters" if _CONTROL.search(name) else ""


def _first_not_zero(data: bytes | memoryview, at: int) -> int:
    """Returns the first byte from `at` on that is not zero; the length of the data where all are."""
    for start in range(at, len(data), 1 << 20):
        part = bytes(data[start : start + (1 << 20)])
        if left := len(part.lstrip(b"\0")):
            return start + len(part) - left
    return len(data)


def _is_header(block: bytes) -> bool:
    """Returns whether the checksum is right, counted unsigned or (as some old writers do) signed."""
    try:
        claimed = int(block[148:156].split(b"\0", 1)[0].strip(), 8)
    except ValueError:
        return False
    rest = block[:148] + block[156:]
    unsigned = sum(rest) + 8 * 32
    return claimed in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest))


def _number(field: bytes, where: str, at: int) -> int:
    if field[0] in (0x80, 0xFF):  # base 256, two's complement
        value = int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    else:
        try:
            value = int(field.split(b"\0", 1)[0].strip() or b"0", 8)
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


def _extend(extended: _Extensions, type_: bytes, body: bytes, where: str, at: int) -> None:
    """Takes name and size from an extended header."""
    if type_ == b"L":
        extended.name = _text(body.split(b"\0", 1)[0])
    for key, value in _pax_records(body, where, at) if type_ in b"xg" else ():
        if key.startswith(b"GNU.sparse") or (type_ == b"g" and key in (b"path", b"size")):
            raise DatasetError(
                f"{where}: the extended header at byte {at} sets {key.decode('ascii', 'replace')}: repack the tar "
                "without sparse files and global names"
            )
        if key == b"path":
            extended.name = _text(value).rstrip("/") or "/"
        elif key == b"size":
            if not value.isdigit():
                raise DatasetError(f"{where}: the extended header at byte {at} has a damaged size")
            extended.size = int(value)


def _pax_records(body: bytes, where: str, at: int) -> Iterator[tuple[bytes, bytes]]:
    start = 0
    while start < len(body) and body[start]:
        digits, space, _ = body[start : start + 21].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = body[start + len(digits) + 1 : start + length]
        key, equals, value = record.partition(b"=")
        if length <= len(digits) + 2 or start + length > len(body) or not equals or not value.endswith(b"\n"):
            raise DatasetError(f"{where}: the extended header at byte {at} is damaged")
        yield key, value[:-1]
        start += length
