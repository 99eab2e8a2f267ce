"""Starts the ranks of this node, passes signals on to them, and returns their exit code; also as process 1.

Nothing here imports torch: a process that starts ranks need not become one. node.py says which ranks are this node's,
hostfile.py starts those of several machines by ssh, restarts.py starts a failed run again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sage_scale.config import LAUNCH_FOLDER, recipe_names
from sage_scale.errors import UsageError
from sage_scale.training.monitor.rank_monitor import ENDED_FILE
from sage_scale.training.monitor.rank_process import LAUNCHER_PID
from sage_scale.training.monitor.stop_requests import SAME_S
from sage_scale.training.node import Node
from sage_scale.training.run_place import run_place
from sage_scale.untrusted.files import read_bytes
from sage_scale.untrusted.json_values import parse_json_object

TICK_S = 0.1
FAILED_S = 30.0
"""Time to end for the other ranks of this node after one has failed, and after a second request to stop, seconds."""
_STOPS = (signal.SIGINT, signal.SIGTERM)


def recipe_of_run(run: str | Path, recipe: str) -> str:
    """Returns the named recipe, else the one stored with the run. Raises UsageError without either."""
    if recipe:
        return recipe
    stored = run_place(run).stored_recipe()
    if stored.is_file():
        return str(stored)
    known = ", ".join(recipe_names())
    raise UsageError(f"{run} has no recipe.yaml yet: name a recipe with --recipe ({known})")


def profile_overrides(stage: str) -> list[str]:
    """Returns the recipe overrides of `--profile`, which trace a few steps."""
    return [f"{stage}.profile_steps=3"]


def environment() -> dict[str, str]:
    """Returns the environment of ranks: this interpreter's programs first on PATH (DeepSpeed needs ninja)."""
    here = str(Path(sys.executable).parent)
    path = os.pathsep.join([here, os.environ.get("PATH", "")])
    quiet = {"DS_LOG_LEVEL": "error", "PYTHONWARNINGS": "ignore"}
    with contextlib.suppress(PackageNotFoundError):
        if version("torch").endswith("+cpu"):
            quiet["DS_ACCELERATOR"] = "cpu"  # DeepSpeed would guess, and warn that it did
    return {**quiet, **os.environ, "PATH": path}


def free_port() -> int:
    """Returns an unused port of the loopback address."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@dataclass(frozen=True)
class AttemptResult:
    """The result of one attempt to train a stage."""

    code: int
    asked: bool = False
    """Whether this process was asked to stop."""
    node: int = 0
    """Node rank of this machine."""
    why: dict[str, Any] = field(default_factory=dict)
    """The diagnosis of rank 0's monitor (diagnosis.py); empty without one."""

    @property
    def line(self) -> str:
        """Returns the diagnosis in one line."""
        reason = "see the output of node 0" if self.node else "and none said why"
        return str(self.why.get("line") or f"the ranks ended with exit code {self.code}, {reason}")


def start_node(node: Node, stage: str, arguments: Sequence[object], record: Path) -> AttemptResult:
    """Run this node's ranks of a stage (pretrain, finetune) until all have ended.

    SIGINT and SIGTERM reach the ranks' monitors alone, and every rank of the job saves and stops; a second request ends
    them at once. `record` is the stage's `ended.json`, for a node without rank 0.
    """
    command = [sys.executable, str(LAUNCH_FOLDER / f"{stage}.py"), *map(str, arguments)]
    # A port of its own: two runs on one machine must not meet on a fixed one.
    port = node.port or free_port()
    with attempt_record(record) as (variables, result):
        given = {**environment(), **variables}
        children: list[subprocess.Popen[bytes]] = []

        def ask(repeated: bool) -> None:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(signal.SIGTERM)

        with StopSignals(ask) as stop:
            try:
                for rank in range(node.ranks):
                    ranked = {**given, **node.rank_variables(rank, port)}
                    children.append(start_blocked(command, ranked))
                if stop.asked:
                    ask(repeated=False)  # those that started since
                code = wait_for_all(children, stop)
            finally:
                _kill(children)
        return replace(result(code, stop.asked), node=node.node_rank)


def start_blocked(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a rank in a session of its own, in which SIGTERM waits until its monitor can handle it."""
    # Else a request within the first second kills the process, and the other nodes wait for a rank that never came.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def wait_for_all(children: Sequence[subprocess.Popen[bytes]], stop: StopSignals) -> int:
    """Wait until all processes have ended; returns the code of the first that failed, else 130 or 0.

    Those that run on FAILED_S after a failure, or after a second request to stop, are killed.
    """
    failed: int | None = None
    end: float | None = None
    ended: set[int] = set()
    while len(ended) < len(children):
        time.sleep(TICK_S)
        for child in children:
            code = child.poll()
            if code is None or child.pid in ended:
                continue
            ended.add(child.pid)
            if code in (0, 130) or (stop.asked and code in (-signal.SIGTERM, -signal.SIGINT)):
                continue
            failed, end = (code, time.monotonic() + FAILED_S) if failed is None else (failed, end)
        _reap_orphans({child.pid for child in children})
        if stop.repeated is not None:
            end = min(end or float("inf"), stop.repeated + FAILED_S)
        if end is not None and time.monotonic() > end:
            _kill(children)
    if failed is not None:
        return failed if failed > 0 else 1
    return 130 if any(child.returncode for child in children) else 0


def _kill(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _reap_orphans(own: set[int]) -> None:
    """Clear ended processes that the kernel has given to process 1 of a container (loader workers of a killed rank)."""
    if os.getpid() != 1:
        return
    with contextlib.suppress(ChildProcessError):  # there is no child at all
        look = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while (orphan := os.waitid(os.P_ALL, 0, look)) and orphan.si_pid not in own:
            os.waitpid(orphan.si_pid, 0)


class StopSignals:
    """Counts the requests to stop that reach this process, and passes each on by `ask(repeated)`."""

    def __init__(self, ask: Callable[[bool], None]) -> None:
        self.ask = ask
        self.asked = False
        self.repeated: float | None = None
        """Time of the second request."""
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._receive) for number in _STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.asked and now - self._first < SAME_S:
            return  # one request, as the ranks take it: they are saving
        if self.asked:
            self.repeated = now
        else:
            self.asked, self._first = True, now
        self.ask(self.repeated is not None)


@contextlib.contextmanager
def attempt_record(
    record: Path | None,
) -> Iterator[tuple[dict[str, str], Callable[[int, bool], AttemptResult]]]:
    """Yields the environment variables of an attempt's ranks, and the function that makes its result.

    `record` is the stage's `ended.json`, written by ranks that do not share this machine's temporary folder.
    """
    old = _read(record)
    with tempfile.TemporaryDirectory(prefix="sage-scale-") as folder:
        ended = Path(folder) / "ended.json"

        def result(code: int, asked: bool) -> AttemptResult:
            why = _read(ended) or (now if (now := _read(record)) != old else {})
            return AttemptResult(int(why.get("code", code)) if code else 0, asked, why=why)

        yield {LAUNCHER_PID: str(os.getpid()), ENDED_FILE: str(ended)}, result


def _read(path: Path | None) -> dict[str, Any]:
    if path is not None:
        with contextlib.suppress(OSError, ValueError):
            return parse_json_object(read_bytes(path))
    return {}
