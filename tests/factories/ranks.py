"""Start a few gloo ranks of this interpreter on a script, as a launcher would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def leave() -> None:
    """End a rank that has done its work, as the ranks of a run end (training/entry.py): without the interpreter's
    own end, in which a thread of gloo that is still there now and then aborts the process."""
    from sage_scale.training import distributed

    distributed.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def run_ranks(script: Path, world: int, arguments: list[object], timeout: float = 240) -> list[str]:
    """Outputs of `world` processes; fails with the output of the first that failed."""
    port = free_port()
    processes = []
    place = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    for rank in range(world):
        place |= {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1, "PYTHONPATH": path}
        environment = os.environ | {name: str(value) for name, value in place.items()}
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
