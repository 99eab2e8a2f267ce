"""Checkpoints of the full state of a stage; any ZeRO stage and any number of ranks can resume them.

A checkpoint is a folder (or S3 prefix) `step-00000123/`:

- `tensors-RRRRR-FFF-TTTTTTTT.safetensors`: float32 weights, buffers and optimizer tensors by the model's own names
  (see snapshot.py), written by rank R in files of 128 MB, so that no rank holds a second copy of its part;
- `state.json`: progress (step, position in the stream, seconds, recent losses), recipe, hashes of frozen weights'
  files, shapes, and size and xxh3-128 of every file; its last entry is the hash of the others.

`state.json` comes last: a folder without it is not a checkpoint, so a killed save does no harm. TTTTTTTT is
drawn for each save, so that files left by a killed save of the same step are never taken for a part of another. Every
rank leaves a marker `part-RRRRR-TTTTTTTT.json` when its files are there; rank 0 waits for all of them.

Weights are read and set whole through DeepSpeed's public accessors, so neither its own format nor its universal
conversion is needed, and nothing is pickled. Frozen weights are not stored: they come from the language model's or
backbone's own files, whose hashes are compared. Nothing else has a state: the schedule follows from the step, dropout
and augmentation from (seed, epoch, sample), and torch's generator is seeded at each step (loop.py).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from sage_scale.errors import CheckpointError, SageError
from sage_scale.storage import NotFound, Store, open_store
from sage_scale.training.checkpoint.compatibility import RunIdentity
from sage_scale.training.checkpoint.snapshot import Restore, shapes, with_present_names
from sage_scale.training.distributed import Ranks, broadcast_object, run_on_all_ranks, run_on_rank0
from sage_scale.training.engine import Engine
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.json_values import InvalidJSON, build, parse_json_object

FORMAT = 2
STATE = "state.json"
_FILE_NAME = re.compile(r"tensors-[0-9A-Za-z-]+\.safetensors")
_ENTRY = re.compile(r"^step-(\d{8})/([^/]+)$")

Say = Callable[[str], None]
"""Called with a line for the user."""


@dataclass
class TrainingProgress:
    """The progress of a stage."""

    step: int = 0
    """Steps done: batches of the stream that were used or left out by the loss guard."""
    updates: int = 0
    """Updates of the weights; fewer than `step` where updates were skipped or rolled back."""
    seconds: float = 0.0
    """Seconds spent in the stage so far, resumed runs included."""
    tokens: float = 0.0
    """Visual and text tokens so far, over all ranks, those of steps that were left out included."""
    stream: dict[str, Any] = field(default_factory=dict)
    """The stream's state: epoch, position, digest."""
    evaluated: int = 0
    """Step of the last evaluation on dev."""
    best_score: float | None = None
    """Best dev figure so far (higher is better)."""
    best_step: int = 0
    """Step of the best dev figure."""
    since_best: int = 0
    """Evaluations on dev since then."""
    stage: str = ""
    """pretrain or finetune."""
    recipe: str = ""
    """Fingerprint of the recipe."""
    engine: dict[str, float] = field(default_factory=dict)
    """The engine's state besides tensors: float16's loss scale (LossScale.state_dict), where there is one."""
    bad_steps: int = 0
    """Steps that the loss guard left out."""
    recent_losses: list[float] = field(default_factory=list)
    """The last losses, for the loss guard."""


@dataclass
class _File:
    bytes: int
    xxh3_128: str


@dataclass
class _State:
    """The content of state.json."""

    progress: dict[str, Any]
    recipe: dict[str, Any]
    frozen: dict[str, str]
    shapes: dict[str, list[int]]
    files: dict[str, _File]


def folder_of(step: int) -> str:
    """Returns `step-00000123`."""
    return f"step-{step:08d}"


class Checkpoints:
    """The checkpoints of one stage under `url`."""

    def __init__(self, url: str | Path, keep: int = 2, identity: RunIdentity | None = None) -> None:
        """`identity` is compared with the checkpoint's when resuming; None compares only the shapes."""
        self.store: Store = open_store(url)
        self.keep = keep
        self.identity = identity or RunIdentity()

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, in order."""
        matches = (_ENTRY.match(entry.name) for entry in self.store.list())
        return sorted(int(match[1]) for match in matches if match and match[2] == STATE)

    # Writing; saving.py says when and in which thread.

    def write_file(self, step: int, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """Write one file of tensors; returns its entry in state.json."""
        data = save_safetensors(tensors)
        self.store.put_if_absent(f"{folder_of(step)}/{name}", data)
        return {"bytes": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}

    def write_state(
        self, progress: dict[str, Any], files: dict[str, Any], shaped: dict[str, list[int]]
    ) -> None:
        """Write state.json, which completes the checkpoint."""
        state = {
            "format": FORMAT,
            "progress": progress,
            "recipe": self.identity.recipe,
            "frozen": self.identity.frozen,
            "shapes": shaped,
            "files": files,
        }
        state["xxh3_128"] = _digest(state)
        self.store.put(f"{folder_of(progress['step'])}/{STATE}", json.dumps(state, indent=1).encode())

    def drop_old(self, step: int, best_step: int) -> None:
        """After the save of `step`, delete all but the best and last `keep` checkpoints, and files of killed saves."""
        steps = self.steps()
        kept = {*steps[-max(self.keep, 1) :], best_step, step}
        for old in steps:
            if old not in kept:
                # First, so that a half-deleted checkpoint is none.
                self.store.delete(f"{folder_of(old)}/{STATE}")
        known: dict[int, set[str] | None] = {}
        for entry in list(self.store.list()):
            if not (match := _ENTRY.match(entry.name)):
                continue
            owner = int(match[1])
            if owner not in known:
                known[owner] = self._files_of(owner) if owner in kept else set()
            names = known[owner]
            if names is not None and match[2] not in names:
                self.store.delete(entry.name)
        self._sweep_folders()

    def _files_of(self, step: int) -> set[str] | None:
        """Returns the names of a checkpoint's files; None if state.json is damaged."""
        try:
            return {STATE, *self.state(step)["files"]}
        except NotFound:
            return set()
        except CheckpointError:
            return None

    def _sweep_folders(self) -> None:
        """Delete temporary files of a killed writer and empty folders (local folders only)."""
        path = self.store.local_path(f"{folder_of(0)}/{STATE}")
        for folder in path.parent.parent.glob("step-*") if path else ():
            with contextlib.suppress(OSError):  # untidy, not wrong
                for hidden in folder.glob(".*.tmp"):
                    hidden.unlink(missing_ok=True)
                if not any(folder.iterdir()):
                    folder.rmdir()

    # Reading.

    def state(self, step: int) -> dict[str, Any]:
        """Returns the verified content of a checkpoint's state.json. Raises CheckpointError or NotFound."""
        name = f"{folder_of(step)}/{STATE}"
        data = self.store.get(name)
        try:
            state = parse_json_object(data)
            if state.pop("xxh3_128", None) != _digest(state):
                raise InvalidJSON("its hash differs")
            if state.get("format") == FORMAT:
                stored = build(_State, state)
                if build(TrainingProgress, stored.progress).step != step:
                    raise InvalidJSON("its step is another")
                if not all(map(_FILE_NAME.fullmatch, stored.files)):
                    raise InvalidJSON("a file has a name that is not ours")
        except InvalidJSON as error:
            raise CheckpointError(f"{self.store.url}/{name} is damaged ({error})") from None
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.store.url}/{name} has format {shortened(state.get('format'))}, this version reads {FORMAT}"
            )
        return state

    def read_file(self, step: int, name: str, expected: dict[str, Any]) -> bytes:
        """Returns the verified bytes of a file. Raises CheckpointError if it is missing or damaged."""
        path = f"{folder_of(step)}/{name}"
        try:
            data = self.store.get(path)
        except NotFound:
            raise CheckpointError(f"{self.store.url}/{path} is missing") from None
        if len(data) != expected["bytes"] or xxhash.xxh3_128_hexdigest(data) != expected["xxh3_128"]:
            raise CheckpointError(f"{self.store.url}/{path} is damaged (its hash differs)")
        return data

    def damage(self, step: int, rank: int = 0, world: int = 1) -> str | None:
        """Returns one line on the first damage in this rank's share of a checkpoint's files; None without damage."""
        try:
            files = self.state(step)["files"]
            for name in sorted(files)[rank::world]:
                self.read_file(step, name, files[name])
        except (CheckpointError, NotFound) as error:
            return str(error)
        return None

    def tensors(self, step: int) -> dict[str, Tensor]:
        """Returns all tensors of a checkpoint, verified, by name (see snapshot.py)."""
        found: dict[str, Tensor] = {}
        for name, expected in self.state(step)["files"].items():
            found.update(load_safetensors(self.read_file(step, name, expected)))
        return found

    def load_latest(self, engine: Engine, say: Say = lambda line: None) -> TrainingProgress | None:
        """Load the newest undamaged checkpoint and return its progress; None without a checkpoint (a collective).

        A damaged checkpoint is reported by `say` and skipped. Raises CheckpointError if all are damaged.
        """
        ranks = engine.ranks
        damaged: list[str] = []
        for step in reversed(run_on_rank0(self.steps)):
            found = run_on_all_ranks(partial(self.damage, step, ranks.rank, ranks.world))
            if found is None:
                for line in damaged:
                    say(f"{line}; resuming from the checkpoint of step {step} instead")
                return self.load(engine, step, say)
            damaged.append(found)
        if damaged:
            raise CheckpointError(
                f"{damaged[0]}, and there is no whole checkpoint before it; put the file back, or delete "
                f"{self.store.url} to begin the stage anew"
            )
        return None

    def load(self, engine: Engine, step: int, say: Say = lambda line: None) -> TrainingProgress:
        """Load a checkpoint into the engine and return its progress (a collective). Raises CheckpointError."""
        state = self.state(step)
        where = f"{self.store.url}/{folder_of(step)}"
        self.identity.compare(state, where, say)
        stored = with_present_names(engine, state["shapes"])
        for name, shape in shapes(engine).items():
            if name not in stored:
                raise CheckpointError(
                    f"{where} has no weight '{name}': it belongs to another model or recipe"
                )
            if stored[name] != shape:
                raise CheckpointError(
                    f"{where}: weight '{name}' has shape {stored[name]}, the recipe asks for {shape}"
                )
        if stored != state["shapes"]:
            say(
                f"{where} is of version 0.1.0, which trained the logit scales themselves: their logarithms are trained "
                "from there on, and the optimizer's moments of these begin at zero"
            )
        try:
            progress = TrainingProgress(**state["progress"])
        except TypeError as error:
            raise CheckpointError(
                f"{where}/{STATE} is of another version of this program ({error})"
            ) from None
        restore = Restore(engine, progress.updates)
        files = state["files"]
        for data in read_together(
            lambda name: self.read_file(step, name, files[name]), sorted(files), engine.ranks
        ):
            for key, value in load_safetensors(data).items():
                restore.put(key, value)
        engine.loss_scale.load_state_dict(progress.engine)
        return progress


def read_together(read: Callable[[str], bytes], names: Sequence[str], ranks: Ranks) -> Iterator[bytes]:
    """Yields the content of each file of `names` on every rank, while only one rank reads it (a collective).

    A checkpoint of mBART-large with its optimizer is 7 GB; 64 ranks that each read all of it would request half a
    terabyte from object storage. Therefore rank r reads files r, r + W, ... with `read` and broadcasts them,
    prefetching one file in a thread. If a rank cannot read its file, every rank raises that rank's error.
    """
    if ranks.world == 1:
        yield from map(read, names)
        return
    group = dist.new_group(backend="gloo")  # NCCL cannot send host memory
    with ThreadPoolExecutor(1, "checkpoint file") as thread:
        ahead = thread.submit(read, names[ranks.rank]) if ranks.rank < len(names) else None
        for number in range(len(names)):
            owner = number % ranks.world
            data, failure = b"", None
            if owner == ranks.rank and ahead is not None:
                try:
                    data = ahead.result()
                except SageError as error:
                    failure = error
                if number + ranks.world < len(names):
                    ahead = thread.submit(read, names[number + ranks.world])
            size, failure = broadcast_object((len(data), failure), group, src=owner)
            if failure is not None:
                raise failure
            if size:
                body = bytearray(data) if owner == ranks.rank else bytearray(size)
                dist.broadcast(torch.frombuffer(body, dtype=torch.uint8), owner, group=group)
                data = data if owner == ranks.rank else bytes(body)
            yield data
    dist.destroy_process_group(group)


def _digest(state: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(state, sort_keys=True).encode())
