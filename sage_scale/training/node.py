"""The place of this machine in a job whose nodes each run one `sage-scale pretrain` or `finetune`, as with torchrun.

Options come first, then the variables of Kubeflow and torchrun (PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE,
PET_MASTER_ADDR, PET_MASTER_PORT), of a task of `srun` or `mpirun` that is alone on its node, and of an Indexed Job
(JOB_COMPLETION_INDEX). launcher.py starts the ranks. No torch is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sage_scale.errors import UsageError
from sage_scale.training.environment import Place, as_number, job_port, number, place

PORT = 29500
"""MASTER_PORT of a job of several nodes without a scheduler, as torchrun's."""
_GPUS = "import torch; print(torch.cuda.device_count())"


@dataclass(frozen=True)
class NodeOptions:
    """Options of the command line, where they were given."""

    nodes: int | None = None
    node_rank: int | None = None
    ranks: int | None = None
    """Ranks on each node."""
    master_addr: str = ""
    master_port: int | None = None


@dataclass(frozen=True)
class Node:
    """This node among `nodes`, each with `ranks` ranks."""

    nodes: int
    node_rank: int
    ranks: int
    address: str
    """Address of node 0, which the others reach."""
    port: int
    """MASTER_PORT; 0: a free one for each start."""

    @property
    def world(self) -> int:
        """Returns the number of ranks of the job."""
        return self.nodes * self.ranks

    def rank_variables(self, local_rank: int, port: int) -> dict[str, str]:
        """Returns torch's environment variables of a rank of this node."""
        values = {
            "RANK": self.node_rank * self.ranks + local_rank,
            "LOCAL_RANK": local_rank,
            "WORLD_SIZE": self.world,
            "LOCAL_WORLD_SIZE": self.ranks,
            "MASTER_ADDR": self.address,
            "MASTER_PORT": port,
        }
        return {name: str(value) for name, value in values.items()}


def this_node(options: NodeOptions, run: str | Path, stage: str, restarts: int = 0) -> Node | None:
    """Returns the node whose ranks this process starts; None if it is one rank itself.

    Raises UsageError for options or variables that contradict each other, and for several nodes without an address.
    """
    by_variables = "PET_NNODES" in os.environ and "LOCAL_RANK" not in os.environ
    if not (
        by_variables or options.nodes or (options.ranks or 1) > 1 or options.node_rank is not None or restarts
    ):
        return None
    placed = alone_on_its_node(by_variables)
    nodes = options.nodes or (_nodes() if by_variables else placed.world if placed else 1)
    ranks = options.ranks or (_ranks() if by_variables else 1)
    if nodes == 1:
        node = Node(1, 0, ranks, "127.0.0.1", options.master_port or 0)
        return node if ranks > 1 or restarts else None
    if restarts:
        raise UsageError(
            "--restarts is for one machine or a --hostfile; of several nodes the scheduler starts all again"
        )
    node_rank = _node_rank(options, placed)
    if node_rank >= nodes:
        raise UsageError(
            f"node rank {node_rank} is not below {nodes}, the number of nodes: they count from 0"
        )
    address = options.master_addr or os.environ.get("PET_MASTER_ADDR") or os.environ.get("MASTER_ADDR")
    if not address and placed is None:
        raise UsageError(f"{nodes} nodes need --master-addr, the address of node 0 that the others reach")
    port = options.master_port or number("PET_MASTER_PORT", 0) or number("MASTER_PORT", 0)
    port = port or (job_port(run, stage) if placed else PORT)
    return Node(nodes, node_rank, ranks, address or (placed.address() if placed else ""), port)


def alone_on_its_node(by_variables: bool = False) -> Place | None:
    """Returns the place of this process if a launcher has started one on each of several nodes, else None.

    Raises UsageError if a launcher has started several on this node: they are ranks, and may not start others.
    """
    if "RANK" in os.environ and not by_variables:
        if (world := number("WORLD_SIZE", 1)) > 1:
            raise _two_launchers(world, "the launcher")
        return None
    placed = None if by_variables else place()
    if placed is None or placed.script or placed.world == 1:
        return None
    if placed.local_world != 1:
        raise _two_launchers(placed.world, placed.launcher.name)
    return placed


def _nodes() -> int:
    text = os.environ["PET_NNODES"]
    least, _, most = text.partition(":")
    if most not in ("", least):
        raise UsageError(f"PET_NNODES is '{text[:40]}': the number of nodes must be one number")
    return max(1, as_number("PET_NNODES", least))


def _ranks() -> int:
    """Returns PET_NPROC_PER_NODE: a number; `auto` and `gpu`: the number of GPUs (without any, 1); `cpu`: 1."""
    text = os.environ.get("PET_NPROC_PER_NODE", "1")
    if text not in ("auto", "gpu"):
        return 1 if text == "cpu" else max(1, number("PET_NPROC_PER_NODE", 1))
    # torch is for the ranks: here it is asked in a process of its own.
    counted = subprocess.run([sys.executable, "-c", _GPUS], capture_output=True, text=True, check=False)
    return max(1, int(counted.stdout)) if counted.stdout.strip().isdigit() else 1


def _node_rank(options: NodeOptions, placed: Place | None) -> int:
    if options.node_rank is not None:
        return options.node_rank
    if os.environ.get("PET_NODE_RANK"):
        return number("PET_NODE_RANK")
    if placed is not None:
        return placed.rank
    if os.environ.get("JOB_COMPLETION_INDEX"):
        return number("JOB_COMPLETION_INDEX")
    raise UsageError("several nodes need --node-rank (or PET_NODE_RANK, JOB_COMPLETION_INDEX): 0, 1, ...")


def _two_launchers(world: int, name: str) -> UsageError:
    return UsageError(
        f"{name} has started {world} processes already: leave out --ranks, --nodes, --hostfile and --restarts, or "
        "start one process a node"
    )
