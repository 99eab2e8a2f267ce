"""Exports: a trained translator as the self-contained folder `RUN/model/`, written and read by its `ModelSpec`.

Tensor files and model folders are written atomically.

model/recipe.yaml    the whole recipe
model/hashes.json    size and xxh3-128 of each file, checked when the model is loaded
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sage_scale.config import Recipe, load_recipe, override
from sage_scale.config.recipe import flat, to_mapping
from sage_scale.errors import CheckpointError, NoModel
from sage_scale.nn.beam_search import Candidate
from sage_scale.nn.weights import read_weights, write_weights
from sage_scale.registry import model_names, model_spec
from sage_scale.storage import on_this_machine
from sage_scale.untrusted.hashes import check_hashes, write_hashes
from sage_scale.vision.backbone_choice import ENCODER
from sage_scale.vision.packed import PackedVideo

PARTS = {
    "segmentation.weights": "tagger",
    "vision.backbone": "frozen_backbone",
    "vision.backbone_weights": "frozen_backbone",
    "vision.extractor_weights": "extractor",
    "model.backbone.folder": ENCODER,
    "model.sign2gpt.vit_weights": "vit",
}
"""Recipe keys that name other files -> their folder in an export of `sage-scale models export` (standalone.py)."""


class TranslationModel(Protocol):
    """A trained model."""

    def generate(
        self,
        video: PackedVideo,
        tokenizer: Any,
        languages: Sequence[str],
        beams: int = 4,
        max_tokens: int = 150,
        length_penalty: float = 1.0,
        **read: Any,
    ) -> list[str]:
        """Returns one sentence per clip, by beam search. A model whose language model reads glosses also takes `texts`,
        glosses that it reads in place of the video."""
        ...

    def eval(self) -> Any:
        """Set evaluation mode."""
        ...


@runtime_checkable
class SearchingModel(TranslationModel, Protocol):
    """A trained model that also gives scores, several candidates, and the tokens by which signing is familiar."""

    def visual_tokens(self, video: PackedVideo) -> tuple[Tensor, Tensor]:
        """Returns the input of `search`: tokens (N, D), and the tokens of each clip, int64 (B,)."""
        ...

    def search(
        self,
        tokens_ND: Tensor,
        lengths_B: Tensor,
        tokenizer: Any,
        languages: Sequence[str],
        beams: int = 4,
        max_tokens: int = 150,
        length_penalty: float = 1.0,
        count: int = 0,
    ) -> list[list[Candidate]]:
        """Returns the `count` best sentences of each clip, best first, with scores; with `count` 0 the best one
        without its score."""
        ...


def export_folder(folder: str | Path) -> Path:
    """Returns the export of a run folder, or the folder itself if it is an export. Raises NoModel without one."""
    path = on_this_machine(folder, "a run or an export")
    if not path.exists():
        raise NoModel(f"there is no run {path}; give a run (runs/NAME) or an export (runs/NAME/model)")
    files = sorted({model_spec(name).export_file for name in model_names()}, reverse=True)
    for candidate in (path, path / "model"):
        if any((candidate / file).is_file() for file in files):
            return candidate
    raise NoModel(
        f"{folder} holds no trained translator ({' or '.join(f'model/{file}' for file in files)}); run "
        "`sage-scale finetune`"
    )


def load_translator(
    folder: str | Path, device: str | torch.device = "cpu"
) -> tuple[TranslationModel, Any, Recipe]:
    """Returns (translator in evaluation mode, tokenizer, recipe) of a run folder or its export `model/`.

    Raises CheckpointError naming what is missing or damaged (`hashes.json`), NoModel where there is no export.
    """
    path = export_folder(folder)
    check_hashes(path)
    recipe = parts_inside(load_recipe(path / "recipe.yaml"), path)
    return model_spec(recipe.model.kind).part("load")(path, recipe, device)


def parts_inside(recipe: Recipe, folder: Path) -> Recipe:
    """Returns the recipe with the paths of the parts that lie in the folder, which names them relative to itself.

    Raises CheckpointError where one of them is missing.
    """
    changes, known = [], flat(to_mapping(recipe))
    for key, part in PARTS.items():
        value = str(known.get(key) or "")
        if value == f"./{part}" or value.startswith(f"./{part}/"):
            if ".." in Path(value).parts or not (folder / value).exists():
                raise CheckpointError(f"{folder / value} is missing: copy the whole folder")
            changes.append(f"{key}={folder / value}")
    return override(recipe, changes) if changes else recipe


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, numbers as float32, atomically."""
    tensors = {
        name: value.detach().float().cpu().contiguous().clone()
        if value.is_floating_point()
        else value.cpu().clone()
        for name, value in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(tensors, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of `save_tensors`. Raises NoModel where the file is missing, else as `read_weights`."""
    try:
        return read_weights(path)
    except FileNotFoundError:
        raise _missing(path) from None


def need_tensors(path: Path) -> None:
    """Raise NoModel unless the file exists; call it before work that ends in `load_tensors`."""
    if not path.is_file():
        raise _missing(path)


def _missing(path: Path) -> NoModel:
    return NoModel(f"{path} is missing: run `sage-scale pretrain` first, or set finetune.init=none")


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder, which replaces `folder` at the end, with hashes of its files."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    write_hashes(partial)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
