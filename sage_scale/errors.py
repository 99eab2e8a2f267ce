"""The few exceptions a user meets. Each message names the fault, its location and the remedy.

The command line turns them into one line on stderr and an exit code (docs/reference.md, "Exit codes"):
0 done; 2 wrong usage; 3 too many rejects; 4 work units left open; 1 anything else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def debugging() -> bool:
    """Returns whether SAGE_DEBUG asks for tracebacks."""
    return os.environ.get("SAGE_DEBUG", "") not in ("", "0")


class SageError(Exception):
    """Base of every error with a message for a person: one line, no traceback."""

    exit_code = 1


class UsageError(SageError):
    """The command, a path or an argument is wrong; nothing was started."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has an unknown key, a wrong type or values that contradict each other."""


class StorageError(SageError):
    """A folder or object store cannot be read or written (credentials, network, disk full)."""


class DatasetError(SageError):
    """Shards, index or markers are missing, damaged or of another recipe; names shard and sample."""


class NoDataset(DatasetError):
    """The given path or URL holds no dataset at all: a wrong path, not damage."""

    exit_code = 2


class OtherDataset(DatasetError):
    """The dataset was made with other values of recipe keys than were asked for: the wrong dataset or key."""

    exit_code = 2


class CheckpointError(SageError):
    """A checkpoint or model folder is missing, incomplete or of another shape."""


class NoModel(CheckpointError):
    """The given path holds no trained model: a wrong path, or too early."""

    exit_code = 2


class TooManyRejects(SageError):
    """More clips were rejected than `shards.max_reject_rate` allows, or none was left."""

    exit_code = 3


class UnitsOpen(SageError):
    """Some work units could not be finished; the same command resumes."""

    exit_code = 4


class ClipRejected(Exception):
    """A clip that cannot be used, for a reason that lies in its own bytes (never in the machine).

    `reason` is a short stable word (`unreadable`, `empty`, `too-short`, ...), `detail` one line for a person.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Reject:
    """A clip, or a row of a corpus, that cannot be used; a short stable reason, and one line of detail."""

    id: str
    reason: str
    detail: str = ""

    @property
    def expected(self) -> bool:
        """Whether nothing went wrong (`is_expected`)."""
        return is_expected(self.reason)


def is_expected(reason: str) -> bool:
    """Returns whether a reject was asked for by the recipe, is gone from the web, or is a file that is no clip."""
    return reason.startswith("filter-") or reason in ("not-downloaded", "unmatched", "chapter")


def or_rejected(work: Callable[..., T], *arguments: Any, **options: Any) -> T | ClipRejected:
    """Returns the result of `work`, or the ClipRejected that it raised."""
    try:
        return work(*arguments, **options)
    except ClipRejected as rejected:
        return rejected
