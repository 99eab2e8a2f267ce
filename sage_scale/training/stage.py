"""One training stage, whichever model: what it has in common stands here, what is the model's own in its `Task`.

A task brings a model, the work of one step, the evaluation on dev and what is written at the end. It knows nothing of
ranks' layout, checkpoints, schedule, guard or watchdog, and those know nothing of models.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from sage_scale.config import Recipe, Stage, to_yaml
from sage_scale.errors import UsageError
from sage_scale.planning.step import StepSize
from sage_scale.shards import Dataset
from sage_scale.storage import on_this_machine
from sage_scale.streaming import Batch, Data, check_datasets, open_datasets, open_stream
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import TrainingProgress, check_writable
from sage_scale.training.distributed import Ranks
from sage_scale.training.engine import Engine
from sage_scale.training.inherited import inherit
from sage_scale.training.loop import Loop, checkpoint_place
from sage_scale.training.run_lock import lock_run
from sage_scale.training.stage_log import record_timing
from sage_scale.training.throughput import memory_mb
from sage_scale.untrusted.printer import tell

STAGE1 = "pretrain/visual.safetensors"
"""What stage 1 leaves to stage 2, of either model."""


@dataclass(frozen=True)
class TaskContext:
    """What a task is made for: called by every rank, after the run's folder is there."""

    recipe: Recipe
    folder: Path
    """The run's."""
    datasets: Sequence[Dataset]
    ranks: Ranks


class Task(ABC):
    """What a stage does with a model."""

    model: nn.Module
    engine: Engine
    """Set before the first step."""
    forward: Callable | None = None
    """What the engine runs in place of the model's own forward pass."""
    frozen: Sequence[Path] = ()
    """Files or folders of weights that are used and not trained: their hashes stand in each checkpoint."""
    operations: Callable[[StepSize], float] | None = None
    """Those that a step of the whole batch asks for, where they can be counted (MFU)."""
    stream_seed: int = 0
    """Seed of augmentation and dropout draws in the stream."""

    @staticmethod
    @abstractmethod
    def check(recipe: Recipe, folder: Path, datasets: Sequence[Dataset]) -> None:
        """Raise where the stage could not begin in the run's `folder`; asked before anything is written."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Another model of the same form: ZeRO-3 evaluates in it."""

    def begin(self, engine: Engine) -> None:
        """The engine that holds the model; comes once."""
        self.engine = engine

    @abstractmethod
    def compute(self, batch: Batch) -> dict[str, float]:
        """Forward and backward of this rank's part of a step; gives its shares of what is logged, `loss` among them."""

    @abstractmethod
    def evaluate(self, step: int) -> tuple[dict[str, float], float]:
        """(figures, score) of `engine.evaluation_model` on dev; the higher the score the better. A collective."""

    @abstractmethod
    def finish(self, whole: Any, progress: TrainingProgress) -> dict[str, Any]:
        """Write what the stage leaves behind, from its best weights; gives what the caller is told. A collective."""


class TaskKind(Protocol):
    """A class of tasks, as `run_stage` takes it."""

    def __call__(self, context: TaskContext) -> Task:
        """Make one; a collective."""

    def check(self, recipe: Recipe, folder: Path, datasets: Sequence[Dataset]) -> None:
        """`Task.check`."""


def run_stage(
    name: str, kind: TaskKind, recipe: Recipe, run_folder: str | Path, data: Data
) -> dict[str, Any]:
    """Train the stage `name` to its end, or go on with it, in `run_folder`; called by every rank.

    The keys of `recipe` that describe the datasets are taken from these (`inherit`); the result is the run's recipe.
    Writes `NAME/log.jsonl`, checkpoints and what the task leaves; returns steps, seconds and the task's own figures.
    """
    folder = on_this_machine(run_folder, "a run")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--run {folder} is a file: name the folder of a run, there or to be made")
    # Before the process group forms: a command typed twice is refused in a moment.
    first = int(os.environ.get("RANK", "0")) == 0
    with lock_run(folder) if first else contextlib.nullcontext():
        return _run_stage(name, kind, recipe, folder, data)


def _run_stage(name: str, kind: TaskKind, recipe: Recipe, folder: Path, data: Data) -> dict[str, Any]:
    ranks = distributed.initialise()
    stage: Stage = getattr(recipe, name)
    torch.manual_seed(stage.seed)
    datasets = open_datasets(data)  # before anything is written: a wrong place leaves nothing behind
    inherited = inherit(recipe, datasets, folder)
    recipe = inherited.recipe
    if ranks.first:
        for line in inherited.lines:
            tell(f"sage-scale {name}: {line}")
    check_datasets(datasets, recipe)
    kind.check(recipe, folder, datasets)
    if stage.checkpoints:
        distributed.on_first(lambda: check_writable(checkpoint_place(stage, folder, name)), ranks.first)
    if ranks.first:
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
    )
    engine = Engine(task.model, stage, ranks, forward=task.forward, build=task.build)
    task.begin(engine)
    loop = Loop(name, recipe, folder, engine, stream, frozen=task.frozen, operations=task.operations)
    loop.differing = inherited.differing
    loop.resume()
    progress = loop.train(task.compute, task.evaluate)
    with engine.evaluating() as whole:
        figures = task.finish(whole, progress)
    if ranks.first:
        record_timing(folder, name, progress.seconds, memory_mb(ranks.device), loop.cut_short)
    distributed.barrier()
    return {"steps": progress.step, "seconds": progress.seconds, **figures}


def even_slices(clips: int, parts: int) -> Iterator[slice]:
    """`parts` runs of clips, equal to within one; some may be empty."""
    for number in range(parts):
        yield slice(clips * number // parts, clips * (number + 1) // parts)


def agree(summands: int, clips: int, micro: int) -> tuple[int, int]:
    """Summands of the global batch, and micro-batches of this step: as many on every rank as the fullest needs.

    A collective.
    """
    chunks = -(-clips // micro) if micro else 1
    gathered = distributed.gather_objects((summands, chunks))
    return sum(part[0] for part in gathered), max(1, *(part[1] for part in gathered))
