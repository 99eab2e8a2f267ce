"""Splits of corpora that publish none: decided for each group of clips alone, by the hash of its name.

A group is a video, a channel or a broadcast. The first eight bytes of sha256(name) as a share of 2^64 fall into
[0, test_share): test, [test_share, test_share + dev_share): dev, else train. So a group keeps its split whatever
else was downloaded, on every machine, and in a later release.
"""

from __future__ import annotations

import hashlib

NAMES = {"train": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev", "test": "test"}
"""What publishers call their splits -> what they are called here."""


def split_of(group: str, dev_share: float, test_share: float) -> str:
    """train, dev or test for all clips of `group`."""
    share = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    if share < test_share:
        return "test"
    return "dev" if share < test_share + dev_share else "train"
