"""Checkpoints of the whole state of a stage, that any ZeRO stage and any number of ranks resumes.

A checkpoint is a folder (or S3 prefix) `step-00000123/`:

- `weights-00000-of-00002.safetensors`: float32 weights and buffers by the model's own names,
- `optimizer-00000-of-00002.safetensors`: optimizer tensors as `<state>/<parameter name>`,
- `state.json`: step, position in the stream, seconds spent, recipe, and size and xxh3-128 of every file.

Each rank writes the tensors dealt to it; `state.json` comes last, so a checkpoint without it is none, and a save
that is killed harms nothing. Weights are read and set whole through DeepSpeed's public accessors, so neither its
own format nor its universal conversion is needed, and nothing is pickled. Frozen weights are not stored: they come
from the language model's or backbone's own files.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from sage_scale.errors import CheckpointError
from sage_scale.storage import Store, open_store
from sage_scale.training import distributed
from sage_scale.training.engine import Engine
from sage_scale.training.optimizer import state_names

STATE = "state.json"
_STEP = re.compile(r"^step-(\d{8})/state\.json$")


@dataclass
class Progress:
    """Where a stage stands."""

    step: int = 0
    """Optimizer steps done."""
    seconds: float = 0.0
    """Seconds spent in the stage so far, resumed runs included."""
    stream: dict[str, Any] = field(default_factory=dict)
    """The stream's state: epoch, position, digest."""
    best_score: float | None = None
    """Best dev figure so far (higher is better)."""
    best_step: int = 0
    """Step of the best dev figure."""
    stage: str = ""
    """pretrain or finetune."""
    recipe: str = ""
    """Fingerprint of the recipe."""


class Checkpoints:
    """The checkpoints of one stage under `url`."""

    def __init__(self, url: str | Path, keep: int = 2) -> None:
        self.store: Store = open_store(url)
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in order."""
        matches = (_STEP.match(entry.name) for entry in self.store.list())
        return sorted(int(match.group(1)) for match in matches if match)

    def save(self, engine: Engine, progress: Progress) -> None:
        """Write a checkpoint (a collective: every rank calls it) and drop all but the last `keep` and the best."""
        rank, world = engine.ranks.rank, engine.ranks.world
        weights, states = _dealt_tensors(engine)
        folder = f"step-{progress.step:08d}"
        files = {}
        for kind, tensors in (("weights", weights), ("optimizer", states)):
            name = f"{kind}-{rank:05d}-of-{world:05d}.safetensors"
            data = save_safetensors(tensors)
            self.store.put(f"{folder}/{name}", data)
            files[name] = {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
        gathered = distributed.gather_objects(files)
        if engine.ranks.first:
            state = {
                "format": 1,
                "progress": vars(progress),
                "files": {name: value for part in gathered for name, value in part.items()},
            }
            self.store.put(f"{folder}/{STATE}", json.dumps(state, indent=1).encode())
            self._drop_old(progress)
        distributed.barrier()

    def load_latest(self, engine: Engine) -> Progress | None:
        """Resume from the newest complete checkpoint; None where there is none (a collective)."""
        steps = distributed.from_first(self.steps() if engine.ranks.first else None)
        return self.load(engine, steps[-1]) if steps else None

    def load(self, engine: Engine, step: int) -> Progress:
        """Set the engine's weights and optimizer to a checkpoint. Raises CheckpointError naming the file."""
        state, weights, states = self.read(step)
        progress = Progress(**state["progress"])
        _set_weights(engine, weights, f"{self.store.url}/step-{step:08d}")
        if states:
            engine.prepare_optimizer_state(progress.step)
            for name, parameter in engine.trained():
                for kind in state_names(engine.stage):
                    if f"{kind}/{name}" in states:
                        engine.set_optimizer_state(parameter, kind, states[f"{kind}/{name}"])
        return progress

    def read(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        """state.json, weights and optimizer tensors of a checkpoint, every file checked against its hash."""
        folder = f"step-{step:08d}"
        state = json.loads(self.store.get(f"{folder}/{STATE}"))
        weights: dict[str, Tensor] = {}
        states: dict[str, Tensor] = {}
        for name, expected in state["files"].items():
            data = self.store.get(f"{folder}/{name}")
            if len(data) != expected["bytes"] or xxhash.xxh3_128_hexdigest(data) != expected["xxh3_128"]:
                raise CheckpointError(
                    f"{self.store.url}/{folder}/{name} is damaged (its hash differs); "
                    f"delete the folder {folder} to resume from the checkpoint before"
                )
            (weights if name.startswith("weights") else states).update(load_safetensors(data))
        return state, weights, states

    def _drop_old(self, progress: Progress) -> None:
        steps = self.steps()
        kept = set(steps[-max(self.keep, 1) :]) | {progress.best_step}
        for step in steps:
            if step in kept:
                continue
            prefix = f"step-{step:08d}/"
            self.store.delete(prefix + STATE)  # first, so that a half-deleted checkpoint is none
            for entry in list(self.store.list(prefix)):
                self.store.delete(entry.name)


def _dealt_tensors(engine: Engine) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """This rank's part of weights, buffers and optimizer tensors; every rank takes part in each gather."""
    weights: dict[str, Tensor] = {}
    states: dict[str, Tensor] = {}
    rank, world = engine.ranks.rank, engine.ranks.world
    for number, (name, parameter) in enumerate(engine.trained()):
        mine = number % world == rank
        weight = engine.weight(parameter)
        if mine:
            weights[name] = weight.cpu().contiguous().clone()
        for kind in state_names(engine.stage):
            value = engine.optimizer_state(parameter, kind)
            if mine:
                states[f"{kind}/{name}"] = value.cpu().contiguous().clone()
    if rank == 0:
        for name, buffer in _stored_buffers(engine):
            weights[name] = buffer.detach().cpu().contiguous().clone()
    return weights, states


def _stored_buffers(engine: Engine) -> list[tuple[str, Tensor]]:
    # Running statistics of BatchNorm; buffers that a module makes for itself are not in its state_dict.
    parameters = {name for name, _ in engine.model.named_parameters()}
    return [(name, value) for name, value in engine.model.state_dict().items() if name not in parameters]


def _set_weights(engine: Engine, weights: dict[str, Tensor], where: str) -> None:
    for name, parameter in engine.trained():
        if name not in weights:
            raise CheckpointError(f"{where} has no weight '{name}': it belongs to another model or recipe")
        if tuple(weights[name].shape) != tuple(engine.shape(parameter)):
            raise CheckpointError(
                f"{where}: weight '{name}' has shape {tuple(weights[name].shape)}, "
                f"the recipe asks for {tuple(engine.shape(parameter))}"
            )
        engine.set_weight(parameter, weights[name])
    for name, buffer in _stored_buffers(engine):
        if name in weights:
            buffer.copy_(weights[name])
