"""One small interface over a folder and S3: get, ranged get, put-if-absent, list."""

from sage_scale.storage.opening import on_this_machine, open_store, open_to_write
from sage_scale.storage.store import (
    MAX_OBJECT_BYTES,
    Buffer,
    Entry,
    NoBucket,
    NotFound,
    Store,
    Unavailable,
    Unconditional,
)
