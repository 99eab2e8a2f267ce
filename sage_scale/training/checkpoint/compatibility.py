"""Whether a run may go on from a checkpoint: its recipe, and the frozen weights that it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from sage_scale.config import Recipe
from sage_scale.config.recipe import flat, to_mapping
from sage_scale.errors import CheckpointError

BREAKING_KEYS = (
    "model.kind",
    "model.backbone.depths",
    "model.backbone.widths",
    "model.backbone.pool",
    "model.feature_dim",
    "model.conv_kernel",
    "model.token_dim",
    "model.mapper_blocks",
    "model.mapper_last",
    "model.mapper_norm",
    "model.context_layers",
    "vision.kind",
    "text.target",
    "text.trim_vocabulary",
    *(
        f"model.sign2gpt.{key}"
        for key in (
            "spatial", "vit_patch", "vit_adapted", "window", "downsample_after", "padding", "positions", "lora_alpha",
        )
    ),
    *(f"prototypes.{key}" for key in ("vectors", "fasttext", "dim", "max_frequency", "splits")),
)  # fmt: skip
"""Keys that make another model or another objective: weights trained under other values cannot be gone on with."""
BREAKING_STAGE_KEYS = ("optimizer", "freeze", "init")
"""The same among the keys of the stage itself."""
IGNORED_KEYS = (
    "name",
    "evaluation.",
    "precompute.",
    "stream.cache",
    "stream.workers",
    "stream.memory",
    "stream.warn",
)
"""Keys whose change is not worth a line."""
_READ_BYTES = 1 << 22


@dataclass(frozen=True)
class RunIdentity:
    """What a run is, for its checkpoints."""

    stage: str = ""
    """pretrain or finetune."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """The whole recipe as plain values; empty: nothing is compared."""
    frozen: dict[str, str] = field(default_factory=dict)
    """xxh3-128 of the files that the frozen weights come from, by their path."""

    @classmethod
    def of(cls, stage: str, recipe: Recipe, frozen: Iterable[Path] = ()) -> RunIdentity:
        """`frozen` are files and folders; what is not there (a model named on a hub) is not compared."""
        files: dict[str, str] = {}
        for path in frozen:
            for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
                if file.is_file():
                    files[str(file)] = _file_digest(file)
        return cls(stage, to_mapping(recipe), files)

    def compare(self, state: dict[str, Any], where: str, say: Callable[[str], None]) -> None:
        """Raise CheckpointError where this run is not the checkpoint's; tell of harmless differences by `say`."""
        if not self.recipe or not state["recipe"]:
            return
        ours, theirs = flat(self.recipe), flat(state["recipe"])
        deciding = (*BREAKING_KEYS, *(f"{self.stage}.{key}" for key in BREAKING_STAGE_KEYS))
        other = "finetune" if self.stage == "pretrain" else "pretrain"
        differing = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
        refused = [key for key in differing if key in deciding]
        if refused:
            pairs = ", ".join(f"{key}={ours.get(key)} (there: {theirs.get(key)})" for key in refused)
            raise CheckpointError(
                f"{where} was trained by another recipe: {pairs}; restore these keys, or give another --run"
            )
        told = [key for key in differing if not key.startswith((*IGNORED_KEYS, f"{other}."))]
        if told:
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


def _file_digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()
