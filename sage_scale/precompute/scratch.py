"""Temporary folders of precompute on this machine: of Ray, and of tars that are yet to be stored.

What a killed run leaves in them is removed by the next one. A folder is in use as long as a process holds its lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sage_scale.errors import UsageError

_SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux (104 on macOS)."""
_PREFIX = f"sage-ray-{os.getuid()}-"
_RAY_BYTES = len(f"/{_PREFIX}12345678/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""What our folder and Ray append to the temporary folder."""


@contextlib.contextmanager
def ray_folder() -> Iterator[Path]:
    """A folder for one session of Ray, held while it is used and removed where that ends well.

    It lies in $TMPDIR, or where sockets there would have too long a name for Ray, in /tmp or /var/tmp. Raises
    UsageError where none of them can be used.
    """
    base = _short_base()
    for old in base.glob(f"{_PREFIX}*"):
        _remove_if_left(old)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():  # no other process took it for an old one meanwhile
            break
        os.close(lock)
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _short_base() -> Path:
    named = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    for place in (named, "/tmp", "/var/tmp"):
        # Ray's own programs take the path as ASCII.
        fits = place.isascii() and len(os.fsencode(os.path.abspath(place))) + _RAY_BYTES <= _SOCKET_BYTES
        if fits and os.access(place, os.W_OK | os.X_OK):
            return Path(os.path.abspath(place))
    raise UsageError(
        f"Ray needs a temporary folder with a path of at most {_SOCKET_BYTES - _RAY_BYTES} ASCII characters: set "
        "TMPDIR to one that may be written, such as /tmp"
    )


def _remove_if_left(folder: Path) -> None:
    """Remove the folder of a run that was killed: it is ours, and no process holds it."""
    with contextlib.suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(lock).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def scratch_folder() -> Path:
    """The folder in which this machine's actors write tars before they are stored; files of dead actors are removed.

    Raises UsageError where it is a link or was made by another user, who could exchange what is in it.
    """
    folder = Path(tempfile.gettempdir()) / f"sage-scale-precompute-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UsageError(
            f"{folder} is a link or was made by another user: set TMPDIR to a folder of your own"
        )
    folder.chmod(0o700)
    for file in folder.glob("*.tar"):
        with contextlib.suppress(ValueError, OSError):
            if not _is_alive(int(file.name.partition("-")[0])):
                file.unlink()
    return folder


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
