"""One line of JSON that begins with the xxh3-128 of the rest of it, so that a damaged one is never believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xxhash

from sage_scale.shards.layout import canonical_json

_SEAL = b'{"xxh3":"%s",'
_SEAL_BYTES = len(_SEAL % bytes(32))


def seal(values: Mapping[str, Any]) -> bytes:
    """The line: `{"xxh3":"<32 hex digits>",`, then canonical JSON of `values` less its first brace, and a newline."""
    body = canonical_json(values)[1:] + b"\n"
    return _SEAL % xxhash.xxh3_128_hexdigest(body).encode() + body


def unseal(data: bytes) -> tuple[bytes | None, str]:
    """The bytes behind the seal and the hash in it; None where they do not have that hash."""
    digest, body = data[9:41], data[_SEAL_BYTES:]
    if data[:_SEAL_BYTES] != _SEAL % digest or xxhash.xxh3_128_hexdigest(body).encode() != digest:
        return None, ""
    return body, digest.decode("ascii")
