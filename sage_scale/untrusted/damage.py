"""Tells damaged bytes, which reject a clip, from faults of the machine, which reject nothing."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from sage_scale.errors import ClipRejected
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import NotRegularFile

PROBE_BYTES = 2**28
"""A machine that can allocate so much is not out of memory."""
_ERRNO_OF_BYTES = (None, errno.EINVAL, errno.EOVERFLOW)
"""Of OSErrors from damaged bytes: bz2 and gzip set none; a damaged directory names positions outside the file."""


@contextlib.contextmanager
def damage_rejects(name: str, reason: str) -> Iterator[None]:
    """Raises ClipRejected with `reason` (`unsupported` for an unknown compression) where damaged bytes make unpacking
    fail. Faults of the machine (an OSError with a number, no memory left) are raised unchanged.
    """
    try:
        yield
    except ClipRejected:
        raise
    except NotRegularFile as error:
        raise ClipRejected("unreadable", f"{name}: {error.strerror}") from None
    except MemoryError:  # lzma asks for what the bytes claim
        raise no_memory(reason, f"no memory to unpack {name}") from None
    except NotImplementedError as error:
        raise ClipRejected("unsupported", f"{name}: {error}") from None
    except Exception as error:  # each decompressor and parser raises its own
        if isinstance(error, OSError) and error.errno not in _ERRNO_OF_BYTES:
            raise
        raise ClipRejected(reason, f"{name}: {shortened(error) or type(error).__name__}") from None


def no_memory(reason: str, words: str) -> Exception:
    """Returns ClipRejected for a file that claims an absurd size, or MemoryError if the machine has no memory left."""
    try:
        bytearray(PROBE_BYTES)
    except MemoryError:
        return MemoryError(words)
    return ClipRejected(reason, "it claims more memory than there is")
