"""A line for whoever waits while a server does not answer: boto3 repeats in silence, for minutes."""

from __future__ import annotations

import threading
import time
from typing import Any

from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError

from sage_scale.untrusted.printer import logger

log = logger("sage_scale.storage")

TELL_EVERY_S = 60.0
"""At most one line in so many seconds, from all clients of a process."""
SILENT = (ConnectTimeoutError, ReadTimeoutError)
"""What takes long enough to be told of; a refusal comes at once."""
_lock = threading.Lock()
_told = -TELL_EVERY_S


def tell_of_retries(client: Any, where: str, attempts: int) -> None:
    """Have the boto3 client log a warning whenever `where` left a request without an answer that is to be repeated."""

    def tell(caught_exception: Exception | None = None, **said: Any) -> None:
        global _told
        made = int(said.get("attempts", 0))
        if not isinstance(caught_exception, SILENT) or made >= attempts:
            return
        with _lock:
            if time.monotonic() - _told < TELL_EVERY_S:
                return
            _told = time.monotonic()
        log.warning("%s does not answer (%d of %d attempts), asking again", where, made, attempts)

    client.meta.events.register("needs-retry.s3", tell)
