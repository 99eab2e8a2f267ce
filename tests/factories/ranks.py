"""Start a few gloo ranks of this interpreter on a script, as a launcher would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def environment_of(rank: int, world: int, port: int) -> dict[str, str]:
    """The variables by which a launcher tells a rank on this machine its place in the job."""
    values = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "MASTER_PORT": port,
    }
    return {name: str(value) for name, value in values.items()} | {"MASTER_ADDR": "127.0.0.1"}


def leave() -> None:
    """End a rank that has done its work, as the ranks of a run end (training/entry.py): without the interpreter's
    own end, in which a thread of gloo that is still there now and then aborts the process."""
    from sage_scale.training import distributed

    distributed.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def fork(work: Callable[[], object]) -> int:
    """Forks a process that does `work` and ends, with code 1 where it raises. Returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def fork_all(world: int, work: Callable[[int], object]) -> list[int]:
    """Exit codes of `world` forks of this process, of which each does `work(rank)`."""
    children = [fork(partial(work, rank)) for rank in range(world)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def run_ranks(script: Path, world: int, arguments: list[object], timeout: float = 240) -> list[str]:
    """Outputs of `world` processes; fails with the output of the first that failed."""
    port = free_port()
    processes = []
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    for rank in range(world):
        environment = os.environ | environment_of(rank, world, port)
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(script), *map(str, arguments)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in processes:
            process.kill()
    for rank, process in enumerate(processes):
        assert process.returncode == 0, f"rank {rank} of {world}:\n{outputs[rank][-4000:]}"
    return outputs
