"""Videos inside zip archives, read without unpacking: `archive_001.zip/rgb/NAME.mp4` is a path through an archive.

A stored member is a stretch of the archive, in which ffmpeg reads and seeks as in a file; a deflated one is unpacked
into a temporary file for as long as it is read. Nothing is ever written under a name that an archive gives.
"""

from __future__ import annotations

import contextlib
import tempfile
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from sage_scale.errors import ClipRejected
from sage_scale.untrusted.damage import damage_rejects
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import is_file

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
        """Raises OSError where the file system cannot read the member's bytes."""
        with self.archive.open("rb", buffering=0) as file:
            file.seek(self.info.header_offset)
            left = self.info.compress_size
            while left > 0:
                piece = file.read(min(left, _PIECE_BYTES))
                if not piece:
                    return
                left -= len(piece)


def split_path(path: Path) -> tuple[Path, str] | None:
    """Returns (archive, name in it) of a path through a zip archive; None for any other path."""
    for folder in path.parents:
        if folder.suffix.lower() == SUFFIX and is_file(folder):
            return folder, path.relative_to(folder).as_posix()
    return None


def find_member(path: Path) -> Member | None:
    """Returns the member that a path through an archive names; None for any other path.

    Raises ClipRejected `missing` for a name that the archive does not have, `unreadable` for a file that is no archive.
    """
    parts = split_path(path)
    if parts is None:
        return None
    archive, name = parts
    members = _directory(archive)
    info = members.get(name) or members.get(unicodedata.normalize("NFC", name))
    if info is None:
        raise ClipRejected("missing", f"there is no {shortened(path.name, 255)} in {archive.name}")
    return Member(archive, info)


@contextlib.contextmanager
def ffmpeg_address(member: Member) -> Iterator[str]:
    """Yields an address under which ffmpeg reads the member. Raises ClipRejected where it cannot be unpacked."""
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
    """`size` and `changed_ns` invalidate the cache when the archive changes."""
    with damage_rejects(archive.name, "unreadable"), zipfile.ZipFile(archive) as opened:
        members = {info.filename: info for info in opened.infolist() if not info.is_dir()}
    # macOS stores letters and their marks apart (NFD): a name is found in any form.
    return {unicodedata.normalize("NFC", name): info for name, info in members.items()} | members


def _content_begins(member: Member) -> int:
    """Returns where a stored member's bytes begin: behind its own header, whose length the directory does not tell."""
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
    with (
        damage_rejects(archive, "corrupt"),
        zipfile.ZipFile(member.archive) as whole,
        whole.open(member.info) as source,
    ):
        while piece := source.read(_PIECE_BYTES):
            file.write(piece)
    file.flush()
