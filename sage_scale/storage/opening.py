"""Opens a store by its URL, and checks paths that must lie on this machine."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sage_scale.errors import StorageError, UsageError
from sage_scale.storage.folder import FolderStore
from sage_scale.storage.store import Store
from sage_scale.untrusted.display import redacted, shortened
from sage_scale.untrusted.files import expanded, text_fault

_URL = re.compile(r"(s3a?|gs|gcs|az|abfss?|hdfs|https?|ftp|file):/", re.IGNORECASE)


def open_store(url: str | Path) -> Store:
    """Returns the store at a folder's path, a file:// URL or s3://bucket/prefix. Contacts and creates nothing.

    For S3 the endpoint, region and credentials come from the environment (AWS_ENDPOINT_URL, AWS_REGION,
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE). Raises UsageError for another kind of URL, and where the
    path is a file.
    """
    text = str(url)
    if not text:
        raise UsageError("an empty path: give a folder or s3://bucket/prefix")
    _check_text(text)
    scheme, sign, rest = text.partition("://")
    shown = redacted(text)
    if isinstance(url, Path) or not sign:
        if _URL.match(text):
            raise UsageError(
                f"{shown} is neither a folder nor a URL: write s3://bucket/prefix, with two slashes"
            )
        return _open_folder(text)
    if scheme == "file":
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise UsageError(f"{shown}: a file:// URL names a path of this machine, file:///path")
        return _open_folder(unquote(parts.path, errors="surrogateescape"))
    if scheme == "s3":
        if shown != text:
            raise UsageError(
                f"{shown}: an S3 URL is s3://bucket/prefix, without user, password or query: credentials belong in "
                "the AWS_* variables or in a profile (AWS_PROFILE)"
            )
        from sage_scale.storage.s3 import S3Store  # boto3 takes half a second to import

        bucket, _, prefix = rest.partition("/")
        if not bucket:
            raise UsageError(f"{shown}: name a bucket, s3://bucket/prefix")
        return S3Store(bucket, prefix.strip("/"))
    raise UsageError(
        f"{shown}: '{shortened(scheme)}://' is not supported; give a folder, file:///path or s3://bucket/prefix"
    )


def open_to_write(url: str | Path) -> Store:
    """Returns `open_store(url)`. Raises UsageError where nothing can be written there."""
    store = open_store(url)
    try:
        store.check_writable()
    except StorageError as error:
        raise UsageError(str(error)) from None
    return store


def on_this_machine(path: str | Path, what: str) -> Path:
    """Returns a path of this machine. `what` names its content in messages ("a run").

    Raises UsageError for a URL, which would become a folder named `s3:` (also `s3:/bucket`: a Path of a URL has one
    slash left), and for a name that no file can have: too long, below a file, links in a circle.
    """
    if _URL.match(str(path)):
        raise UsageError(
            f"{redacted(str(path))} is not a local folder or file: {what} must lie on this machine"
        )
    _check_text(str(path))
    _mode(expanded(path))
    return Path(path)


def _open_folder(text: str) -> FolderStore:
    _check_text(text)
    path = expanded(text)
    _check_text(os.path.abspath(path))
    mode = _mode(path)
    if mode and not stat.S_ISDIR(mode):
        raise UsageError(f"{path} is a file: name the folder that holds, or shall hold, the data")
    return FolderStore(path)


def _mode(path: Path) -> int:
    """Returns the mode of an expanded path, 0 where it is missing. Raises UsageError for an impossible name."""
    if str(path).startswith("~") and not os.path.lexists(path):
        fault = (
            "there is no user of that name" if len(path.parts[0]) > 1 else "there is no home, HOME is not set"
        )
        raise UsageError(f"{shortened(path)}: {fault}: give another path")
    try:
        return path.stat().st_mode
    except OSError as error:  # the reader or writer of the path reports every other error
        if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP):
            raise UsageError(f"{shortened(path)}: {error.strerror}: give another path") from None
        return 0


def _check_text(path: str) -> None:
    if fault := text_fault(path):
        raise UsageError(f"'{shortened(path)}' is no path or URL in UTF-8: it has {fault}")
