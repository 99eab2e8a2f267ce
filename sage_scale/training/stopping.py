"""Stop requests by signal: the current step is finished and saved first."""

from __future__ import annotations

import contextlib
import signal
import time
from types import FrameType
from typing import Any

from sage_scale.errors import SageError


class Interrupted(SageError):
    """The stage was asked to stop, saved, and can be resumed by the same command."""

    exit_code = 130


SAME_S = 5.0
"""Signals within this time are one request: a Ctrl-C comes from the terminal, from DeepSpeed's launcher and from the
rank monitor, within a second, seconds."""


class StopRequest:
    """Records SIGINT and SIGTERM; a repeated signal ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Outside of the main thread there are no signals: the caller has its own way to stop.
            with contextlib.suppress(ValueError):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.asked and time.monotonic() - self._since > SAME_S:
            raise KeyboardInterrupt
        if not self.asked:
            self._since = time.monotonic()
        self.asked = True
