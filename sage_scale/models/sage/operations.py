"""Operations of one training step of SAGE's stages, counted from the architecture (`planning.step`).

Measured on fake tensors a model of 24 layers takes seconds, and a step's operations are logged at each step, of any
size; so they are formulas, equal to torch's counter (tests/planning).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import MBartConfig

from sage_scale.config import Recipe
from sage_scale.models.sage.describe import language_model_config
from sage_scale.planning.measure import frame_operations
from sage_scale.planning.step import PASSES, StepSize
from sage_scale.vision.backbone_choice import encoder_width

LOSS_OPERATIONS = 6
"""A pair of tokens in CLCL, forward and backward, for each dimension (docs/clcl.md, "Counts")."""


@dataclass(frozen=True, slots=True)
class VisualOperations:
    """Operations of a forward pass through visual encoder, mapper and context encoder."""

    backbone: float
    """Of a frame through the frame encoder; 0 for stored features."""
    backbone_trained: float
    """Of a frame through the frame encoder, forward and backward."""
    frame: float
    """Of a frame through the temporal convolution."""
    token: float
    """Of a visual token through mapper and context encoder."""
    first: float
    """Of a frame through the first product behind stored features, which have no gradient; else 0."""
    strided: bool = False
    """Whether of each segment one frame alone is seen (`model.pooling=first`)."""

    @classmethod
    def of(cls, recipe: Recipe, language: MBartConfig) -> VisualOperations:
        """Returns the operations of a recipe; `language` is the language model's configuration."""
        model, D, feed = recipe.model, language.d_model, language.encoder_ffn_dim
        frames = recipe.vision.kind == "frames"
        width = encoder_width(model.backbone) if frames else model.feature_dim
        token = 2 * D * (model.token_dim + (model.mapper_blocks - 1) * D) if model.mapper_blocks else 0
        # At beta=1 no level reads the context encoder, and stage 1 skips it.
        layers = model.context_layers if recipe.clcl.beta < 1 or recipe.clcl.sentence else 0
        token += layers * (8 * D * D + 4 * D * feed)
        frame = 2 * model.conv_kernel * width * model.token_dim
        backbone = frame_operations(recipe) if frames else (0.0, 0.0)
        strided = model.pooling == "first"
        return cls(*backbone, frame, token, 0.0 if frames else frame, strided)

    def frames_seen(self, frames: float, tokens: float) -> float:
        """Returns how many of the stored frames pass the frame encoder and the temporal convolution."""
        return min(frames, tokens) if self.strided else frames

    def of_clips(self, frames: float, tokens: float) -> float:
        """Returns the operations of a forward pass of these numbers of stored frames and visual tokens."""
        return self.frames_seen(frames, tokens) * (self.backbone + self.frame) + tokens * self.token

    def trained(self, frames: float, tokens: float) -> float:
        """Returns the operations of a forward and backward pass."""
        per_frame = self.backbone_trained + PASSES * self.frame - self.first
        return self.frames_seen(frames, tokens) * per_frame + tokens * PASSES * self.token


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
            width = encoder_width(recipe.model.backbone)
            recipe = replace(
                recipe,
                vision=replace(recipe.vision, kind="features"),
                model=replace(recipe.model, feature_dim=width),
            )
        self._recipe, self._visual = recipe, VisualOperations.of(recipe, self._language)

    def __call__(self, size: StepSize) -> float:
        """Returns the operations of forward and backward of the global batch, over all ranks."""
        visual = self._visual.trained(size.frames, size.visual_tokens)
        if self._first:
            levels = 1 + (self._recipe.model.context_layers > 0 and 0 < self._beta < 1)
            pairs = size.visual_tokens * size.text_tokens
            return visual + levels * LOSS_OPERATIONS * pairs * self._language.d_model
        if self._frozen == "visual":
            visual = 0.0
        return visual + PASSES * translation_operations(self._language, size)


def translation_operations(language: MBartConfig, size: StepSize) -> float:
    """Returns the operations of a forward pass of the language model: encoder on visual tokens, decoder on labels,
    vocabulary."""
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
