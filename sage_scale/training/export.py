"""What leaves training for the world: a folder that a stranger opens.

model/recipe.yaml            the whole recipe
model/language_model/        a Hugging Face folder (safetensors, config, tokenizer): `from_pretrained` opens it; of a
                             trimmed vocabulary, `vocabulary.json` gives the original id of each row (`kept_ids`)
model/visual.safetensors     visual encoder and mapper, float32, by name (`visual.*`, `mapper.*`)
model/hashes.json            size and xxh3-128 of each file, checked when the model is loaded
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from sage_scale.config import Recipe, load_recipe, to_yaml
from sage_scale.errors import NoModel
from sage_scale.models.language import load_language_model
from sage_scale.models.sage import SageTranslator
from sage_scale.models.weights import check_finite, put_weights
from sage_scale.storage import on_this_machine
from sage_scale.training.checkpoint.tensors import load_tensors, replace_folder, save_tensors
from sage_scale.untrusted.hashes import check_sealed
from sage_scale.vision.packed import PackedVideo

VOCABULARY = "vocabulary.json"
VISUAL = ("visual.", "mapper.", "context.")
SAGE_EXPORT = "visual.safetensors"
EXPORTS = (SAGE_EXPORT, "adapters.safetensors")
"""One of them is in every export: SAGE's, or Sign2GPT's (sign2gpt/export.py)."""


class Translator(Protocol):
    """A trained model of either kind."""

    def generate(
        self,
        video: PackedVideo,
        tokenizer: Any,
        languages: Sequence[str],
        beams: int = 4,
        max_tokens: int = 150,
        length_penalty: float = 1.0,
    ) -> list[str]:
        """A sentence for each clip by beam search."""
        ...

    def eval(self) -> Any:
        """To evaluation mode."""
        ...


def save_visual(model: nn.Module, path: Path) -> None:
    """Write the visual side of SAGE (encoder, mapper, context encoder if any), atomically."""
    save_tensors({n: value for n, value in model.state_dict().items() if n.startswith(VISUAL)}, path)


def save_translator(
    model: SageTranslator, tokenizer: Any, recipe: Recipe, folder: Path, language_folder: Path | None = None
) -> None:
    """Write the export folder; it replaces an older one only when it is whole.

    `language_folder` is where the language model came from; its vocabulary map goes along.
    """
    with replace_folder(folder) as partial:
        save_visual(model, partial / "visual.safetensors")
        model.language_model.save_pretrained(partial / "language_model")
        tokenizer.save_pretrained(partial / "language_model")
        if language_folder is not None and (language_folder / VOCABULARY).is_file():
            shutil.copyfile(language_folder / VOCABULARY, partial / "language_model" / VOCABULARY)
        (partial / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")


def export_folder(folder: str | Path) -> Path:
    """Where a run folder, or its `model/` export, has the export. Raises NoModel where there is none."""
    path = on_this_machine(folder, "a run or an export")
    if not path.exists():
        raise NoModel(f"there is no run {path}; give a run (runs/NAME) or an export (runs/NAME/model)")
    if not any((path / name).is_file() for name in EXPORTS):
        path = path / "model"
    if not any((path / name).is_file() for name in EXPORTS):
        raise NoModel(
            f"{folder} holds no trained translator ({' or '.join(f'model/{name}' for name in EXPORTS)}); run "
            "`sage-scale finetune`"
        )
    return path


def load_translator(folder: str | Path, device: str | torch.device = "cpu") -> tuple[Translator, Any, Recipe]:
    """(translator in eval mode, tokenizer, recipe) from a run folder or its `model/` export.

    Raises CheckpointError naming what is missing or damaged (`hashes.json`), NoModel where nothing is there.
    """
    path = export_folder(folder)
    if not (path / SAGE_EXPORT).is_file():
        from sage_scale.training.sign2gpt import export as sign2gpt

        return sign2gpt.load_translator(path, device)
    check_sealed(path)
    recipe = load_recipe(path / "recipe.yaml")
    language_model, tokenizer = load_language_model(path / "language_model")
    check_finite(language_model.state_dict(), path / "language_model")
    model = SageTranslator(recipe, language_model)
    tensors = load_tensors(path / SAGE_EXPORT)
    wanted = {name for name in model.state_dict() if name.startswith(VISUAL)}
    put_weights(model, tensors, wanted, path / SAGE_EXPORT)
    return model.to(device).eval(), tokenizer, recipe
