"""Sends the status of a rank to its monitor: finished steps, long phases, failures.

Every process that a launcher starts splits in two (rank_monitor.py): the parent monitors, the child trains. This is the
child's side, which writes JSON lines to a pipe. In a process without a monitor (tests, commands of one rank) every
function does nothing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import IO, Any

_MAX_LINE = 4000
"""Bytes, below PIPE_BUF, so that lines of several threads never mix."""
_COLLECTIVE_WORDS = (
    "gloo/",
    "NCCL",
    "ProcessGroup",
    "transport/tcp",
    "TCPStore",
    "[c10d]",
    "wait timeout after",
)
_COLLECTIVE_ERRORS = {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"}

_pipe: int | None = None
_stacks: IO[bytes] | None = None
_listener: Callable[[dict[str, Any]], None] | None = None
_phases: list[str] = []


def attach(pipe: int, stacks: IO[bytes]) -> None:
    """Set the pipe to the monitor and the shared file of stacks and tracebacks; call it once, in the child."""
    global _pipe, _stacks
    os.set_blocking(pipe, False)  # a stopped monitor must not stop the training
    _pipe, _stacks = pipe, stacks
    faulthandler.enable(stacks)
    faulthandler.register(signal.SIGUSR2, stacks, all_threads=True)


def listen(receive: Callable[[dict[str, Any]], None] | None) -> None:
    """Also pass every message to `receive`, for a process without a monitor; None ends it."""
    global _listener
    _listener = receive


def monitored() -> bool:
    """Returns whether a monitor watches this process."""
    return _pipe is not None


def set_limits(**values: Any) -> None:
    """Send the recipe's `watch` section and the run's folder (`run`)."""
    _send({"limits": values})


def step_done(step: int) -> None:
    """Report a finished step; the next one begins."""
    _phases.clear()
    _send({"step": step})


def report(**figures: float | None) -> None:
    """Send figures for `/metrics` (status_server.METRICS); those that are no finite numbers are left out."""
    finite = {name: value for name, value in figures.items() if value is not None and math.isfinite(value)}
    _send({"figures": finite})


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Mark work that may take long (evaluating, saving, loading); its limit is `watch.long_timeout_s`.

    The limit applies to every rank, since the others may wait for this one in a collective.
    """
    begin_phase(name)
    try:
        yield
    finally:
        if _phases:
            _phases.pop()
        _send({"phase": _phases[-1] if _phases else None})


def begin_phase(name: str) -> None:
    """Begin a long phase, which ends at the next step."""
    _phases.append(name)
    _send({"phase": name})


def done(code: int = 0) -> None:
    """Report that this rank is about to end with `code` (0, or 130 after a requested stop)."""
    _send({"done": code})


def failed(error: BaseException, code: int, permanent: bool) -> None:
    """Report that this rank ends with `code` because of `error`; `permanent` means that a restart would fail alike."""
    own = type(error).__module__.split(".")[0] == "sage_scale"
    text = " ".join(str(error).split()) or type(error).__name__
    if not (permanent or own) and code == 1:
        text = f"{type(error).__name__}: {text}"
    if _stacks is not None:
        _stacks.write("".join(traceback.format_exception(error)).encode("utf-8", "replace"))
        _stacks.flush()
    collective = failed_collective(error)
    _send({"failed": text[:1500], "code": code, "permanent": permanent, "collective": collective, "own": own})


def failed_collective(error: BaseException) -> bool:
    """Returns whether the error is a failed collective, which points to another rank's failure."""
    names = {base.__name__ for base in type(error).__mro__}
    if names & _COLLECTIVE_ERRORS:
        return True
    return "RuntimeError" in names and any(word in str(error) for word in _COLLECTIVE_WORDS)


def _send(message: dict[str, Any]) -> None:
    if _listener is not None:
        _listener(message)
    if _pipe is None:
        return
    line = json.dumps(message).encode()
    if len(line) > _MAX_LINE and "failed" in message:
        line = json.dumps({**message, "failed": message["failed"][:600]}).encode()
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(_pipe, line + b"\n")
