"""Parameter counts of a Sign2GPT recipe, from the meta device (Sign2GPT, Table 1b)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, XGLMConfig

from sage_scale.config import Recipe
from sage_scale.errors import CheckpointError
from sage_scale.models.sign2gpt.decoder import SignDecoder
from sage_scale.models.sign2gpt.prototypes import PrototypeHead
from sage_scale.models.sign2gpt.sign_encoder import SignEncoder
from sage_scale.models.sign2gpt.spatial import SpatialModel
from sage_scale.registry import Part
from sage_scale.text.hub import loading

_XGLM = {
    "facebook/xglm-564M": (1024, 4096, 24, 16),
    "facebook/xglm-1.7B": (2048, 8192, 24, 16),
    "facebook/xglm-2.9B": (2048, 8192, 48, 16),
    "facebook/xglm-7.5B": (4096, 16384, 32, 32),
}
"""Width, intermediate size, layers and heads of the published models (XGLM, Lin et al. 2021, Table 2)."""


def sign2gpt_modules(recipe: Recipe) -> dict[str, nn.Module]:
    """Returns the parts of Table 1b by name, without values."""
    settings = replace(recipe.model.sign2gpt, vit_weights="")
    recipe = replace(recipe, model=replace(recipe.model, sign2gpt=settings))
    with torch.device("meta"):
        config = causal_model_config(recipe)
        parts: dict[str, nn.Module] = {}
        if settings.spatial != "signs":
            parts = {"spatial": SpatialModel(recipe), "sign encoder": SignEncoder(settings)}
        return {**parts, "decoder": SignDecoder(settings, AutoModelForCausalLM.from_config(config))}


def describe(recipe: Recipe) -> list[Part]:
    """Returns the parts in the order of the data.

    Raises CheckpointError where `model.language_model` is neither a known name nor a folder with a config.json.
    """
    parts = []
    for name, module in sign2gpt_modules(recipe).items():
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
        trained = sum(count for count, trains in counts if trains)
        parts.append(Part(name, sum(count for count, _ in counts), trained * (name != "decoder"), trained))
    return parts


def note(recipe: Recipe) -> str:
    """Returns a line on what the parts leave out."""
    count = prototype_head_parameters(recipe)
    return f"Stage 1 trains {count:,} more, the head that compares with the prototypes; stage 2 drops it."


def prototype_head_parameters(recipe: Recipe) -> int:
    """Returns trained parameters of stage 1's head."""
    with torch.device("meta"):
        head = PrototypeHead(
            recipe.model.sign2gpt.width, recipe.prototypes, torch.zeros(0, recipe.prototypes.dim)
        )
    return sum(parameter.numel() for parameter in head.parameters())


def causal_model_config(recipe: Recipe) -> PreTrainedConfig:
    """Returns the configuration of the recipe's language model, without a download.

    Raises CheckpointError where `model.language_model` is neither a known name nor a folder with a config.json.
    """
    name = recipe.model.language_model
    if recipe.denoise.enabled:  # made from the corpus
        small = recipe.denoise
        return XGLMConfig(
            vocab_size=small.vocabulary, d_model=small.width, ffn_dim=4 * small.width, num_layers=small.layers,
            attention_heads=small.heads,
        )  # fmt: skip
    if name in _XGLM:
        width, ffn, layers, heads = _XGLM[name]
        return XGLMConfig(d_model=width, ffn_dim=ffn, num_layers=layers, attention_heads=heads)
    if not (Path(name) / "config.json").is_file():
        raise CheckpointError(
            f"model.language_model='{name}' is no folder with a config.json and none of {', '.join(_XGLM)}"
        )
    with loading(name):
        return AutoConfig.from_pretrained(name)
