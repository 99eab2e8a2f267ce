"""The bytes of a shard that lies somewhere: mapped where it is a file, fetched where it is remote."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sage_scale.errors import DatasetError, StorageError
from sage_scale.storage import Store
from sage_scale.untrusted.files import open_regular

_PIECE_BYTES = 16 << 20


@contextmanager
def mapped(path: Path, where: str = "") -> Iterator[memoryview]:
    """The bytes of a regular file, mapped read-only; messages call it `where`, or by its path."""
    where = where or str(path)
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as area:
            view = memoryview(area)
            try:
                yield view
            finally:
                view.release()
    except FileNotFoundError:
        raise DatasetError(f"{where} does not exist") from None
    except ValueError:  # mmap refuses an empty file
        raise DatasetError(f"{where} is empty: it was cut off") from None
    except OSError as error:
        raise StorageError(f"{where} cannot be read: {error.strerror}") from None


@contextmanager
def stored_tar(store: Store, name: str) -> Iterator[memoryview]:
    """The bytes of a stored tar: mapped where it is a local file, else fetched in pieces to a temporary one.

    Raises NotFound, StorageError, and DatasetError for an empty one.
    """
    path, where = store.local_path(name), f"{store.url}/{name}"
    if path is not None:
        store.size(name)  # NotFound rather than an error of the mapping
        with mapped(path, where) as view:
            yield view
        return
    total = store.size(name)
    with tempfile.NamedTemporaryFile(prefix="sage-scale-", suffix=".tar") as file:
        try:
            for offset in range(0, total, _PIECE_BYTES):
                file.write(store.get_range(name, offset, min(_PIECE_BYTES, total - offset)))
            file.flush()
        except OSError as error:
            raise StorageError(
                f"{file.name} cannot be written: {error.strerror}; set TMPDIR to a larger disk"
            ) from None
        with mapped(Path(file.name), where) as view:
            yield view
