"""Checks that a run may resume from a checkpoint: the recipe and the frozen weights must be compatible."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from sage_scale.config import Recipe
from sage_scale.config.recipe import flat, to_mapping
from sage_scale.errors import CheckpointError
from sage_scale.registry import model_spec

BREAKING_KEYS = (
    "model.kind",
    "model.backbone.depths",
    "model.backbone.widths",
    "model.backbone.pool",
    "model.feature_dim",
    "stream.fraction",
    "vision.kind",
    "text.target",
    "text.trim_vocabulary",
)
"""Keys of the model, the objective and the training clips: changing them, or the model's own
(`ModelSpec.breaking_keys`), makes a checkpoint non-resumable."""
BREAKING_STAGE_KEYS = ("optimizer", "freeze", "init", "glosses")
"""Breaking keys among those of the stage itself."""
IGNORED_KEYS = (
    "name", "evaluation.", "precompute.", "stream.cache", "stream.workers", "stream.memory", "stream.warn",
)  # fmt: skip
"""Keys, or beginnings of keys, whose change is not reported."""


@dataclass(frozen=True)
class RunIdentity:
    """The recipe and the hashes of frozen weights of a run, stored in its checkpoints."""

    stage: str = ""
    """pretrain or finetune."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The whole recipe as plain values; empty: nothing is compared."""
    frozen: dict[str, str] = field(default_factory=dict)
    """xxh3-128 of the files that the frozen weights come from, by their path."""

    @classmethod
    def of(cls, stage: str, recipe: Recipe, frozen: Iterable[Path] = ()) -> RunIdentity:
        """Returns a run's identity. `frozen` are files and folders; a missing path (a hub name) is not compared."""
        files: dict[str, str] = {}
        for path in frozen:
            for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
                if file.is_file():
                    with file.open("rb") as data:
                        files[str(file)] = hashlib.file_digest(data, xxhash.xxh3_128).hexdigest()
        return cls(stage, to_mapping(recipe), files)

    def compare(self, state: dict[str, Any], where: str, say: Callable[[str], None]) -> None:
        """Raise CheckpointError if a breaking key or a frozen weight differs; report other changed keys by `say`."""
        if not self.recipe or not state["recipe"]:
            return
        ours = flat(self.recipe)
        # A key that an older version did not have counts as its default.
        theirs = flat(to_mapping(Recipe())) | flat(state["recipe"])
        differing = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
        own = model_spec(ours["model.kind"]).breaking_keys
        breaking = (*BREAKING_KEYS, *own, *(f"{self.stage}.{key}" for key in BREAKING_STAGE_KEYS))
        if refused := [key for key in differing if key in breaking]:
            pairs = ", ".join(f"{key}={ours.get(key)} (there: {theirs.get(key)})" for key in refused)
            raise CheckpointError(
                f"{where} was trained by another recipe: {pairs}; restore these keys, or give another --run"
            )
        other = "finetune" if self.stage == "pretrain" else "pretrain"
        if told := [key for key in differing if not key.startswith((*IGNORED_KEYS, f"{other}."))]:
            pairs = ", ".join(f"{key} {theirs.get(key)} -> {ours.get(key)}" for key in told)
            say(f"going on with other settings than the checkpoint's: {pairs}")
        stored = {Path(path).name: digest for path, digest in state["frozen"].items()}
        for path, digest in self.frozen.items():
            # By name: a run folder may have moved.
            if stored.get(Path(path).name, digest) != digest:
                raise CheckpointError(
                    f"{where} was trained with other frozen weights than {path} holds now; put the file back, or "
                    f"delete the checkpoints to begin the stage anew"
                )
