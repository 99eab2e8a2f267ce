"""Opening a video file with PyAV: one decoder thread, no trust in the header, no way out of the file.

Faults of a file's bytes reject its clips; faults of the file system are OSErrors and reject nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import av

from sage_scale.errors import ClipRejected
from sage_scale.untrusted.damage import no_memory
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import is_file
from sage_scale.vision.archives import ffmpeg_address, find_member
from sage_scale.vision.crop import LARGEST_PIXELS

# Playlists and concat scripts are videos to ffmpeg too, and would let a corpus file open other files or addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,mxf,rm"
WAIT_S = 120.0
"""Time limit for ffmpeg to find the next packet of a file before the file system counts as stuck, seconds."""
LARGEST_HOLE = 2**30
"""Largest hole of a file, bytes."""
_HOLES_LOOKED_AT = 1000
_LONGEST_NAME = 255
"""Most characters of a file's name in a message; no file system has longer names."""
BYTES_AT_FAULT = ("unreadable", "corrupt", "truncated", "empty", "no-video")
"""Reasons that hold only if the file system can read the file to its end."""


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[av.container.InputContainer]:
    """Opens a video file, or a member of a zip archive. Raises ClipRejected for ffmpeg's errors, OSError where the file
    cannot be read to its end (permission, a failing disk).
    """
    member = find_member(path)
    _check_holes(path if member is None else member.archive)
    with contextlib.ExitStack() as stack:
        # The prefix keeps a name with a colon from being taken for a protocol.
        address = f"file:{path}" if member is None else stack.enter_context(ffmpeg_address(member))
        yield stack.enter_context(_open(path, address))


@contextlib.contextmanager
def _open(path: Path, address: str) -> Iterator[av.container.InputContainer]:
    try:
        container = av.open(
            address,
            options={"max_pixels": str(LARGEST_PIXELS), "threads": "1", "format_whitelist": CONTAINERS},
            metadata_errors="replace",
            timeout=WAIT_S,
        )
    except av.error.MemoryError:
        raise no_memory("unreadable", f"no memory to open {path}") from None
    except av.error.ExitError:
        raise _stuck(path) from None
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        read_through(path)
        raise ClipRejected("unreadable", ffmpeg_message(error)) from None
    try:
        yield container
    except av.error.ExitError:
        raise _stuck(path) from None
    finally:
        container.close()


def read_through(path: Path) -> None:
    """Raises OSError where the file system cannot read the file.

    Reads the stored parts that were there at the start: neither holes nor bytes that a writer still appends.
    """
    member = find_member(path)
    if member is not None:
        member.read_through()
        return
    with path.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        at = 0
        while at < end:
            at = _next_data(file.fileno(), at)
            if at < 0:
                return
            os.lseek(file.fileno(), at, os.SEEK_SET)
            read = len(file.read(2**22))
            if not read:
                return
            at += read


def _check_holes(path: Path) -> None:
    """Raises ClipRejected for a file with a large hole (an unfinished download), which ffmpeg would search."""
    if not hasattr(os, "SEEK_DATA") or path.stat().st_size <= LARGEST_HOLE:
        return
    with path.open("rb", buffering=0) as file:
        end, at = os.fstat(file.fileno()).st_size, 0
        for _ in range(_HOLES_LOOKED_AT):
            hole = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            at = _next_data(file.fileno(), hole) if hole < end else end
            if (end if at < 0 else at) - hole > LARGEST_HOLE:
                raise ClipRejected("unreadable", f"{hole:,} bytes, then a hole: an unfinished download")
            if at < 0 or at >= end:
                return


def _next_data(file: int, at: int) -> int:
    """Returns the position of the next stored byte, -1 where none follows."""
    if not hasattr(os, "SEEK_DATA"):
        return at
    try:
        return os.lseek(file, at, os.SEEK_DATA)
    except OSError as error:
        return -1 if error.errno == errno.ENXIO else at


def _stuck(path: Path) -> OSError:
    return TimeoutError(errno.ETIMEDOUT, f"nothing was read for {WAIT_S:g} s", str(path))


def check_file(path: Path) -> None:
    """Raises ClipRejected unless the path is a file or a member of an archive."""
    if is_file(path) or find_member(path) is not None:
        return
    if os.path.lexists(path):
        raise ClipRejected("unreadable", f"{path.name} is neither a file nor a folder")
    raise ClipRejected("missing", f"there is no {shortened(path.name, _LONGEST_NAME)}")


def ffmpeg_message(error: Exception) -> str:
    """Returns ffmpeg's message without the path, which would make a reject depend on the machine."""
    return getattr(error, "strerror", None) or str(error).split(":")[0] or type(error).__name__
