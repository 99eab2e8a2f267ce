"""The export of SAGE: a folder that `training.export.load_translator` opens.

model/recipe.yaml            the whole recipe
model/language_model/        a Hugging Face folder (safetensors, config, tokenizer): `from_pretrained` opens it; of a
                             trimmed vocabulary, `vocabulary.json` gives the original id of each row (`kept_ids`)
model/visual.safetensors     visual encoder and mapper, float32, by name (`visual.*`, `mapper.*`)
model/backbone/              configuration of an image model that was trained in place of the ResNet
model/hashes.json            size and xxh3-128 of each file, checked when the model is loaded
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from sage_scale.config import Recipe, override, to_yaml
from sage_scale.models.sage.mbart import load_language_model
from sage_scale.models.sage.model import SageAligner, SageTranslator
from sage_scale.nn.frame_encoder import save_encoder_config
from sage_scale.nn.weights import check_finite, put_weights
from sage_scale.text.hub import LARGEST_FILE
from sage_scale.training.export import load_tensors, replace_folder, save_tensors
from sage_scale.vision.backbone_choice import encoder_beside

VOCABULARY = "vocabulary.json"
VISUAL = ("visual.", "mapper.", "context.")
EXPORT_FILE = "visual.safetensors"


def save_visual(model: SageAligner | SageTranslator, path: Path) -> None:
    """Write the visual side of SAGE (encoder, mapper, context encoder if any), atomically."""
    save_encoder_config(model.visual.backbone, path.parent)
    save_tensors({n: value for n, value in model.state_dict().items() if n.startswith(VISUAL)}, path)


def save_translator(
    model: SageTranslator, tokenizer: Any, recipe: Recipe, folder: Path, language_folder: Path | None = None
) -> None:
    """Write the export folder; it replaces an older one only when it is complete.

    `language_folder` is where the language model came from; its vocabulary map goes along.
    """
    with replace_folder(folder) as partial:
        save_visual(model, partial / EXPORT_FILE)
        model.language_model.save_pretrained(partial / "language_model", max_shard_size=LARGEST_FILE)
        tokenizer.save_pretrained(partial / "language_model")
        if language_folder is not None and (language_folder / VOCABULARY).is_file():
            shutil.copyfile(language_folder / VOCABULARY, partial / "language_model" / VOCABULARY)
        (partial / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")


def load_translator(
    path: Path, recipe: Recipe, device: str | torch.device = "cpu"
) -> tuple[SageTranslator, Any, Recipe]:
    """Returns (translator in evaluation mode, tokenizer, recipe) of an export folder.

    Raises CheckpointError naming what is missing or damaged.
    """
    recipe = override(recipe, encoder_beside(path))
    language_model, tokenizer = load_language_model(path / "language_model")
    check_finite(language_model.state_dict(), path / "language_model")
    model = SageTranslator(recipe, language_model)
    tensors = load_tensors(path / EXPORT_FILE)
    wanted = {name for name in model.state_dict() if name.startswith(VISUAL)}
    put_weights(model, tensors, wanted, path / EXPORT_FILE)
    return model.to(device).eval(), tokenizer, recipe
