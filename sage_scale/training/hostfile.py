"""Several machines by a hostfile: DeepSpeed's launcher over pdsh and ssh, its environment, and the request to stop."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sage_scale.config import LAUNCH_FOLDER
from sage_scale.config.extension import PLUGINS
from sage_scale.errors import UsageError
from sage_scale.training.launcher import (
    AttemptResult,
    StopSignals,
    attempt_record,
    environment,
)
from sage_scale.training.monitor.heartbeat import request_stop
from sage_scale.training.monitor.rank_monitor import ENDED_FILE
from sage_scale.training.monitor.rank_process import end_with_parent
from sage_scale.untrusted.printer import LOG_FORMAT

FORWARDED = (
    "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "DS_ACCELERATOR", "DS_LOG_LEVEL", "SAGE_DEBUG", "SAGE_WATCHDOG", PLUGINS,
    LOG_FORMAT, ENDED_FILE, "HF_HOME", "HF_HUB_OFFLINE", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
)  # fmt: skip
"""Environment variables for the ranks on other hosts, besides NCCL_* and PYTHON*, which DeepSpeed passes on itself.
None is a secret: every user can read the command line of ssh."""
_HOST = re.compile(r"^(?P<name>\S+)\s+slots=(?P<slots>\d+)$")
_SSH = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"
"""An ssh to a host whose link is cut ends after 15 s instead of hours, and pdsh and `deepspeed` with it."""


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
        program = shutil.which("deepspeed") or Path(sys.executable).with_name("deepspeed")
        # At its own level it prints the command line of ssh, with what .deepspeed_env holds.
        quiet = ["--log_level", "critical"]
        options = [*quiet, "--hostfile", self.path, "--launcher", "pdsh", "--no_ssh_check", "--force_multi"]
        rendezvous = ["--master_addr", self.address, "--master_port", port]
        script = LAUNCH_FOLDER / f"{stage}.py"
        return [str(word) for word in (program, *options, *rendezvous, script, *arguments)]


def start_hosts(hosts: Hosts, stage: str, arguments: Sequence[object], record: Path) -> AttemptResult:
    """Run a stage on all hosts until DeepSpeed's launcher exits. SIGINT and SIGTERM ask the ranks to save and stop.

    `record` is the stage's `ended.json`, in a run folder that this machine shares with rank 0.
    """
    port = random.randrange(20000, 29900)  # below the ephemeral range
    command = hosts.command(stage, arguments, port)
    with attempt_record(record) as (variables, result):
        ssh = f"{os.environ.get('PDSH_SSH_ARGS_APPEND', '')} {_SSH}".strip()
        given = {**environment(), **variables, "PDSH_SSH_ARGS_APPEND": ssh}
        given["DS_ENV_FILE"] = str(_environment_file(Path(variables[ENDED_FILE]).parent, given))
        child: list[subprocess.Popen[bytes]] = []
        ended: list[int] = []
        """Code of a launcher that was ended here, whatever code it gives itself."""

        def ask(repeated: bool) -> None:
            # The ranks of other hosts are no processes of this one: below it is only ssh. Before rank 0's monitor
            # listens, and on a repeated request, the launcher's whole group goes.
            told = not repeated and request_stop(hosts.address, port, hosts.world)
            for launcher in child if not told else ():
                ended.append(130)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(launcher.pid, signal.SIGTERM)

        with StopSignals(ask) as stop:
            child.append(_start(command, given))
            code = child[0].wait()
        return result(ended[0] if ended and code else code, stop.asked)


def _start(command: Sequence[str], given: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # When this process is killed the launcher gets SIGTERM, which ends its processes on other hosts, too.
    orphaned = partial(end_with_parent, signal.SIGTERM)
    try:
        return subprocess.Popen(command, env=given, start_new_session=True, preexec_fn=orphaned)
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        # A process of many GB may not be forked, but it may start another; rank monitors see our end in any case.
        return subprocess.Popen(command, env=given, start_new_session=True)


def _environment_file(folder: Path, given: Mapping[str, str]) -> Path:
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
