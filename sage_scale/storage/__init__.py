"""One small interface over a folder and S3: get, ranged get, put-if-absent, list."""

from sage_scale.storage.interface import (
    MAX_OBJECT_BYTES,
    Buffer,
    Entry,
    NoBucket,
    NotFound,
    Store,
    Unavailable,
    on_this_machine,
    open_store,
    open_to_write,
)

__all__ = [
    "MAX_OBJECT_BYTES",
    "Buffer",
    "Entry",
    "NoBucket",
    "NotFound",
    "Store",
    "Unavailable",
    "on_this_machine",
    "open_store",
    "open_to_write",
]
