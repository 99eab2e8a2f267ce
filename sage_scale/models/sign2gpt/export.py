"""The export of Sign2GPT: adapters, and the frozen models that no other file holds.

model/recipe.yaml             the whole recipe
model/adapters.safetensors    what was trained, with adapters.json (models.sign2gpt.checkpoint)
model/language_model/         a language model that the run made, prepared or trained along; else the recipe names it
model/backbone/               configuration of an image model that was trained in place of the ResNet
model/frozen.safetensors      a vision transformer that started at random, which is in no other file
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from sage_scale.config import Recipe, override, to_yaml
from sage_scale.errors import CheckpointError
from sage_scale.models.sign2gpt.checkpoint import (
    TENSORS,
    load_adapters,
    save_adapters,
    unsaved_frozen_weights,
)
from sage_scale.models.sign2gpt.decoder import load_causal_model
from sage_scale.models.sign2gpt.merge import plain_model, vit_beside
from sage_scale.models.sign2gpt.model import Sign2GptTranslator
from sage_scale.nn.frame_encoder import save_encoder_config
from sage_scale.nn.weights import check_finite, put_weights
from sage_scale.text.hub import LARGEST_FILE
from sage_scale.training.export import load_tensors, replace_folder, save_tensors
from sage_scale.vision.backbone_choice import encoder_beside

ADAPTERS = TENSORS
LANGUAGE, FROZEN = "language_model", "frozen.safetensors"


def save_translator(
    model: Sign2GptTranslator, tokenizer: Any, recipe: Recipe, folder: Path, language: Path | str
) -> None:
    """Write the export folder; it replaces an older one only when it is complete.

    `language` is the source of the language model: copied where it is the run's own, beside the export. One that was
    trained along is written itself.
    """
    with replace_folder(folder) as partial:
        save_adapters(model, recipe, partial)
        save_encoder_config(model.spatial and model.spatial.backbone, partial)
        if recipe.model.sign2gpt.language_lr_scale:
            plain_model(model.decoder.language_model, merged=False).save_pretrained(
                partial / LANGUAGE, max_shard_size=LARGEST_FILE
            )
            tokenizer.save_pretrained(partial / LANGUAGE)
        elif isinstance(language, Path) and language.absolute().parent == folder.absolute().parent:
            shutil.copytree(language, partial / LANGUAGE)
        if unsaved := unsaved_frozen_weights(model, recipe):
            save_tensors(unsaved, partial / FROZEN)
        (partial / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")


def load_translator(
    path: Path, recipe: Recipe, device: str | torch.device = "cpu"
) -> tuple[Sign2GptTranslator, Any, Recipe]:
    """Returns (translator in evaluation mode, tokenizer, recipe) of an export folder.

    Raises CheckpointError naming what is missing, or which frozen model is another than the adapters were trained on.
    """
    recipe = override(recipe, [*vit_beside(path), *encoder_beside(path)])
    own = path / LANGUAGE
    language = own if own.is_dir() else recipe.model.language_model
    if not language:
        raise CheckpointError(
            f"{own} is missing, and the recipe names no language model: copy the whole export"
        )
    language_model, tokenizer = load_causal_model(language, recipe.model.sign2gpt.language_dtype)
    model = Sign2GptTranslator(recipe, language_model)
    if (path / FROZEN).is_file():
        frozen = load_tensors(path / FROZEN)
        put_weights(model, frozen, frozen.keys() & model.state_dict().keys(), path / FROZEN)
    load_adapters(model, path)
    check_finite(model.state_dict(), path)
    return model.to(device).eval(), tokenizer, recipe
