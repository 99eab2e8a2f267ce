"""The `deepspeed` launcher on this machine: its command line, its environment, and signals to its ranks.

Nothing here imports torch: whoever starts ranks need not become one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sage_scale.config import RECIPE_FOLDER
from sage_scale.errors import SageError, UsageError


def command(stage: str, ranks: int, arguments: Sequence[object]) -> list[str]:
    """The command line that starts a stage (pretrain, finetune) on `ranks` processes of this machine.

    Raises UsageError where only the package is installed, without the scripts of a checkout.
    """
    script = RECIPE_FOLDER.parent / f"{stage}.py"
    if not script.is_file():
        raise UsageError(
            f"{script} is missing: several ranks need a checkout of the project, not only the package"
        )
    program = shutil.which("deepspeed") or str(Path(sys.executable).with_name("deepspeed"))
    # Two runs on one machine must not meet on a fixed port.
    start = [program, "--quiet", "--num_gpus", str(ranks), "--master_port", str(free_port())]
    return [*start, str(script), *map(str, arguments)]


def environment() -> dict[str, str]:
    """What a launcher is given: this interpreter's programs first (DeepSpeed looks for ninja), and quiet libraries."""
    here = str(Path(sys.executable).parent)
    path = os.pathsep.join([here, os.environ.get("PATH", "")])
    quiet = {"DS_LOG_LEVEL": "error", "PYTHONWARNINGS": "ignore"}
    return {**quiet, **os.environ, "PATH": path}


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def launch(arguments: Sequence[str], stage: str) -> None:
    """Run the launcher and wait. A signal goes to the ranks alone: they save, stop, and so end it."""
    child = subprocess.Popen(arguments, env=environment(), start_new_session=True)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    received: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        received.append(number)
        # Before any rank runs, and when someone insists, the launcher's whole group goes.
        if len(received) > 1 or not _signal_ranks(child.pid):
            os.killpg(child.pid, signal.SIGTERM)

    for number in before:
        signal.signal(number, hand_on)
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received and code in (0, 130, -signal.SIGTERM):
        raise KeyboardInterrupt
    if code != 0:
        raise SageError(f"{stage} ended with code {code}; the first error of a rank stands above")


def _signal_ranks(launcher: int) -> int:
    """SIGTERM to each rank (a child of `deepspeed.launcher.launch`); how many there were.

    The launchers forward nothing in good order: the outer one dies and leaves the ranks behind, the inner one
    signals loader workers too and kills what has not saved after 30 s.
    """
    import psutil

    ranks = []
    for process in psutil.Process(launcher).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            parent = process.parent()
            if parent is not None and "deepspeed.launcher.launch" in parent.cmdline():
                ranks.append(process)
    for process in ranks:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    return len(ranks)
