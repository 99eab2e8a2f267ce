"""Parameter counts of a SAGE recipe, on the meta device: no weight is allocated or downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import MBartConfig, MBartForConditionalGeneration

from sage_scale.config import Recipe
from sage_scale.errors import CheckpointError
from sage_scale.losses import objective_of
from sage_scale.models.sage.context import ContextEncoder
from sage_scale.models.sage.sentence import SentenceDecoder
from sage_scale.models.sage.visual import Mapper, VisualEncoder
from sage_scale.registry import Part
from sage_scale.text.hub import loading

_LARGE_VOCABULARY = {
    "facebook/mbart-large-50": 250_054,
    "facebook/mbart-large-50-many-to-many-mmt": 250_054,
    "facebook/mbart-large-50-many-to-one-mmt": 250_054,
    "facebook/mbart-large-50-one-to-many-mmt": 250_054,
    "facebook/mbart-large-cc25": 250_027,
}
"""Vocabulary sizes of the published checkpoints; all other sizes are equal (mBART, Liu et al. 2020, section 2.2)."""
_EXTRA_TOKENS = 54
"""Tokens of mBART-50 besides the pieces: the padding token, 52 language codes and the mask."""


def describe(recipe: Recipe) -> list[Part]:
    """Returns the model's parts with their parameter counts, in the order of the forward pass.

    The vocabulary is counted before trimming. Raises CheckpointError if `model.language_model` is neither a known name
    nor a folder with a config.json.
    """
    with torch.device("meta"):
        config = language_model_config(recipe)
        visual = VisualEncoder(recipe)
        mapper = Mapper(recipe.model, config.d_model)
        language_model = MBartForConditionalGeneration(config)
        layers = recipe.model.context_layers
        context = ContextEncoder(config, layers, recipe.model.dropout) if layers else None
        sentence = SentenceDecoder(language_model) if recipe.clcl.sentence else None
    freeze = recipe.finetune.freeze
    parts = []
    if visual.backbone is not None:
        parts.append(_part("frame encoder", visual.backbone, True, freeze == "none"))
    parts.append(
        _part("temporal convolution", nn.ModuleList([visual.temporal, visual.norm]), True, freeze != "visual")
    )
    parts.append(_part("vision-to-language mapper", mapper, True, freeze != "visual"))
    if context is not None:
        parts.append(_part("context encoder (stage 1)", context, True, False))
    if sentence is not None:
        parts.append(_part("sentence decoder (stage 1)", sentence, True, False))
    numbers = 2 if objective_of(recipe.clcl).bias_start is None else 4
    parts.append(Part("logit scales (stage 1)", numbers, numbers, 0))
    parts.append(_part("language model", language_model, False, True))
    return parts


def language_model_config(recipe: Recipe) -> MBartConfig:
    """Returns the configuration of the recipe's mBART, without a download."""
    name = recipe.model.language_model
    if recipe.denoise.enabled:
        small = recipe.denoise
        return MBartConfig(
            vocab_size=small.vocabulary + _EXTRA_TOKENS,
            d_model=small.width,
            encoder_layers=small.layers,
            decoder_layers=small.layers,
            encoder_attention_heads=small.heads,
            decoder_attention_heads=small.heads,
            encoder_ffn_dim=4 * small.width,
            decoder_ffn_dim=4 * small.width,
            max_position_embeddings=320,
        )
    if name in _LARGE_VOCABULARY:
        return MBartConfig(
            vocab_size=_LARGE_VOCABULARY[name], d_model=1024, encoder_layers=12, decoder_layers=12,
            encoder_attention_heads=16, decoder_attention_heads=16, encoder_ffn_dim=4096, decoder_ffn_dim=4096,
            max_position_embeddings=1024, scale_embedding=True,
        )  # fmt: skip
    if not (Path(name) / "config.json").is_file():
        known = ", ".join(_LARGE_VOCABULARY)
        raise CheckpointError(
            f"model.language_model='{name}' is no folder with a config.json and none of {known}"
        )
    with loading(name):
        return MBartConfig.from_pretrained(name)


def _part(name: str, module: nn.Module, stage1: bool, stage2: bool) -> Part:
    count = sum(parameter.numel() for parameter in module.parameters())
    return Part(name, count, count * stage1, count * stage2)
