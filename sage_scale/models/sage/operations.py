"""Operations of one training step of SAGE's stages, counted from the architecture (`planning.step`)."""

from __future__ import annotations

from dataclasses import replace

from transformers import MBartConfig

from sage_scale.config import Recipe
from sage_scale.models.sage.clip_cost import clip_cost
from sage_scale.models.sage.describe import language_model_config
from sage_scale.planning.step import PASSES, ClipSize, StepSize

LOSS_OPERATIONS = 6
"""A pair of tokens in CLCL, forward and backward, for each dimension (docs/clcl.md, "Counts")."""


class StepOperations:
    """Operations of steps of a recipe's stage (`pretrain` or `finetune`)."""

    def __init__(self, recipe: Recipe, stage: str, language: MBartConfig | None = None) -> None:
        """`language` is the language model's configuration, where it is known already."""
        self._language = language or language_model_config(recipe)
        self._first = stage == "pretrain"
        self._frozen = "none" if self._first else recipe.finetune.freeze
        self._beta = recipe.clcl.beta
        if not self._first:
            recipe = replace(recipe, model=replace(recipe.model, context_layers=0))
        if self._frozen == "backbone" and recipe.vision.kind == "frames":
            width = recipe.model.backbone.widths[-1]
            recipe = replace(
                recipe,
                vision=replace(recipe.vision, kind="features"),
                model=replace(recipe.model, feature_dim=width),
            )
        self._recipe = recipe
        # Counts are linear in frames and tokens.
        self._frame = self._visual(1.0, 0.0)
        self._token = self._visual(0.0, 1.0)

    def __call__(self, size: StepSize) -> float:
        """Of forward and backward of the whole batch, over all ranks."""
        visual = size.frames * self._frame + size.visual_tokens * self._token
        if self._first:
            levels = 1 + (self._recipe.model.context_layers > 0 and self._beta < 1)
            pairs = size.visual_tokens * size.text_tokens
            return PASSES * visual + levels * LOSS_OPERATIONS * pairs * self._language.d_model
        if self._frozen == "visual":
            visual = 0.0
        return PASSES * (visual + translation_operations(self._language, size))

    def _visual(self, frames: float, tokens: float) -> float:
        return clip_cost(
            self._recipe, ClipSize(frames, tokens, 0.0), False, language=self._language
        ).operations


def translation_operations(language: MBartConfig, size: StepSize) -> float:
    """A forward pass of the language model: its encoder on visual tokens, its decoder on the labels, the vocabulary."""
    D, clips = language.d_model, max(size.clips, 1.0)
    N, M = size.visual_tokens, size.text_tokens
    fed_in, fed_out = language.encoder_ffn_dim, language.decoder_ffn_dim
    # Four projections, scores and their sum over values, the feed-forward part.
    encoder = N * (8 * D * D + 4 * D * N / clips + 4 * D * fed_in)
    # Self-attention sees half of the positions at most, but its products are computed whole.
    decoder = M * (8 * D * D + 4 * D * M / clips + 4 * D * fed_out)
    across = M * (4 * D * D + 4 * D * N / clips) + N * 4 * D * D
    vocabulary = M * 2 * D * language.vocab_size
    return language.encoder_layers * encoder + language.decoder_layers * (decoder + across) + vocabulary
