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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sage_scale.config import Recipe, Stage, to_yaml
from sage_scale.errors import UsageError
from sage_scale.planning.step import StepSize
from sage_scale.registry import model_spec
from sage_scale.shards import Dataset
from sage_scale.storage import on_this_machine
from sage_scale.streaming import Batch, Data, OncePerNode, check_datasets, open_datasets, open_stream
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import TrainingProgress
from sage_scale.training.checkpoint.shared_place import check_shared
from sage_scale.training.distributed import Ranks
from sage_scale.training.engine import Engine
from sage_scale.training.inherited import inherit
from sage_scale.training.loop import Loop, checkpoint_location
from sage_scale.training.run_lock import lock_run
from sage_scale.training.stage_log import record_timing
from sage_scale.training.throughput import memory_mb
from sage_scale.untrusted.printer import tell

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

    The keys of `recipe` that describe datasets are inherited from these (`inherit`); the result is the run's recipe.
    Writes `NAME/log.jsonl`, checkpoints and the task's outputs (`pretrain/visual.safetensors`; the export `model/`).
    Returns steps, seconds and the dev scores of the best weights.
    """
    folder = on_this_machine(run_folder, "a run")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--run {folder} is a file: name the folder of a run, there or to be made")
    # Before the process group forms: a command typed twice is refused in a moment.
    first = int(os.environ.get("RANK", "0")) == 0
    with lock_run(folder) if first else contextlib.nullcontext():
        return _run_stage(name, recipe, folder, data)


def _run_stage(name: str, recipe: Recipe, folder: Path, data: Data) -> dict[str, Any]:
    kind: type[Task] = model_spec(recipe.model.kind).part(name)
    ranks = distributed.initialise()
    stage: Stage = getattr(recipe, name)
    torch.manual_seed(stage.seed)
    once = OncePerNode(distributed.gather_objects)
    datasets = open_datasets(data, once)  # before anything is written: a wrong URL leaves no files
    inherited = inherit(recipe, datasets, folder)
    recipe = inherited.recipe
    if ranks.is_main:
        for line in inherited.lines:
            tell(f"sage-scale {name}: {line}")
    check_datasets(datasets, recipe)
    kind.check(recipe, folder, datasets)
    if stage.checkpoints or ranks.world > 1:
        check_shared(checkpoint_location(stage, folder, name), f"{name}.checkpoints", ranks)
    if ranks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "recipe.yaml.partial"
        partial.write_text(to_yaml(recipe), encoding="utf-8")
        partial.replace(folder / "recipe.yaml")  # other ranks may be reading it
    task = kind(TaskContext(recipe, folder, datasets, ranks))
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
    loop = Loop(name, recipe, folder, engine, stream, frozen=task.frozen, operations=task.operations)
    loop.differing = inherited.differing
    loop.resume()
    progress = loop.train(task.compute, task.evaluate)
    with engine.evaluating() as model:
        figures = task.finish(model, progress)
    if ranks.is_main:
        record_timing(folder, name, progress.seconds, memory_mb(ranks.device), loop.cut_short)
    distributed.barrier()
    return {"steps": progress.step, "seconds": progress.seconds, **figures}


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
