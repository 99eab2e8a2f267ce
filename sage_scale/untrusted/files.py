"""Opens regular files only, and reads text files as lines that end at a line feed alone."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)

_NO_SUCH_NAME = (
    errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL,
)  # fmt: skip


class NotRegularFile(OSError):
    """The path names a FIFO, a device or a socket. Reading it could block for ever or never end."""


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a regular file for reading, links followed. Never blocks.

    Raises NotRegularFile for FIFOs, devices and sockets, IsADirectoryError for folders, other OSErrors as `open`.
    """
    return os.fdopen(open_descriptor(path), "rb")


def open_descriptor(path: str | Path) -> int:
    """Returns a descriptor of a regular file, for reading, as `open_regular` opens it; the caller closes it."""
    try:  # O_NONBLOCK: opening a FIFO would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # opening a socket
            raise NotRegularFile(errno.EINVAL, "a socket, not a regular file", str(path)) from None
        raise
    try:
        check_regular(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def mode_of(path: str | Path) -> int:
    """Returns the mode (of os.stat, links followed) of a path; 0 where no file can have such a name.

    Names that are too long, hold a NUL, lead through a file or in a circle name nothing. Raises other
    OSErrors (permission, a failing disk).
    """
    try:
        return os.stat(path).st_mode
    except ValueError:  # a NUL, or a character that the file system cannot encode
        return 0
    except OSError as error:
        if error.errno in _NO_SUCH_NAME:
            return 0
        raise


def expanded(path: str | Path) -> Path:
    """Returns a path with `~` as the home folder. `~name` of an unknown user stays as it is, and is not there."""
    return Path(os.path.expanduser(path))


def own_folder() -> Path:
    """Returns this user's folder for working files, in $TMPDIR, else in /var/tmp; makes it, closed to others.

    Not /tmp, which is memory on many systems. Raises PermissionError where another user made it, other OSErrors as
    mkdir.
    """
    disk = "/var/tmp" if os.path.isdir("/var/tmp") else tempfile.gettempdir()
    folder = Path(os.environ.get("TMPDIR") or disk) / f"sage-scale-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it was made by another user", str(folder))
    return folder


def is_file(path: str | Path) -> bool:
    """Returns whether a path names a regular file, links followed. Errors as `mode_of`."""
    return stat.S_ISREG(mode_of(path))


def is_folder(path: str | Path) -> bool:
    """Returns whether a path names a folder, links followed. Errors as `mode_of`."""
    return stat.S_ISDIR(mode_of(path))


def check_regular(mode: int, path: str | Path) -> None:
    """Raises NotRegularFile or IsADirectoryError unless `mode` (of os.stat) is that of a regular file."""
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = next((name for test, name in _KINDS if test(mode)), "a special file")
    raise NotRegularFile(errno.EINVAL, f"{kind}, not a regular file", str(path))


def read_bytes(path: str | Path, at_most: int | None = None) -> bytes:
    """Returns the bytes of a regular file. Errors as `open_regular`, and OSError (EFBIG) beyond `at_most` bytes."""
    with open_regular(path) as file:
        if at_most is not None and (size := os.fstat(file.fileno()).st_size) > at_most:
            raise OSError(errno.EFBIG, f"{size:,} bytes, more than {at_most:,}", str(path))
        return file.read()


def read_text(path: str | Path, at_most: int | None = None) -> str:
    """Returns the text of a UTF-8 file, or of a UTF-16 file with its byte order mark; the mark is removed.

    Raises UnicodeDecodeError, and OSError as `read_bytes`. Text decoded so holds no lone surrogates.
    """
    data = read_bytes(path, at_most)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


def lines(text: str) -> list[str]:
    """Returns the lines of a text. They end at "\\n" alone; carriage returns before it are removed.

    `str.splitlines` also ends lines at U+2028, U+0085 and form feeds, which occur within sentences. A text without any
    "\\n" but with "\\r" (spreadsheets of old Macintoshes) is split at "\\r".
    """
    mark = "\r" if "\r" in text and "\n" not in text else "\n"
    found = text.split(mark)
    return [line.rstrip("\r") for line in (found[:-1] if found[-1] == "" else found)]


def text_fault(text: str) -> str:
    """Returns the reason why a string cannot be stored as text ("a NUL", "a lone surrogate"), else ""."""
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "a lone surrogate, which is not a character"
    return ""
