"""What a rank tells the sentinel that watches it: steps done, long work begun, how it failed.

Every process that a launcher starts splits in two (split.py): the parent watches, the child trains. Here is the
child's side, a few lines into a pipe. Where nobody watches (a stage run in this process, as tests and one-rank
commands do) every function does nothing, so the loop need not ask.
"""

from __future__ import annotations

import contextlib
import json
import os
import traceback
from collections.abc import Iterator
from typing import IO, Any

_LINE = 4000
"""Longest line, bytes: below PIPE_BUF, so that lines of several threads never mix."""
_SECOND_HAND = ("gloo/", "NCCL", "ProcessGroup", "transport/tcp", "TCPStore", "[c10d]", "wait timeout after")
"""Words of a failed collective: another rank is to blame, most likely."""

_pipe: int | None = None
_stacks: IO[bytes] | None = None
_phases: list[str] = []


def attach(pipe: int, stacks: IO[bytes]) -> None:
    """Called once in the child: where to write, and the file shared with the sentinel for stacks and tracebacks."""
    global _pipe, _stacks
    os.set_blocking(pipe, False)  # a stopped sentinel must not stop the training
    _pipe, _stacks = pipe, stacks


def monitored() -> bool:
    """Whether a sentinel watches this process."""
    return _pipe is not None


def set_limits(**seconds: Any) -> None:
    """The time limits of the recipe's `watch` section, and the folder of the stage for what is found out."""
    _tell({"limits": seconds})


def step_done(step: int) -> None:
    """A step is done; what follows is the next one."""
    _phases.clear()
    _tell({"step": step})


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Work that may take long (evaluating, saving, loading): `watch.long_timeout_s` holds for it, on every rank.

    It is enough that one rank is in such a phase: the others may wait for it in a collective.
    """
    begin_phase(name)
    try:
        yield
    finally:
        if _phases:
            _phases.pop()
        _tell({"phase": _phases[-1] if _phases else None})


def begin_phase(name: str) -> None:
    """A long phase that the next step ends."""
    _phases.append(name)
    _tell({"phase": name})


def done(code: int = 0) -> None:
    """This rank has nothing left to do but to end with `code` (0, or 130: saved and stopped as asked)."""
    _tell({"done": code})


def failed(error: BaseException, code: int, permanent: bool) -> None:
    """This rank ends with `code` because of `error`; `permanent`: starting again would end the same way."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not permanent and code == 1 and type(error).__module__.split(".")[0] != "sage_scale":
        text = f"{type(error).__name__}: {text}"
    if _stacks is not None:
        _stacks.write("".join(traceback.format_exception(error)).encode("utf-8", "replace"))
        _stacks.flush()
    _tell(
        {
            "failed": text[:1500],
            "code": code,
            "permanent": permanent,
            "second_hand": second_hand(error),
            "own": type(error).__module__.split(".")[0] == "sage_scale",
        }
    )


def second_hand(error: BaseException) -> bool:
    """Whether a collective failed, which says that another rank is gone rather than what is wrong with this one."""
    names = {base.__name__ for base in type(error).__mro__}
    if names & {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"}:
        return True
    return "RuntimeError" in names and any(word in str(error) for word in _SECOND_HAND)


def _tell(message: dict[str, Any]) -> None:
    if _pipe is None:
        return
    line = json.dumps(message).encode()
    if len(line) > _LINE and "failed" in message:
        line = json.dumps({**message, "failed": message["failed"][:600]}).encode()
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(_pipe, line + b"\n")
