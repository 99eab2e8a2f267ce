"""Finds a clip of a dataset by its id or key."""

from __future__ import annotations

import difflib
import re
from shlex import quote

from sage_scale.errors import UsageError
from sage_scale.shards.dataset import Dataset, read_metadata
from sage_scale.shards.layout import sample_key
from sage_scale.shards.rejects import current_rejects, reject_key
from sage_scale.untrusted.display import shortened

_READ_FOR_NEAR = 2000
"""Most descriptions that are read for the ids that an unknown one resembles."""


class NoClip(UsageError, KeyError):
    """A dataset has no clip of this id or key."""

    __str__ = UsageError.__str__  # that of KeyError quotes the message


def find_row(dataset: Dataset, wanted: str) -> int | None:
    """Returns the row in `dataset.samples()` of a clip's id or key (16 hex digits), None if there is none."""
    keys = dataset.records["key"]
    for key in (wanted.lower(), sample_key(wanted)):
        if re.fullmatch("[0-9a-f]{16}", key):
            rows = (keys == int(key, 16)).nonzero()[0]
            if len(rows):
                return int(rows[0])
    return None


def row_of(dataset: Dataset, wanted: str) -> int:
    """Returns `find_row`. Raises NoClip, with the reason of a rejected clip or the ids that resemble an unknown one."""
    row = find_row(dataset, wanted)
    if row is not None:
        return row
    for unit, reject in current_rejects(dataset):
        if wanted == reject.id or wanted.lower() == reject_key(reject):
            why = f"{reject.reason}: {reject.detail}" if reject.detail else reject.reason
            raise NoClip(
                f"{dataset.url}: clip '{reject.id}' was rejected, nothing of it is stored; the reason in {unit.tar}: "
                f"{why}. Where the cause is mended, `sage-scale precompute --retry-rejects` tries again"
            )
    ids = [str(meta["id"]) for meta in read_metadata(dataset, most=_READ_FOR_NEAR)]
    near = difflib.get_close_matches(wanted[:200], ids, n=3)
    advice = f"did you mean {', '.join(repr(shortened(name)) for name in near)}? " if near else ""
    raise NoClip(
        f"{dataset.url} has no clip '{shortened(wanted)}'; {advice}"
        f"`sage-scale shards ls {quote(dataset.url)} --samples` lists them"
    )
