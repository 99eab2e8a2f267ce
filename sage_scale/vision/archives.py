"""Videos inside zip archives, read where they lie: `archive_001.zip/rgb/NAME.mp4` is a path through an archive.

A corpus of thousands of hours need not be unpacked beside itself. A member that is only stored is a stretch of the
archive, in which ffmpeg reads and seeks as in a file; a deflated one is unpacked into a temporary file for as long as
it is read. Nothing is ever written under a name that an archive gives.
"""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from sage_scale.errors import ClipRejected

SUFFIX = ".zip"
LARGEST_UNPACKED = 4 << 30
"""Most bytes that a deflated member may unpack to: a zip may claim anything."""
_LOCAL_HEADER = 30
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file in a zip archive."""

    archive: Path
    info: zipfile.ZipInfo

    def read_through(self) -> None:
        """Raise OSError where the file system cannot give the member's bytes."""
        with self.archive.open("rb", buffering=0) as file:
            file.seek(self.info.header_offset)
            left = self.info.compress_size
            while left > 0:
                piece = file.read(min(left, _PIECE_BYTES))
                if not piece:
                    return
                left -= len(piece)


def split_path(path: Path) -> tuple[Path, str] | None:
    """(archive, name in it) of a path through a zip archive; None for any other path."""
    for folder in path.parents:
        if folder.suffix.lower() == SUFFIX and folder.is_file():
            return folder, path.relative_to(folder).as_posix()
    return None


def find_member(path: Path) -> Member | None:
    """The member that a path through an archive names; None for any other path.

    Raises ClipRejected `missing` for a name that the archive does not have, `unreadable` for what is no zip archive.
    """
    parts = split_path(path)
    if parts is None:
        return None
    archive, name = parts
    info = _directory(archive).get(name)
    if info is None:
        raise ClipRejected("missing", f"there is no {path.name} in {archive.name}")
    return Member(archive, info)


@contextlib.contextmanager
def opened(member: Member) -> Iterator[str]:
    """An address under which ffmpeg reads the member. Raises ClipRejected where it cannot be unpacked."""
    if member.info.flag_bits & 1:
        raise ClipRejected("unreadable", f"it is encrypted in {member.archive.name}")
    if member.info.compress_type == zipfile.ZIP_STORED:
        begin = _content_begins(member)
        end = begin + member.info.file_size
        yield f"subfile,,start,{begin},end,{end},,:file:{member.archive}"
        return
    with tempfile.NamedTemporaryFile(prefix="sage-scale-", suffix=Path(member.info.filename).suffix) as file:
        _unpack(member, file.file)
        yield f"file:{file.name}"


def _directory(archive: Path) -> dict[str, zipfile.ZipInfo]:
    status = archive.stat()
    return _read_directory(archive, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _read_directory(archive: Path, size: int, changed_ns: int) -> dict[str, zipfile.ZipInfo]:
    """Size and time are what a changed archive is known by."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return {info.filename: info for info in opened.infolist() if not info.is_dir()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ClipRejected("unreadable", f"{archive.name}: {error}") from None


def _content_begins(member: Member) -> int:
    """Where a stored member's bytes begin: behind its own header, whose length the directory does not tell."""
    at = member.info.header_offset
    with member.archive.open("rb") as file:
        file.seek(at)
        header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        raise ClipRejected("unreadable", f"{member.archive.name} is damaged at byte {at}")
    name, extra = (int.from_bytes(header[place : place + 2], "little") for place in (26, 28))
    return at + _LOCAL_HEADER + name + extra


def _unpack(member: Member, file: IO[bytes]) -> None:
    archive = member.archive.name
    if member.info.file_size > LARGEST_UNPACKED:
        raise ClipRejected("unreadable", f"{archive} claims {member.info.file_size:,} bytes for it")
    try:
        with zipfile.ZipFile(member.archive) as whole, whole.open(member.info) as source:
            while piece := source.read(_PIECE_BYTES):
                file.write(piece)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ClipRejected("corrupt", f"{archive}: {error}") from None
    file.flush()
