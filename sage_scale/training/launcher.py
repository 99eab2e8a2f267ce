"""DeepSpeed's launcher: its command line on one machine or many, its environment, and signals to its ranks.

Nothing here imports torch: a process that starts ranks need not become one. restarts.py starts a failed run again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from sage_scale.config import LAUNCH_FOLDER, recipe_names
from sage_scale.config.extension import PLUGINS
from sage_scale.errors import UsageError
from sage_scale.storage import on_this_machine
from sage_scale.training.monitor.heartbeat import request_stop
from sage_scale.training.monitor.rank_monitor import ENDED_FILE
from sage_scale.training.monitor.rank_process import LAUNCHER_PID, end_with_parent
from sage_scale.training.monitor.stop_requests import SAME_S
from sage_scale.untrusted.files import read_bytes
from sage_scale.untrusted.json_values import parse_json_object

FORWARDED = (
    "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "DS_ACCELERATOR", "DS_LOG_LEVEL", "SAGE_DEBUG", "SAGE_WATCHDOG", PLUGINS,
    ENDED_FILE, "HF_HOME", "HF_HUB_OFFLINE", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL",
)  # fmt: skip
"""Environment variables for the ranks on other hosts, besides NCCL_* and PYTHON*, which DeepSpeed passes on itself.
None is a secret: every user can read the command line of ssh."""
_HOST = re.compile(r"^(?P<name>\S+)\s+slots=(?P<slots>\d+)$")
_SSH = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"
"""An ssh to a host whose link is cut ends after 15 s instead of hours, and pdsh and `deepspeed` with it."""


def recipe_of_run(run: str | Path, recipe: str) -> str:
    """Returns the named recipe, else the one stored with the run. Raises UsageError without either."""
    stored = on_this_machine(run, "a run") / "recipe.yaml"
    if recipe:
        return recipe
    if stored.is_file():
        return str(stored)
    known = ", ".join(recipe_names())
    raise UsageError(f"{run} has no recipe.yaml yet: name a recipe with --recipe ({known})")


def profile_overrides(stage: str) -> list[str]:
    """Returns the recipe overrides of `--profile`, which trace a few steps."""
    return [f"{stage}.profile_steps=3"]


def command(stage: str, ranks: int, arguments: Sequence[object]) -> list[str]:
    """Returns the command line that starts a stage (pretrain, finetune) on `ranks` processes of this machine."""
    # A port of its own: two runs on one machine must not meet on a fixed one.
    return _deepspeed(stage, ["--log_level", "critical", "--num_gpus", ranks], free_port(), arguments)


def _deepspeed(stage: str, options: Sequence[object], port: int, arguments: Sequence[object]) -> list[str]:
    program = shutil.which("deepspeed") or Path(sys.executable).with_name("deepspeed")
    script = LAUNCH_FOLDER / f"{stage}.py"
    return [str(word) for word in (program, *options, "--master_port", port, script, *arguments)]


@dataclass(frozen=True)
class Hosts:
    """The machines of a DeepSpeed hostfile: lines `NAME slots=PROCESSES`, reached by pdsh over ssh."""

    path: Path
    slots: dict[str, int]
    address: str
    """Address of rank 0, reachable from the other hosts."""

    @classmethod
    def read(cls, path: Path, address: str = "") -> Hosts:
        """Read a hostfile. Raises UsageError naming the wrong line."""
        if not path.is_file():
            raise UsageError(f"there is no hostfile {path}")
        slots: dict[str, int] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            text = line.split("#")[0].strip()
            if not text:
                continue
            match = _HOST.match(text)
            if match is None or int(match["slots"]) < 1 or match["name"] in slots:
                raise UsageError(f"{path}, line {number}: '{text}' is no new 'HOST slots=N'")
            slots[match["name"]] = int(match["slots"])
        if not slots:
            raise UsageError(f"{path} names no host")
        return cls(path, slots, address or next(iter(slots)).rpartition("@")[2])

    @property
    def world(self) -> int:
        """Returns the number of ranks."""
        return sum(self.slots.values())

    def command(self, stage: str, arguments: Sequence[object], port: int) -> list[str]:
        """Returns the command line that starts a stage on all hosts. Raises UsageError without pdsh."""
        if shutil.which("pdsh") is None:
            raise UsageError("--hostfile needs pdsh and ssh (Debian: apt-get install pdsh openssh-client)")
        options = ["--hostfile", self.path, "--launcher", "pdsh", "--no_ssh_check", "--force_multi"]
        return _deepspeed(stage, [*options, "--master_addr", self.address], port, arguments)


def environment() -> dict[str, str]:
    """Returns the environment of a launcher: this interpreter's programs first on PATH (DeepSpeed needs ninja)."""
    here = str(Path(sys.executable).parent)
    path = os.pathsep.join([here, os.environ.get("PATH", "")])
    quiet = {"DS_LOG_LEVEL": "error", "PYTHONWARNINGS": "ignore"}
    with contextlib.suppress(PackageNotFoundError):
        if version("torch").endswith("+cpu"):
            quiet["DS_ACCELERATOR"] = "cpu"  # DeepSpeed would guess, and warn that it did
    ssh = f"{os.environ.get('PDSH_SSH_ARGS_APPEND', '')} {_SSH}".strip()
    return {**quiet, **os.environ, "PATH": path, "PDSH_SSH_ARGS_APPEND": ssh}


def free_port() -> int:
    """Returns an unused port of the loopback address."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def random_port() -> int:
    """Returns a random port below the ephemeral range, for rank 0 on another machine."""
    return random.randrange(20000, 29900)


@dataclass(frozen=True)
class AttemptResult:
    """The result of one attempt to train a stage."""

    code: int
    asked: bool = False
    """Whether this process was asked to stop."""
    why: dict[str, Any] = field(default_factory=dict)
    """The diagnosis of rank 0's monitor (diagnosis.py); empty without one."""

    @property
    def line(self) -> str:
        """Returns the diagnosis in one line."""
        return str(
            self.why.get("line") or f"the launcher ended with exit code {self.code}, and no rank said why"
        )


def start_and_wait(
    arguments: Sequence[str], stop_at: tuple[str, int, int] | None = None, record: Path | None = None
) -> AttemptResult:
    """Run the launcher until it exits. Signals are forwarded to the ranks alone, which save and stop.

    `stop_at` (address, port, world) receives the stop request for ranks on other hosts. `record` is the stage's
    `ended.json`, written by ranks that do not share this machine's temporary folder.
    """
    old = _read(record)
    with tempfile.TemporaryDirectory(prefix="sage-scale-") as folder:
        ended = Path(folder) / "ended.json"
        given = {**environment(), LAUNCHER_PID: str(os.getpid()), ENDED_FILE: str(ended)}
        if stop_at:
            given["DS_ENV_FILE"] = str(_environment_file(Path(folder), given))
        # When this process is killed the launcher gets SIGTERM, which ends its processes on other hosts, too.
        orphaned = partial(end_with_parent, signal.SIGTERM)
        try:
            child = subprocess.Popen(arguments, env=given, start_new_session=True, preexec_fn=orphaned)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            # A process of many GB may not be forked, but it may start another; rank monitors see our end in any case.
            child = subprocess.Popen(arguments, env=given, start_new_session=True)
        received: list[float] = []

        def forward(number: int, frame: object) -> None:
            now = time.monotonic()
            if received and now - received[0] < SAME_S:
                return  # one request, as the ranks take it: they are saving
            received.append(now)
            # Before any rank runs, and on a repeated request, the launcher's whole group goes. The ranks of other
            # hosts are no processes of this one: below it is only ssh.
            told = len(received) == 1 and (request_stop(*stop_at) if stop_at else _signal_ranks(child.pid))
            if not told:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGTERM)

        before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            code = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        why = _read(ended)
    if not why and _read(record) != old:
        why = _read(record)
    if code == 0 and not why and stop_at is None:
        code = 1  # DeepSpeed's runner gives 0 where the process below it was killed
    return AttemptResult(int(why.get("code", code)) if code else 0, bool(received), why)


def _environment_file(folder: Path, given: dict[str, str]) -> Path:
    """Writes DeepSpeed's file of variables for other hosts: those set here, then the user's own."""
    lines = [f"{name}={given[name]}" for name in FORWARDED if given.get(name)]
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    for home in (Path.home(), Path()):  # where DeepSpeed looks
        with contextlib.suppress(OSError):
            lines += [line for line in (home / name).read_text(encoding="utf-8").splitlines() if "=" in line]
    path = folder / "environment"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def _read(path: Path | None) -> dict[str, Any]:
    if path is not None:
        with contextlib.suppress(OSError, ValueError):
            return parse_json_object(read_bytes(path))
    return {}


def _signal_ranks(launcher: int) -> int:
    """Send SIGTERM to each rank (a child of `deepspeed.launcher.launch`); returns their number.

    DeepSpeed's launchers cannot forward the signal: the outer one dies and leaves the ranks running, the inner one also
    signals loader workers, and kills ranks that have not saved after 30 s.
    """
    told = 0
    for process in psutil.Process(launcher).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            parent = process.parent()
            if parent is not None and "deepspeed.launcher.launch" in parent.cmdline():
                process.terminate()
                told += 1
    return told
