"""A Slurm of one node for tests, without munge: `slurmctld` and `slurmd` of Debian's slurm-wlm in one temporary folder.

They run in the foreground as our children, as root, and die with us even when we are killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from factories.ranks import free_port
from servers.ceph import _die_with_parent

PROGRAMS = ("slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel")
_CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/none
# A job that is queued again waits as long as a credential lasts, two minutes unless set.
AuthInfo=cred_expire=5
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MinJobAge=3600
MpiDefault=none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def why_no_slurm() -> str:
    """Why there can be no Slurm here; '' where it can be started."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: slurm-wlm)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


@contextlib.contextmanager
def slurm(cpus: int = 4) -> Iterator[dict[str, str]]:
    """A running Slurm; yields the environment of its commands."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    host = socket.gethostname().partition(".")[0]
    config = folder / "slurm.conf"
    config.write_text(
        _CONFIG.format(host=host, folder=folder, cpus=cpus, controller=free_port(), daemon=free_port())
    )
    for name in ("state", "spool"):
        (folder / name).mkdir()
    environment = {"SLURM_CONF": str(config)}
    daemons = []
    try:
        for command in (["slurmctld", "-D", "-f", config], ["slurmd", "-D", "-f", config, "-N", host]):
            with (folder / f"{command[0]}.txt").open("wb") as log:
                daemons.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env={**os.environ, **environment},
                        preexec_fn=_die_with_parent,
                    )
                )
        _wait(environment, daemons, folder)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
            daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(environment: dict[str, str], daemons: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Wait until the node is idle. Raises TimeoutError with what the daemons said."""
    end = time.monotonic() + 60
    while time.monotonic() < end and all(daemon.poll() is None for daemon in daemons):
        asked = subprocess.run(
            ["sinfo", "-h", "-o", "%T"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    raise TimeoutError("".join(path.read_text()[-2000:] for path in folder.glob("*.txt")))
