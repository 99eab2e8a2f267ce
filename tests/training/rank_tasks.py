"""Tasks of ranks: `python rank_tasks.py TASK ARGUMENT...`, the tasks are the functions below; answers are printed."""

import hashlib
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
from factories.ranks import leave
from toy_stage import Toy

from sage_scale.config import Stage
from sage_scale.errors import CheckpointError, SageError, StorageError
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import Checkpoints, TrainingProgress, read_together
from sage_scale.training.checkpoint.saving import Saver
from sage_scale.training.checkpoint.shared_place import check_shared
from sage_scale.training.engine import Engine
from sage_scale.training.loss_guard import LossGuard


def slow_first() -> None:
    """Rank 0 takes longer than the run's time-out to prepare something; the others wait for it."""
    ranks = distributed.initialise(timeout_s=3)
    waiting = distributed.long_timeout_group()
    if ranks.is_main:
        time.sleep(8)
    print("got", distributed.broadcast_object("it" if ranks.is_main else None, waiting))


def one_bad(zero: str) -> None:
    """Of two ranks, rank 1 gets a loss that is not a number in its fourth step."""
    ranks = distributed.initialise()
    stage = Stage(zero_stage=int(zero), optimizer="sgd", lr=0.05, clip=0.5, on_bad_loss="skip")
    torch.manual_seed(0)
    engine = Engine(Toy(), stage, ranks)
    guard, progress, updated = LossGuard(engine, stage), TrainingProgress(), []
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(6, 5, generator=generator), torch.randn(6, 3, generator=generator)
        guard.begin()
        share = engine.forward(x[ranks.rank :: 2], y[ranks.rank :: 2], 6)
        if step == 3 and ranks.rank == 1:
            share = share * math.nan
        engine.backward(share)
        engine.step(0.0, skip_update=bool(guard.check_loss(float(share.detach()), progress)))
        updated.append(engine.updated)
    head = next(
        engine.weight(parameter)
        for name, parameter in engine.trainable_parameters()
        if name.startswith("head")
    )
    print(json.dumps({"updated": updated, "head": head.flatten().tolist()}), flush=True)


def shared_place(folder: str) -> None:
    """Two ranks as the first of two hosts prove that one place of checkpoints is theirs, in several places."""
    os.environ["LOCAL_RANK"] = "0"
    ranks = distributed.initialise()
    here = Path(folder) / f"host-{ranks.rank}"
    one, own = Path(folder) / "one", here / "run" / "pretrain" / "checkpoints"
    found = {}
    for name, place in {"one": one, "own": own, "file": one / "file" / "x"}.items():
        if name == "file" and ranks.is_main:
            (one / "file").write_text("no folder")
        try:
            check_shared(place, "pretrain.checkpoints", ranks, wait_s=1)
            found[name] = "shared"
        except SageError as error:
            found[name] = f"{error.exit_code} {error}"
    # A file system that shows the file late.
    late = here / "late"

    def appear(_: float) -> None:
        late.parent.mkdir()
        late.symlink_to(Path(folder) / "host-0" / "late")

    check_shared(late, "pretrain.checkpoints", ranks, sleep=appear)
    left = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))
    print(json.dumps({**found, "left": left}), flush=True)


def reading(folder: str, damaged: str) -> None:
    """Reads the files of a folder together with the other ranks."""
    ranks = distributed.initialise()
    asked: list[str] = []

    def read(name: str) -> bytes:
        asked.append(name)
        if name == damaged:
            raise CheckpointError(f"{name} is damaged")
        return (Path(folder) / name).read_bytes()

    got, error = [], ""
    try:
        for data in read_together(read, sorted(path.name for path in Path(folder).iterdir()), ranks):
            got.append(hashlib.sha256(data).hexdigest())
    except CheckpointError as failure:
        error = str(failure)
    print(json.dumps({"asked": asked, "got": got, "error": error}), flush=True)
    distributed.barrier()


def unshared_folders(folder: str) -> None:
    """Two ranks whose hosts share no folder save to one of the same name."""
    ranks = distributed.initialise()
    torch.manual_seed(0)
    engine = Engine(Toy(), Stage(zero_stage=1), ranks)
    saver = Saver(Checkpoints(Path(folder) / f"host-{ranks.rank}"), ranks, give_up_after_s=1.0)
    saver.save(engine, TrainingProgress(step=1))
    try:
        saver.finish()
    except StorageError as error:
        print(error, flush=True)


def evaluated(run: str, data: str, gold: str) -> None:
    """Evaluates a run together with the other ranks."""
    from sage_scale.training import evaluate_run

    print(json.dumps(evaluate_run.run(run, data, gold=gold)), flush=True)
    distributed.barrier()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
    leave()
