"""Runs one training stage of any model; the model-specific part is its `Task`.

A task provides a model, the computation of one step, the evaluation on dev and the final outputs. It is independent of
rank layout, checkpoints, schedule, loss guard and rank monitor, and these are independent of models.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sage_scale.config import Recipe, Stage, to_yaml
from sage_scale.errors import UsageError
from sage_scale.planning.step import StepSize
from sage_scale.registry import model_spec
from sage_scale.shards import Dataset
from sage_scale.streaming import Batch, Data, OncePerNode, check_datasets, open_datasets, open_stream
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import TrainingProgress
from sage_scale.training.checkpoint.shared_place import check_shared
from sage_scale.training.distributed import Ranks
from sage_scale.training.engine import Engine
from sage_scale.training.inherited import inherit
from sage_scale.training.loop import Loop, checkpoint_location
from sage_scale.training.monitor import rank_status
from sage_scale.training.monitor.status_server import StatusServer
from sage_scale.training.monitor.stop_requests import Interrupted
from sage_scale.training.run_lock import lock_run
from sage_scale.training.run_place import RunPlace, run_place
from sage_scale.training.stage_log import record_timing
from sage_scale.training.throughput import memory_mb
from sage_scale.untrusted.printer import check_log_format, tell

STAGE1 = "pretrain/visual.safetensors"
"""File of the weights that stage 2 takes from stage 1."""


@dataclass(frozen=True)
class TaskContext:
    """Arguments of a task's constructor, made on every rank once the run's folder exists."""

    recipe: Recipe
    folder: Path
    """The run's."""
    datasets: Sequence[Dataset]
    ranks: Ranks
    share: Callable[[], None] = lambda: None
    """Brings files that rank 0 has written into the run's folder to every host (a collective)."""


class Task(ABC):
    """The model-specific part of a stage."""

    model: nn.Module
    engine: Engine
    """Set before the first step."""
    forward: Callable | None = None
    """Replaces the model's forward pass in the engine."""
    frozen: Sequence[Path] = ()
    """Files or folders of weights that are used and not trained: their hashes stand in each checkpoint."""
    operations: Callable[[StepSize], float] | None = None
    """FLOPs of one global step, for MFU; None where they are not known."""
    stream_seed: int = 0
    """Seed of augmentation and dropout draws in the stream."""

    @abstractmethod
    def __init__(self, context: TaskContext) -> None:
        """Make the model and load its first weights (a collective)."""

    @staticmethod
    @abstractmethod
    def check(recipe: Recipe, folder: Path, datasets: Sequence[Dataset]) -> None:
        """Raise an error if the stage cannot begin in the run's `folder`; called before any file is written."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Returns a new model of the same architecture, which ZeRO-3 needs for evaluation."""

    def begin(self, engine: Engine) -> None:
        """Receive the engine that holds the model; called once."""
        self.engine = engine

    @abstractmethod
    def compute(self, batch: Batch) -> dict[str, float]:
        """Run forward and backward of this rank's part of a step; returns its shares of the metrics, with `loss`."""

    @abstractmethod
    def evaluate(self, step: int) -> tuple[dict[str, float], float]:
        """Returns (scores, selection score) of `engine.evaluation_model` on dev; higher is better (a collective)."""

    @abstractmethod
    def finish(self, model: Any, progress: TrainingProgress) -> dict[str, Any]:
        """Write the stage's outputs from `model`, unsharded with its best weights; returns figures (a collective)."""


def run_stage(name: str, recipe: Recipe, run_folder: str | Path, data: Data) -> dict[str, Any]:
    """Train or resume a stage, `pretrain` or `finetune`, of a run on the datasets at `data`; called by every rank.

    `run_folder` is a folder or `s3://bucket/runs/NAME` (run_place.py). The keys of `recipe` that describe datasets are
    inherited from these (`inherit`); the result is the run's recipe. Writes `NAME/log.jsonl`, checkpoints and the
    task's outputs (`pretrain/visual.safetensors`; the export `model/`). Returns steps, seconds and the dev scores of
    the best weights.
    """
    check_log_format()
    place = run_place(run_folder)
    folder = place.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--run {folder} is a file: name the folder of a run, there or to be made")
    # Before the process group forms: a command typed twice is refused in a moment.
    first = int(os.environ.get("RANK", "0")) == 0
    with (
        lock_run(folder) if first else contextlib.nullcontext(),
        _status_endpoint(name, recipe.watch.http_port),
    ):
        try:
            return _run_stage(name, recipe, place, data)
        except Exception as error:
            # After a failure the monitor sends the log, so that the other ranks hear of it at once.
            if first and (isinstance(error, Interrupted) or not rank_status.monitored()):
                place.upload_once()
            raise


def _run_stage(name: str, recipe: Recipe, place: RunPlace, data: Data) -> dict[str, Any]:
    folder = place.folder
    kind: type[Task] = model_spec(recipe.model.kind).part(name)
    ranks = distributed.initialise()
    stage: Stage = getattr(recipe, name)
    torch.manual_seed(stage.seed)
    once = OncePerNode(distributed.gather_objects)
    datasets = open_datasets(data, once)  # before anything is written: a wrong URL leaves no files
    if place.url:
        with rank_status.phase("fetching the run"):
            distributed.run_on_each_host(place.fetch)
        if ranks.is_main:
            tell(f"sage-scale {name}: {place.url} has its working folder in {folder}")
    inherited = inherit(recipe, datasets, folder)
    recipe = inherited.recipe
    if ranks.is_main:
        for line in inherited.lines:
            tell(f"sage-scale {name}: {line}")
    check_datasets(datasets, recipe)
    kind.check(recipe, folder, datasets)
    if stage.checkpoints or place.url or ranks.world > 1:
        check_shared(checkpoint_location(stage, place, name), f"{name}.checkpoints", ranks)
    if ranks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / "recipe.yaml.partial"
        unfinished.write_text(to_yaml(recipe), encoding="utf-8")
        unfinished.replace(folder / "recipe.yaml")  # other ranks may be reading it
    patience_s = recipe.stream.give_up_after_s
    task = kind(TaskContext(recipe, folder, datasets, ranks, partial(_share, place, patience_s)))
    stream = open_stream(
        datasets,
        recipe,
        "train",
        rank=ranks.rank,
        world=ranks.world,
        batch_size=stage.batch_size,
        seed=task.stream_seed,
        once=once,
    )
    del once  # and with it what the stream did not take
    if ranks.is_main and recipe.stream.fraction < 1:
        tell(f"sage-scale {name}: {stream.dataset.catalog.describe_subset(recipe.stream.fraction)}")
    engine = Engine(task.model, stage, ranks, forward=task.forward, build=task.build)
    task.begin(engine)
    loop = Loop(name, recipe, place, engine, stream, frozen=task.frozen, operations=task.operations)
    loop.differing = inherited.differing
    loop.resume()
    progress = loop.train(task.compute, task.evaluate)
    with engine.evaluating() as model:
        figures = task.finish(model, progress)
    if ranks.is_main:
        record_timing(folder, name, progress.seconds, memory_mb(ranks.device), loop.cut_short)
    with rank_status.phase("uploading the run"):
        distributed.run_on_rank0(lambda: place.upload(patience_s))
    distributed.barrier()
    return {"steps": progress.step, "seconds": progress.seconds, **figures}


@contextlib.contextmanager
def _status_endpoint(name: str, port: int) -> Iterator[None]:
    """Serve `watch.http_port` in this process if no rank monitor does."""
    if not port or rank_status.monitored() or int(os.environ.get("LOCAL_RANK", "0")):
        yield
        return
    server = StatusServer(port, name, int(os.environ.get("RANK", "0")))
    rank_status.listen(server.receive)
    try:
        yield
    finally:
        rank_status.listen(None)
        server.close()


def _share(place: RunPlace, patience_s: float) -> None:
    """Bring what rank 0 has written to the working folders of the other hosts, by way of the URL (a collective)."""
    hosts = distributed.gather_objects(int(os.environ.get("LOCAL_RANK", "0"))).count(0)
    if place.url and hosts > 1:
        with rank_status.phase("bringing files of the run to every host"):
            distributed.run_on_rank0(lambda: place.upload(patience_s))
            distributed.run_on_each_host(place.fetch)


def accumulate(
    engine: Engine, batch: Batch, chunks: int, summed_loss: Callable[[Batch, slice], Tensor], summands: int
) -> float:
    """Run forward and backward of a batch in `chunks` micro-batches; returns this rank's share of the loss.

    `summed_loss` gives the loss of a micro-batch (and its rows), summed; `summands` is their number over all ranks.
    """
    total = 0.0
    for number, rows in enumerate(even_slices(len(batch.keys), chunks)):
        summed = summed_loss(batch.select(rows) if chunks > 1 else batch, rows)
        engine.backward(summed / summands, last=number == chunks - 1)
        total += float(summed.detach())
    return total / summands


def even_slices(clips: int, parts: int) -> Iterator[slice]:
    """Returns `parts` consecutive slices of the clips, whose sizes differ by at most one; some may be empty."""
    for number in range(parts):
        yield slice(clips * number // parts, clips * (number + 1) // parts)


def global_batch_counts(summands: int, clips: int, micro: int) -> tuple[int, int]:
    """Returns (`summands` over all ranks, largest number of micro-batches of a rank); a collective."""
    chunks = -(-clips // micro) if micro else 1
    gathered = distributed.gather_objects((summands, chunks))
    return sum(part[0] for part in gathered), max(1, *(part[1] for part in gathered))
