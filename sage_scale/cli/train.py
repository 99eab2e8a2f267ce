"""The commands `sage-scale pretrain` and `sage-scale finetune`.

One rank runs in this process; several ranks are started through DeepSpeed's launcher.

    sage-scale pretrain --run runs/mine --data data/shards --recipe sage-phoenix14t
    sage-scale finetune --run runs/mine --data data/shards --ranks 2 finetune.lr=0.002

    sage-scale pretrain --run /shared/mine --data s3://bucket/shards --hostfile hosts --restarts 5

    srun --ntasks 8 sage-scale pretrain --run /shared/mine --data s3://bucket/shards

Under `torchrun` or `deepspeed`, start `launch/pretrain.py` with the same options.
"""

from __future__ import annotations

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
from sage_scale.training.restarts import StageEndedEarly, run_with_restarts

RunFolder = Annotated[
    Path,
    typer.Option("--run", "--run-dir", help="Folder of the run (runs/mine); the same folder resumes."),
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
Ranks = Annotated[int, typer.Option("--ranks", min=1, help="Processes on this machine.")]
Hostfile = Annotated[
    Path | None,
    typer.Option("--hostfile", help="Several machines: lines 'HOST slots=N', reached by pdsh and ssh."),
]
MasterAddress = Annotated[
    str,
    typer.Option(
        "--master-addr", help="Address of the first host, reachable from the others; else its name."
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
        ranks: Ranks = 1,
        hostfile: Hostfile = None,
        master_addr: MasterAddress = "",
        restarts: Restarts = 0,
        profile: Profile = False,
        overrides: Overrides = None,
    ) -> None:
        if hostfile and ranks > 1:
            raise UsageError(
                "--ranks and --hostfile exclude each other: the hostfile's slots say how many ranks"
            )
        hosts = launcher.Hosts.read(hostfile, master_addr) if hostfile else None
        name = launcher.recipe_of_run(run, recipe)
        changes = [*(overrides or []), *(launcher.profile_overrides(stage) if profile else [])]
        chosen = config.load_recipe(name, changes)  # raises for a wrong key before any process starts
        for url in data:
            open_store(url)  # raises for a wrong URL
        started = hosts.world if hosts else ranks
        starts_ranks = started > 1 or hosts is not None or restarts > 0
        world = max(started, join_launcher(run, stage, starts_ranks))
        config.check_lanes(world, chosen.stream.lanes)
        given = [part for url in data for part in ("--data", url)]
        arguments = ["--run", str(run), *given, "--recipe", name, *changes]
        if starts_ranks:
            _launch(stage, run, arguments, world, restarts, hosts)
        elif world > 1:  # a rank of srun or mpirun
            raise typer.Exit(entry.main(stage, arguments))
        else:
            from sage_scale.training.stage import run_stage  # with torch

            run_stage(stage, chosen, run, data)

    command.__doc__ = f"{summary} Repeat the command to resume; Ctrl-C saves and stops."
    return command


pretrain = _command("pretrain", "Stage 1: align visual tokens with text.")
finetune = _command("finetune", "Stage 2: train the translator.")


def _launch(
    stage: str,
    run: Path,
    arguments: Sequence[object],
    ranks: int,
    restarts: int,
    hosts: launcher.Hosts | None,
) -> None:
    record = run / stage / "ended.json"

    def attempt() -> launcher.AttemptResult:
        if hosts is None:
            return launcher.start_and_wait(launcher.command(stage, ranks, arguments), record=record)
        port = launcher.random_port()
        command = hosts.command(stage, arguments, port)
        return launcher.start_and_wait(command, stop_at=(hosts.address, port, hosts.world), record=record)

    try:
        run_with_restarts(stage, run, attempt, restarts)
    except StageEndedEarly as ended:
        if not str(ended):  # the ranks have printed the reason
            raise typer.Exit(ended.exit_code) from None
        raise
