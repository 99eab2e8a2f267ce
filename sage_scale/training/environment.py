"""Rank, number of ranks and rendezvous address of this process, from the variables of the launcher that started it.

`torchrun`, `accelerate` and `deepspeed` set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which all of
torch reads. `srun` and `mpirun` set variables of their own; `join_launcher` translates those. No torch is imported.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from sage_scale.errors import UsageError
from sage_scale.untrusted.printer import tell

_BLOCK = 13
"""Ports of a run: MASTER_PORT and those after it for the rank monitors (monitor/heartbeat.py)."""


@dataclass(frozen=True)
class _Launcher:
    """Names of a launcher's variables; of several names the first that is set counts."""

    name: str
    rank: str
    world: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_world: str


_LAUNCHERS = (
    _Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    _Launcher(
        "MVAPICH",
        "MV2_COMM_WORLD_RANK",
        ("MV2_COMM_WORLD_SIZE",),
        ("MV2_COMM_WORLD_LOCAL_RANK",),
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    # MPICH, Intel MPI, and srun --mpi=pmi2, which leaves the local rank to Slurm's own variable.
    _Launcher("MPI", "PMI_RANK", ("PMI_SIZE",), ("MPI_LOCALRANKID", "SLURM_LOCALID"), "MPI_LOCALNRANKS"),
    _Launcher(
        "Slurm",
        "SLURM_PROCID",
        ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"),
        ("SLURM_LOCALID",),
        "",
    ),
)


def join_launcher(run: str | Path, stage: str, starts_ranks: bool = False) -> int:
    """Sets RANK, WORLD_SIZE and the other variables of torch where only `srun` or `mpirun` has set its own.

    Returns the number of ranks, 1 without a launcher. `run` and `stage` name the job where no scheduler does. With
    `starts_ranks` the caller is to start the ranks itself: under a launcher that is a UsageError, as are variables that
    contradict each other and several machines without MASTER_ADDR.
    """
    environment = os.environ
    if "RANK" in environment:
        world = _number(
            environment, "WORLD_SIZE", missing="RANK is set and WORLD_SIZE is not: set both, or none"
        )
        _check(_number(environment, "RANK"), world, "RANK", "WORLD_SIZE")
        if starts_ranks and world > 1:
            raise _two_launchers(world, "the launcher")
        return world
    launcher = next((one for one in _LAUNCHERS if one.rank in environment), None)
    if launcher is None:
        if _number(environment, "WORLD_SIZE", 1) > 1:
            raise UsageError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']} and RANK is not set: set both, or none"
            )
        return 1
    size = next((name for name in launcher.world if name in environment), "")
    if not size:
        raise UsageError(
            f"{launcher.rank} is set and {launcher.world[0]} is not: set RANK, WORLD_SIZE and MASTER_ADDR"
        )
    rank, world = _number(environment, launcher.rank), _number(environment, size)
    _check(rank, world, launcher.rank, size)
    if world == 1:
        return 1
    # Slurm sets these variables in a batch script too, in which nothing but the script itself runs.
    script = launcher.name == "Slurm" and rank == 0 and not _any(environment, "SLURM_STEP_ID", "SLURM_STEPID")
    if script and (starts_ranks or environment.get("WORLD_SIZE") == "1"):
        return 1
    if starts_ranks:
        raise _two_launchers(world, launcher.name)
    if _number(environment, "WORLD_SIZE", world) != world:
        raise UsageError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {launcher.name} has started {world} processes"
        )
    local = next((_number(environment, name) for name in launcher.local_rank if name in environment), None)
    here = _ranks_here(environment, launcher, world)
    address = environment.get("MASTER_ADDR") or _first_host(environment, here, world, launcher.name)
    job = " ".join(environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    place = zlib.crc32(f"{job} {os.path.abspath(run)} {stage}".encode(errors="surrogateescape"))
    given = {
        "RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_RANK": rank % (here or world) if local is None else local,
        "MASTER_ADDR": address,
        "MASTER_PORT": 20000 + place % 760 * _BLOCK,
        **({"LOCAL_WORLD_SIZE": here} if here else {}),
    }
    for name, value in given.items():
        environment.setdefault(name, str(value))
    if script:
        tell(
            f"sage-scale {stage}: {size}={world}, so this is rank 0 of {world} and waits for the others: start it "
            "with srun, or set WORLD_SIZE=1 to train in this process alone",
        )
    return world


def _two_launchers(world: int, name: str) -> UsageError:
    return UsageError(
        f"{name} has started {world} processes already: leave out --ranks, --hostfile and --restarts, or the launcher"
    )


def _number(
    environment: MutableMapping[str, str], name: str, default: int | None = None, missing: str = ""
) -> int:
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    if not text and missing:
        raise UsageError(missing)
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError(f"the environment variable {name} is '{text[:40]}', not a number")
    return int(text)


def _check(rank: int, world: int, rank_name: str, world_name: str) -> None:
    if rank >= world:
        raise UsageError(f"{rank_name}={rank} is not below {world_name}={world}: ranks count from 0")


def _any(environment: MutableMapping[str, str], *names: str) -> bool:
    return any(environment.get(name) for name in names)


def _nodes(environment: MutableMapping[str, str]) -> str:
    return environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""


def _ranks_here(environment: MutableMapping[str, str], launcher: _Launcher, world: int) -> int:
    """Ranks on this machine; 0 where the launcher does not tell."""
    if launcher.local_world and launcher.local_world in environment:
        return _number(environment, launcher.local_world)
    count = next(
        (
            environment[name]
            for name in ("SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES")
            if environment.get(name)
        ),
        "",
    )
    one_node = count == "1" or (not count and not re.search(r"[,\[]", _nodes(environment)))
    if "SLURM_PROCID" in environment and one_node:
        return world
    # "2(x3),1": two ranks on each of three nodes, one on the fourth.
    each = re.fullmatch(r"(\d+)(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return int(each[1]) if each else 0


def _first_host(environment: MutableMapping[str, str], here: int, world: int, name: str) -> str:
    """The address of rank 0: this machine, where all ranks are, else the first host of Slurm's list.

    Raises UsageError where neither is known.
    """
    if here == world:
        return "127.0.0.1"
    # "node[07-09,12]-ib,login": the first number of each bracket, then the first name.
    first = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", _nodes(environment)).split(",")[0]
    if not first:
        raise UsageError(
            f"{name} has started {world} processes, on several machines: set MASTER_ADDR to the host of rank 0"
        )
    return first
