"""Entry point of each process that a launcher starts (`launch/pretrain.py`, `launch/finetune.py`)."""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from sage_scale.config import check_lanes, load_recipe
from sage_scale.errors import SageError, StorageError, UsageError, debugging
from sage_scale.training import launcher
from sage_scale.training.environment import join_launcher
from sage_scale.training.monitor import rank_status
from sage_scale.training.monitor.heartbeat import allow_descriptors
from sage_scale.training.monitor.rank_monitor import start_rank_monitor
from sage_scale.training.run_place import run_place
from sage_scale.untrusted.display import message_line
from sage_scale.untrusted.printer import tell


def main(stage: str, arguments: Sequence[str] | None = None) -> int:
    """Run a stage with the arguments of the command line, under a rank monitor; returns the exit code.

    If several ranks fail, one line gives the reason (rank_monitor.py). A rank exits as soon as it has reported its
    failure: destroying a process group with dead members may take minutes.
    """
    options = _parser(stage).parse_intermixed_args(arguments)
    try:
        world = join_launcher(options.run, stage)
        allow_descriptors(world)
    except UsageError as error:
        tell(f"sage-scale {stage}: {error}")
        return error.exit_code
    start_rank_monitor(stage)
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # read when torch is imported; c10d warns of host names
    try:
        traced = launcher.profile_overrides(stage) if options.profile else []
        recipe = load_recipe(
            launcher.recipe_of_run(options.run, options.recipe), [*options.overrides, *traced]
        )
        check_lanes(world, recipe.stream.lanes)  # before torch is loaded and ranks meet
        place = run_place(options.run)
        rank_status.set_limits(run=str(place.folder), url=place.url, **dataclasses.asdict(recipe.watch))
        from sage_scale.training.stage import run_stage  # with torch

        run_stage(stage, recipe, options.run, options.data)
    except SageError as error:
        if error.exit_code == 130:  # saved, as asked, on every rank
            return _leave(130, f"sage-scale {stage}: {error}")
        passing = isinstance(error, StorageError) and error.exit_code != 2
        return _fail(stage, error, error.exit_code, permanent=not passing)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        return _fail(stage, error, 130 if interrupted else 1, permanent=interrupted)
    return _leave(0)


def _leave(code: int, line: str = "") -> int:
    from sage_scale.training import distributed

    if line and int(os.environ.get("RANK", 0)) == 0:
        tell(line)
    distributed.close()
    rank_status.done(code)
    if rank_status.monitored():
        # Everything is written. The interpreter's last collection of garbage takes seconds with torch, on a busy
        # machine minutes (seen), and the launchers wait for it.
        atexit._run_exitfuncs()
        _exit(code)
    return code


def _fail(stage: str, error: BaseException, code: int, permanent: bool) -> int:
    if debugging() or (not rank_status.monitored() and not isinstance(error, SageError)):
        tell(*"".join(traceback.format_exception(error)).splitlines())
    rank_status.failed(error, code, permanent)
    if rank_status.monitored():
        _exit(code)
    tell(f"sage-scale {stage}: {message_line(error)}")
    return code


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        tell(f"{self.prog}: {message_line(message)} (see {self.prog} --help)")
        raise SystemExit(2)


def _parser(stage: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"launch/{stage}.py", allow_abbrev=False)
    add = parser.add_argument
    # torchrun ends with "ambiguous option" at --run, a prefix of its --run-path and --run_path, even behind the script.
    add(
        "--run-dir",
        "--run",
        dest="run",
        required=True,
        help="run folder (runs/phoenix), or s3://bucket/runs/NAME",
    )
    add(
        "--data", required=True, action="append", help="folder or s3:// URL of the shards; several: repeat it"
    )
    add("--recipe", default="", help="recipe name or YAML file; else the run's own recipe.yaml")
    add("--profile", action="store_true", help="trace a few steps of rank 0 into the run's folder")
    add("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # some launchers add it
    add("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe")
    return parser
