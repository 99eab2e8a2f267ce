"""Opening a video file with PyAV: one decoder thread, no trust in the header, no way out of the file.

What ffmpeg says against the bytes of a file rejects its clips; what the file system says against reading them does not.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import av

from sage_scale.errors import ClipRejected
from sage_scale.vision.archives import find_member, opened
from sage_scale.vision.crop import LARGEST_PIXELS

# Playlists and concat scripts are videos to ffmpeg too, and would let a corpus file open other files or
# addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,h264,hevc,mxf,rm"
WAIT_S = 120.0
"""How long ffmpeg may search a file for its next packet before the file system is taken to be stuck, seconds."""
SOME_BYTES = 2**28
"""A machine that can give so much at once is not out of memory."""
LARGEST_HOLE = 2**30
"""Bytes that a file may claim without having them."""
_HOLES_LOOKED_AT = 1000
BYTES_AT_FAULT = ("unreadable", "corrupt", "truncated", "empty", "no-video")
"""Reasons that hold only if the file could be read to its end."""


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a video file, or a member of a zip archive, for reading; what ffmpeg says against it becomes ClipRejected.

    A file that cannot be read to its end (permission, a failing disk) is an OSError instead: nothing is known
    of it.
    """
    member = find_member(path)
    _check_holes(path if member is None else member.archive)
    with contextlib.ExitStack() as stack:
        # The prefix keeps a name with a colon from being taken for a protocol.
        address = f"file:{path}" if member is None else stack.enter_context(opened(member))
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
        raise ClipRejected("unreadable", words(error)) from None
    try:
        yield container
    except av.error.ExitError:
        raise _stuck(path) from None
    finally:
        container.close()


def read_through(path: Path) -> None:
    """Raise OSError where the file system, rather than the file, is at fault.

    Reads what is stored of the file and was there when it began: neither holes nor what somebody still appends.
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
    """Refuse a file with a large hole: a download that reserved its space and never came. ffmpeg would search the hole,
    byte by byte, for more video."""
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
    """Where the next stored byte is, -1 where none follows."""
    if not hasattr(os, "SEEK_DATA"):
        return at
    try:
        return os.lseek(file, at, os.SEEK_DATA)
    except OSError as error:
        return -1 if error.errno == errno.ENXIO else at


def _stuck(path: Path) -> OSError:
    return TimeoutError(errno.ETIMEDOUT, f"nothing was read for {WAIT_S:g} s", str(path))


def check_file(path: Path) -> None:
    """Raise ClipRejected where no video can be there: `missing`, or neither a file nor a member of an archive."""
    if path.is_file() or find_member(path) is not None:
        return
    if os.path.lexists(path):
        raise ClipRejected("unreadable", f"{path.name} is neither a file nor a folder")
    raise ClipRejected("missing", f"there is no {path.name}")


def probe_video(path: Path) -> tuple[float, float]:
    """Duration in seconds (0 if the header does not say) and frame rate of a video file, from its header
    alone. Raises ClipRejected for what is no video file, OSError where it cannot be read."""
    check_file(path)
    with open_video(path) as container:
        stream = video_stream(container)
        return duration_s(container, stream) or 0.0, float(stream.average_rate or stream.guessed_rate or 0)


def video_stream(container):
    """The first video stream, set to one thread. Raises ClipRejected where there is none, or no decoder for it."""
    streams = container.streams.video
    if not streams:
        raise ClipRejected("no-video", f"{len(container.streams)} streams, none of them video")
    stream = streams[0]
    if stream.codec_context is None:
        raise ClipRejected("unreadable", "no decoder for this video codec")
    with contextlib.suppress(av.error.FFmpegError, RuntimeError):
        stream.codec_context.thread_count = 1
        stream.thread_type = "NONE"
    return stream


def no_memory(reason: str, words: str) -> Exception:
    """What ffmpeg's lack of memory means: a file that claims an absurd size, unless there is none left indeed."""
    try:
        bytearray(SOME_BYTES)
    except MemoryError:
        return MemoryError(words)
    return ClipRejected(reason, "it claims more memory than there is")


def duration_s(container, stream) -> float | None:
    """What the header says of the length, seconds; None where it says nothing."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return container.duration / av.time_base
    return None


def words(error: Exception) -> str:
    """ffmpeg's message without the path, which would make a reject depend on the machine."""
    return getattr(error, "strerror", None) or str(error).split(":")[0] or type(error).__name__
