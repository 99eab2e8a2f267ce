"""The commands `sage-scale pretrain` and `sage-scale finetune`.

One rank runs in this process; several are its children, on one machine or, with the same command on each, on several.

    sage-scale pretrain --run runs/mine --data data/shards --recipe sage-phoenix14t
    sage-scale finetune --run runs/mine --data data/shards --ranks 2 finetune.lr=0.002

    sage-scale pretrain --run runs/mine --data s3://bucket/shards --nodes 4 --node-rank 0 --master-addr node-a --ranks 8
    sage-scale pretrain --run /shared/mine --data s3://bucket/shards --hostfile hosts --restarts 5

    srun --ntasks 8 sage-scale pretrain --run /shared/mine --data s3://bucket/shards

Under `torchrun` or `deepspeed`, start `launch/pretrain.py` with the same options.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from sage_scale import config
from sage_scale.cli import Overrides
from sage_scale.errors import UsageError
from sage_scale.storage import open_store
from sage_scale.training import entry, launcher
from sage_scale.training.environment import join_launcher
from sage_scale.training.hostfile import Hosts, start_hosts
from sage_scale.training.node import Node, NodeOptions, alone_on_its_node, this_node
from sage_scale.training.restarts import LOG as RESTARTS
from sage_scale.training.restarts import StageEndedEarly, run_with_restarts
from sage_scale.training.run_place import run_place
from sage_scale.untrusted.printer import tell

RunFolder = Annotated[
    str,
    typer.Option(
        "--run",
        "--run-dir",
        help="Folder of the run (runs/mine), or s3://bucket/runs/NAME; the same one resumes.",
    ),
]
Datasets = Annotated[
    list[str],
    typer.Option(
        "--data", help="Dataset: a folder, file:// or s3://bucket/prefix. Several: repeat it; see stream.mix."
    ),
]
RecipeName = Annotated[
    str, typer.Option("--recipe", help="Recipe name or YAML file; else the run's own recipe.yaml.")
]
Ranks = Annotated[
    int | None,
    typer.Option(
        "--ranks", min=1, help="Processes on this machine, or on each node. [PET_NPROC_PER_NODE, else 1]"
    ),
]
Nodes = Annotated[
    int | None,
    typer.Option(
        "--nodes", min=1, help="Machines that each run this command. [PET_NNODES, tasks of srun, else 1]"
    ),
]
NodeRank = Annotated[
    int | None,
    typer.Option(
        "--node-rank", min=0, help="Number of this machine, from 0. [PET_NODE_RANK, JOB_COMPLETION_INDEX]"
    ),
]
MasterPort = Annotated[
    int | None,
    typer.Option(
        "--master-port", min=1, max=65522, help="First of 13 ports of node 0. [PET_MASTER_PORT, else 29500]"
    ),
]
Hostfile = Annotated[
    Path | None,
    typer.Option("--hostfile", help="Several machines: lines 'HOST slots=N', reached by pdsh and ssh."),
]
MasterAddress = Annotated[
    str,
    typer.Option(
        "--master-addr",
        help="Address of node 0, or of the hostfile's first host if its name is not reachable. [PET_MASTER_ADDR]",
    ),
]
Restarts = Annotated[
    int, typer.Option("--restarts", min=0, help="Restarts after a rank dies, hangs or is cut off, at most.")
]
Profile = Annotated[
    bool,
    typer.Option("--profile", help="Trace a few steps of rank 0 into the run's folder (profile_steps)."),
]


def _command(stage: str, summary: str) -> Callable[..., None]:
    """Returns the typer command that trains a stage; `summary` opens its help text."""

    def command(
        run: RunFolder,
        data: Datasets,
        recipe: RecipeName = "",
        ranks: Ranks = None,
        nodes: Nodes = None,
        node_rank: NodeRank = None,
        master_addr: MasterAddress = "",
        master_port: MasterPort = None,
        hostfile: Hostfile = None,
        restarts: Restarts = 0,
        profile: Profile = False,
        overrides: Overrides = None,
    ) -> None:
        if hostfile and (ranks or nodes or master_port or node_rank is not None):
            raise UsageError(
                "--hostfile excludes --ranks, --nodes, --node-rank and --master-port: its lines name hosts and ranks"
            )
        _interrupt_by_sigterm()
        hosts = Hosts.read(hostfile, master_addr) if hostfile else None
        name = launcher.recipe_of_run(run, recipe)
        changes = [*(overrides or []), *(launcher.profile_overrides(stage) if profile else [])]
        chosen = config.load_recipe(name, changes)  # raises for a wrong key before any process starts
        for url in data:
            open_store(url)  # raises for a wrong URL
        if hosts:
            node = None
            alone_on_its_node()  # raises under a launcher
        else:
            asked = NodeOptions(nodes, node_rank, ranks, master_addr, master_port)
            node = this_node(asked, run, stage, restarts)
        starts = hosts or node
        world = starts.world if starts else join_launcher(run, stage)
        config.check_lanes(world, chosen.stream.lanes)
        given = [part for url in data for part in ("--data", url)]
        named = ["--recipe", recipe] if recipe else []  # the stored one is on each host
        arguments = ["--run", run, *given, *named, *changes]
        if starts:
            _launch(stage, run, arguments, restarts, starts)
        elif world > 1:  # a rank of srun or mpirun
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a rank's monitor tells what it ended
            raise typer.Exit(entry.main(stage, arguments))
        else:
            from sage_scale.training.stage import run_stage  # with torch

            run_stage(stage, chosen, run, data)

    command.__doc__ = f"{summary} Repeat the command to resume; Ctrl-C saves and stops."
    return command


pretrain = _command("pretrain", "Stage 1: align visual tokens with text.")
finetune = _command("finetune", "Stage 2: train the translator.")


def _interrupt_by_sigterm() -> None:
    """Make SIGTERM end this process as Ctrl-C does, with 130, until a stage saves at either.

    The kernel would kill it, or in process 1 of a container ignore the signal.
    """
    with contextlib.suppress(ValueError):  # not in the main thread
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.default_int_handler)


def _launch(
    stage: str,
    run: str,
    arguments: Sequence[object],
    restarts: int,
    starts: Hosts | Node,
) -> None:
    place = run_place(run)
    record = place.folder / stage / "ended.json"

    def say(line: str) -> None:
        tell(f"sage-scale {stage}: {line}")
        place.send(RESTARTS)

    def attempt() -> launcher.AttemptResult:
        if isinstance(starts, Hosts):
            return start_hosts(starts, stage, arguments, record)
        return launcher.start_node(starts, stage, arguments, record)

    try:
        run_with_restarts(stage, place.folder, attempt, restarts, say)
    except StageEndedEarly as ended:
        if not str(ended):  # the ranks have printed the reason
            raise typer.Exit(ended.exit_code) from None
        raise
