"""Uploads: a request's body in a file that is deleted after use, within the limits of size, time and type."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from sage_scale.serving.limits import Limits, Refused
from sage_scale.untrusted.files import own_folder

PREFIX = "serve-"
_HEAD = 64
_MARKS = ((4, b"ftyp", ".mp4"), (0, b"\x1a\x45\xdf\xa3", ".mkv"), (8, b"AVI ", ".avi"), (4, b"moov", ".mov"),
          (4, b"mdat", ".mov"), (4, b"wide", ".mov"), (4, b"free", ".mov"), (0, b"OggS", ".ogv"))  # fmt: skip
"""Offset, bytes and suffix of the containers that are taken; .mkv stands for WebM, too."""


@contextlib.contextmanager
def upload_folder():
    """Yields a folder for uploads, gone at the end; those of servers that were killed are deleted."""
    above = own_folder()
    above.mkdir(parents=True, exist_ok=True)
    for left in above.glob(f"{PREFIX}*"):
        process = left.name.removeprefix(PREFIX).partition("-")[0]
        if process.isdecimal() and not os.path.exists(f"/proc/{process}"):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", dir=above) as folder:
        yield Path(folder)


@contextlib.asynccontextmanager
async def received(
    body: AsyncIterator[bytes], length: str | None, folder: Path, limits: Limits
) -> AsyncIterator[Path]:
    """Yields the file of a request's body, whose `length` a header may state, and deletes it. Raises Refused."""
    most = int(limits.megabytes * 1e6)
    too_large = Refused(413, f"the file is larger than {limits.megabytes:,.0f} MB")
    if length is not None and length.isdecimal() and int(length) > most:
        raise too_large
    handle, name = tempfile.mkstemp(dir=folder)
    path = Path(name)
    try:
        head, size = b"", 0
        with os.fdopen(handle, "wb") as file:
            try:
                async with asyncio.timeout(limits.upload_s):
                    async for chunk in body:
                        size += len(chunk)
                        if size > most:
                            raise too_large
                        if len(head) < _HEAD:
                            head += chunk[: _HEAD - len(head)]
                            if len(head) >= _HEAD:
                                container(head)
                        file.write(chunk)
            except TimeoutError:
                raise Refused(408, f"the upload took longer than {limits.upload_s:.0f} s") from None
        path = path.rename(path.with_suffix(container(head)))
        yield path
    finally:
        for left in (path, Path(name)):
            left.unlink(missing_ok=True)


def container(head: bytes) -> str:
    """Returns the suffix of a video file by its first bytes. Raises Refused for another file."""
    for offset, mark, suffix in _MARKS:
        if head[offset : offset + len(mark)] == mark:
            return suffix
    raise Refused(415, "this file is no video that is taken: MP4, WebM, MKV, MOV, AVI or Ogg")
