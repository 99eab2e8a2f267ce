"""`sage-scale pretrain` and `sage-scale finetune`: one rank here, several through DeepSpeed's launcher.

    sage-scale pretrain --run runs/mine --data data/shards --recipe sage-phoenix14t
    sage-scale finetune --run runs/mine --data data/shards --ranks 2 finetune.lr=0.002

Several machines: give `launch/pretrain.py` to `deepspeed`, `torchrun` or Slurm, with the same options.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from sage_scale import config
from sage_scale.errors import SageError, UsageError

Run = Annotated[Path, typer.Option("--run", help="Folder of the run (runs/mine); the same folder resumes.")]
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
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, section.key=value."),
]


def pretrain(run: Run, data: Data, recipe: Name = "", ranks: Ranks = 1, overrides: Overrides = None) -> None:
    """Stage 1: align visual tokens with text. Repeat the command to resume; Ctrl-C saves and stops."""
    _train("pretrain", run, data, recipe, ranks, overrides or [])


def finetune(run: Run, data: Data, recipe: Name = "", ranks: Ranks = 1, overrides: Overrides = None) -> None:
    """Stage 2: train the translator. Repeat the command to resume; Ctrl-C saves and stops."""
    _train("finetune", run, data, recipe, ranks, overrides or [])


def recipe_of_run(run: Path, recipe: str) -> str:
    """The recipe to load: the named one, else the one stored with the run; UsageError without either."""
    stored = run / "recipe.yaml"
    if recipe:
        return recipe
    if stored.is_file():
        return str(stored)
    known = ", ".join(config.recipe_names())
    raise UsageError(f"{run} has no recipe.yaml yet: name a recipe with --recipe ({known})")


def _train(
    stage: str, run: Path, data: Sequence[str], recipe: str, ranks: int, overrides: Sequence[str]
) -> None:
    name = recipe_of_run(run, recipe)
    chosen = config.load_recipe(name, overrides)  # a wrong key is refused before any process starts
    if ranks > chosen.stream.lanes:
        raise UsageError(f"--ranks {ranks} is more than stream.lanes={chosen.stream.lanes}")
    if ranks > 1:
        _launch(command(stage, run, data, name, ranks, overrides), stage)
    elif stage == "pretrain":
        from sage_scale.training import pretrain as stage_1

        stage_1.run(chosen, run, data)
    else:
        from sage_scale.training import finetune as stage_2

        stage_2.run(chosen, run, data)


def command(
    stage: str, run: Path, data: Sequence[str], recipe: str, ranks: int, overrides: Sequence[str]
) -> list[str]:
    """The launcher's command line for several ranks on this machine."""
    script = config.RECIPE_FOLDER.parent / f"{stage}.py"
    if not script.is_file():
        raise UsageError(
            f"{script} is missing: several ranks need a checkout of the project, not only the package"
        )
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)]
    launcher += ["--master_port", str(_free_port())]  # two runs on one machine must not meet on a fixed port
    given = [part for url in data for part in ("--data", url)]
    return [*launcher, str(script), "--run", str(run), *given, "--recipe", recipe, *overrides]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _launch(arguments: list[str], stage: str) -> None:
    """Run the launcher and wait. A signal goes to the ranks alone: they save, stop, and so end it."""
    environment = dict(os.environ)
    here = str(Path(sys.executable).parent)  # DeepSpeed looks for ninja on the PATH
    environment["PATH"] = os.pathsep.join([here, environment.get("PATH", "")])
    environment.setdefault("DS_LOG_LEVEL", "error")
    child = subprocess.Popen(arguments, env=environment, start_new_session=True)
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
