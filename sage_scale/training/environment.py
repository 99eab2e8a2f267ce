"""Rank, number of ranks and rendezvous address of this process, from the variables of its launcher.

`torchrun`, `accelerate` and `deepspeed` set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which torch
reads. `srun` and `mpirun` set variables of their own; `join_launcher` translates those. node.py reads the variables of
a process that starts the ranks of its node. No torch is imported.
"""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path
from typing import NamedTuple

from sage_scale.errors import UsageError
from sage_scale.untrusted.printer import tell

_BLOCK = 13
"""Ports of a run: MASTER_PORT and those after it for the rank monitors (monitor/heartbeat.py)."""


class _Launcher(NamedTuple):
    """The variables of a launcher; of several names the first that is set counts."""

    name: str
    rank: str
    world: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_world: str


_LAUNCHERS = (
    _Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_LOCAL_RANK",),
              "OMPI_COMM_WORLD_LOCAL_SIZE"),
    _Launcher("MVAPICH", "MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",), ("MV2_COMM_WORLD_LOCAL_RANK",),
              "MV2_COMM_WORLD_LOCAL_SIZE"),
    # MPICH, Intel MPI, and srun --mpi=pmi2, which leaves the local rank to Slurm's own variable.
    _Launcher("MPI", "PMI_RANK", ("PMI_SIZE",), ("MPI_LOCALRANKID", "SLURM_LOCALID"), "MPI_LOCALNRANKS"),
    _Launcher("Slurm", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"), ("SLURM_LOCALID",),
              ""),
)  # fmt: skip


class Place(NamedTuple):
    """The place of this process among those that `srun` or `mpirun` has started."""

    launcher: _Launcher
    size: str
    """Name of the variable with the number of processes."""
    rank: int
    world: int
    local_world: int
    """Processes on this machine; 0 if the launcher does not set it."""
    script: bool
    """Whether this is Slurm's batch script, in which nothing but the script itself runs."""

    def address(self) -> str:
        """Returns the address of process 0. Raises UsageError if it is not known."""
        return os.environ.get("MASTER_ADDR") or _first_host(self.local_world, self.world, self.launcher.name)


def place() -> Place | None:
    """Returns the place given by `srun` or `mpirun`; None without them. Raises UsageError for wrong variables."""
    launcher = next((one for one in _LAUNCHERS if one.rank in os.environ), None)
    if launcher is None:
        return None
    size = next((name for name in launcher.world if name in os.environ), "")
    if not size:
        raise UsageError(
            f"{launcher.rank} is set and {launcher.world[0]} is not: set RANK, WORLD_SIZE and MASTER_ADDR"
        )
    rank, world = _rank_and_world(launcher.rank, size)
    # Slurm sets these variables in a batch script too, in which nothing but the script itself runs.
    in_step = os.environ.get("SLURM_STEP_ID") or os.environ.get("SLURM_STEPID")
    script = launcher.name == "Slurm" and rank == 0 and not in_step
    return Place(launcher, size, rank, world, _local_world(launcher, world), script)


def join_launcher(run: str | Path, stage: str) -> int:
    """Set torch's variables (RANK, WORLD_SIZE, ...) from those of `srun` or `mpirun`; return the number of ranks.

    Without a launcher it is 1. `run` and `stage` name the job if no scheduler does. Raises UsageError for
    contradicting variables and for several machines without MASTER_ADDR.
    """
    get = os.environ.get
    if "RANK" in os.environ:
        if not get("WORLD_SIZE"):
            raise UsageError("RANK is set and WORLD_SIZE is not: set both, or none")
        return _rank_and_world("RANK", "WORLD_SIZE")[1]
    placed = place()
    if placed is None:
        if number("WORLD_SIZE", 1) > 1:
            raise UsageError(f"WORLD_SIZE is {get('WORLD_SIZE')} and RANK is not set: set both, or none")
        return 1
    world, rank, launcher = placed.world, placed.rank, placed.launcher
    if world == 1 or (placed.script and get("WORLD_SIZE") == "1"):
        return 1
    if number("WORLD_SIZE", world) != world:
        raise UsageError(
            f"WORLD_SIZE is {get('WORLD_SIZE')}, but {launcher.name} has started {world} processes"
        )
    local_rank = next((number(name) for name in launcher.local_rank if name in os.environ), None)
    variables = {
        "RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_RANK": rank % (placed.local_world or world) if local_rank is None else local_rank,
        "MASTER_ADDR": placed.address(),
        "MASTER_PORT": job_port(run, stage),
        **({"LOCAL_WORLD_SIZE": placed.local_world} if placed.local_world else {}),
    }
    for name, value in variables.items():
        os.environ.setdefault(name, str(value))
    if placed.script:
        tell(
            f"sage-scale {stage}: {placed.size}={world}, so this is rank 0 of {world} and waits for the others: start "
            "it with srun, or set WORLD_SIZE=1 to train in this process alone",
        )
    return world


def job_port(run: str | Path, stage: str) -> int:
    """Returns a port that is the same in all processes of a job; `run` and `stage` name it if no scheduler does."""
    job = " ".join(os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    place = run if str(run).startswith("s3://") else os.path.abspath(run)
    block = zlib.crc32(f"{job} {place} {stage}".encode(errors="surrogateescape")) % 760
    return 20000 + block * _BLOCK


def number(name: str, default: int | None = None) -> int:
    """Returns an environment variable as a number. Raises UsageError if it is none."""
    text = os.environ.get(name, "")
    return default if not text and default is not None else as_number(name, text)


def as_number(name: str, text: str) -> int:
    """Returns the number in `text`, the value of the environment variable. Raises UsageError."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError(f"the environment variable {name} is '{text[:40]}', not a number")
    return int(text)


def _rank_and_world(rank_name: str, world_name: str) -> tuple[int, int]:
    world, rank = number(world_name), number(rank_name)
    if rank >= world:
        raise UsageError(f"{rank_name}={rank} is not below {world_name}={world}: ranks count from 0")
    return rank, world


def _nodes() -> str:
    return os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or ""


def _local_world(launcher: _Launcher, world: int) -> int:
    """Returns the number of ranks on this machine; 0 if the launcher does not set it."""
    if launcher.local_world in os.environ:
        return number(launcher.local_world)
    names = ("SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES")
    count = next((os.environ[name] for name in names if os.environ.get(name)), "")
    one_node = count == "1" or (not count and not re.search(r"[,\[]", _nodes()))
    if "SLURM_PROCID" in os.environ and one_node:
        return world
    # "2(x3),1": two ranks on each of three nodes, one on the fourth.
    each = re.fullmatch(r"(\d+)(\(x\d+\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return int(each[1]) if each else 0


def _first_host(local_world: int, world: int, name: str) -> str:
    """Returns the address of rank 0: this machine if all ranks run here, else the first host of Slurm's list.

    Raises UsageError if neither is known.
    """
    if local_world == world:
        return "127.0.0.1"
    # "node[07-09,12]-ib,login": the first number of each bracket, then the first name.
    first = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", _nodes()).split(",")[0]
    if not first:
        raise UsageError(
            f"{name} has started {world} processes, on several machines: set MASTER_ADDR to the host of rank 0"
        )
    return first
