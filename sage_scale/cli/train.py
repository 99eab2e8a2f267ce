"""`sage-scale pretrain` and `sage-scale finetune`: one rank here, several through DeepSpeed's launcher.

    sage-scale pretrain --run runs/mine --data data/shards --recipe sage-phoenix14t
    sage-scale finetune --run runs/mine --data data/shards --ranks 2 finetune.lr=0.002

    sage-scale pretrain --run /shared/mine --data s3://bucket/shards --hostfile hosts --restarts 5

    srun --ntasks 8 sage-scale pretrain --run /shared/mine --data s3://bucket/shards

`torchrun`, or `deepspeed` itself: give them `launch/pretrain.py`, with the same options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from sage_scale import config
from sage_scale.errors import UsageError
from sage_scale.storage import open_store
from sage_scale.training import entry, launcher, restarts
from sage_scale.training.environment import join_launcher

Run = Annotated[
    Path,
    typer.Option("--run", "--run-dir", help="Folder of the run (runs/mine); the same folder resumes."),
]
Data = Annotated[
    list[str],
    typer.Option(
        "--data", help="Dataset: a folder, file:// or s3://bucket/prefix. Several: repeat it; see stream.mix."
    ),
]
Name = Annotated[
    str, typer.Option("--recipe", help="Recipe name or YAML file; else the run's own recipe.yaml.")
]
Ranks = Annotated[int, typer.Option("--ranks", min=1, help="Processes on this machine.")]
Hostfile = Annotated[
    Path | None,
    typer.Option("--hostfile", help="Several machines: lines 'HOST slots=N', reached by pdsh and ssh."),
]
MasterAddress = Annotated[
    str,
    typer.Option("--master-addr", help="Address of the first host, as the others reach it; else its name."),
]
Restarts = Annotated[
    int, typer.Option("--restarts", min=0, help="Start again so often when a rank dies, hangs or is cut off.")
]
Profile = Annotated[
    bool,
    typer.Option("--profile", help="Trace a few steps of rank 0 into the run's folder (profile_steps)."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, section.key=value."),
]


def _command(stage: str, what: str) -> Callable[..., None]:
    """The command of a stage."""

    def command(
        run: Run,
        data: Data,
        recipe: Name = "",
        ranks: Ranks = 1,
        hostfile: Hostfile = None,
        master_addr: MasterAddress = "",
        restarts: Restarts = 0,
        profile: Profile = False,
        overrides: Overrides = None,
    ) -> None:
        changes = [*(overrides or []), *(launcher.traced(stage) if profile else [])]
        _train(stage, run, data, recipe, ranks, restarts, _hosts(hostfile, master_addr, ranks), changes)

    command.__doc__ = f"{what} Repeat the command to resume; Ctrl-C saves and stops."
    return command


pretrain = _command("pretrain", "Stage 1: align visual tokens with text.")
finetune = _command("finetune", "Stage 2: train the translator.")


def _hosts(path: Path | None, address: str, ranks: int) -> launcher.Hosts | None:
    if path is None:
        return None
    if ranks > 1:
        raise UsageError("--ranks and --hostfile exclude each other: the hostfile's slots say how many ranks")
    return launcher.Hosts.read(path, address)


def _train(
    stage: str,
    run: Path,
    data: Sequence[str],
    recipe: str,
    ranks: int,
    again: int,
    hosts: launcher.Hosts | None,
    overrides: Sequence[str],
) -> None:
    name = launcher.recipe_of_run(run, recipe)
    chosen = config.load_recipe(name, overrides)  # a wrong key is refused before any process starts
    for url in data:
        open_store(url)  # a wrong one, too
    ranks = hosts.world if hosts else ranks
    starts_ranks = ranks > 1 or hosts is not None or again > 0
    ranks = max(ranks, join_launcher(run, stage, starts_ranks))
    if ranks > chosen.stream.lanes:
        raise UsageError(f"{ranks} ranks are more than stream.lanes={chosen.stream.lanes}")
    given = [part for url in data for part in ("--data", url)]
    arguments = ["--run", str(run), *given, "--recipe", name, *overrides]
    if starts_ranks:
        _launch(stage, run, arguments, ranks, again, hosts)
    elif ranks > 1:  # a rank of srun or mpirun
        raise typer.Exit(entry.main(stage, arguments))
    elif stage == "pretrain":
        from sage_scale.training import pretrain as stage_1

        stage_1.run(chosen, run, data)
    else:
        from sage_scale.training import finetune as stage_2

        stage_2.run(chosen, run, data)


def _launch(
    stage: str, run: Path, arguments: Sequence[object], ranks: int, again: int, hosts: launcher.Hosts | None
) -> None:
    record = run / stage / "ended.json"

    def attempt() -> launcher.Ended:
        if hosts is None:
            return launcher.start_and_wait(launcher.command(stage, ranks, arguments), record=record)
        port = launcher.port_elsewhere()
        command = hosts.command(stage, arguments, port)
        return launcher.start_and_wait(command, stop_at=(hosts.address, port, hosts.world), record=record)

    try:
        restarts.keep_going(stage, run, attempt, again)
    except restarts.RunEnded as ended:
        if not str(ended):  # the ranks' own line stands above
            raise typer.Exit(ended.exit_code) from None
        raise
