"""Stage 2 on one rank: weights and optimizer, visual side, language model, and what the vocabulary costs."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

from sage_scale.config import Recipe
from sage_scale.models.sage.clip_cost import clip_cost
from sage_scale.models.sage.describe import describe, language_model_config
from sage_scale.models.sage.operations import translation_operations
from sage_scale.planning.step import LOGIT_BYTES, PASSES, ClipSize, StepSize
from sage_scale.planning.weights import WeightsMemory, weights_bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes kept for each of a token's d_model numbers in a layer of mBART, feed-forward values aside."""

    encoder: float
    """Two norms with what enters them, queries, keys, values, what attention gives, dropout."""
    decoder: float
    """The same with cross-attention."""
    source: float
    """For a token of the source: keys and values, and their gradients."""


KEPT_FP32, KEPT_BF16 = Kept(43, 74, 14), Kept(37, 55, 14)
"""By torch's profiler on transformers 5's mBART (tests/planning/test_counts.py)."""


@dataclass(frozen=True, slots=True)
class Stage2Plan:
    """One step of stage 2 on one rank; bytes and operations."""

    batch: int
    weights: WeightsMemory
    visual_bytes: float
    """Activations of frame encoder, temporal convolution and mapper."""
    language_bytes: float
    """Activations of the language model's layers."""
    logits_bytes: float
    """Logits, their probabilities and gradients."""
    operations: float

    @property
    def device_bytes(self) -> float:
        """Peak, where the backward pass begins."""
        return self.weights.total + self.visual_bytes + self.language_bytes + self.logits_bytes


class Stage2:
    """Stage 2 of a recipe on so many ranks, for any batch."""

    def __init__(self, recipe: Recipe, clip: ClipSize, ranks: int, bf16: bool, vocabulary: int = 0) -> None:
        """`vocabulary`: subwords that trimming leaves (0: the language model's own). Raises CheckpointError where the
        recipe's language model is unknown.
        """
        self.clip, self.ranks, self._stage = clip, ranks, recipe.finetune
        self.cost = clip_cost(recipe, clip, bf16, context=False)
        self._config = config = copy(language_model_config(recipe))
        self.vocabulary = vocabulary or config.vocab_size
        trimmed = (config.vocab_size - self.vocabulary) * config.d_model
        config.vocab_size = self.vocabulary
        parts = describe(recipe)
        trained = sum(part.stage2 for part in parts) - trimmed
        # Stage 1's own parts are not there.
        own = sum(part.parameters for part in parts if "stage 1" not in part.name) - trimmed
        self._weights = weights_bytes(recipe.finetune, trained, own - trained, ranks, bf16)
        self._value = 2 if bf16 else 4
        self._kept = KEPT_BF16 if bf16 else KEPT_FP32

    def plan(self, batch: int) -> Stage2Plan:
        """A step at a global batch; with `finetune.micro_batch` fewer clips are held at once."""
        own = -(-batch // self.ranks)
        held = min(own, self._stage.micro_batch) if self._stage.micro_batch else own
        N, M = self.clip.visual_tokens, self.clip.text_tokens + 2  # language code and end of sentence
        frozen = self._stage.freeze
        cost = self.cost
        visual = 0.0 if frozen == "visual" else held * cost.after_bytes
        if frozen == "none":
            visual = cost.held_bytes(held, self._stage.chunk_frames)
        operations = cost.step_operations(own, 1, self._stage.chunk_frames) if frozen == "none" else 0.0
        operations += own * PASSES * translation_operations(self._config, StepSize(1, 0, N, M))
        return Stage2Plan(
            batch=batch,
            weights=self._weights,
            visual_bytes=visual,
            language_bytes=held * (N * self._per_source_token() + M * self._per_target_token(N, M)),
            logits_bytes=held * M * self.vocabulary * LOGIT_BYTES[self._value],
            operations=operations,
        )

    def _per_source_token(self) -> float:
        """Bytes that the encoder keeps for a visual token; attention's maps of a few tokens are left out."""
        config = self._config
        layer = self._kept.encoder * config.d_model + 2 * self._value * config.encoder_ffn_dim
        return config.encoder_layers * layer

    def _per_target_token(self, source: float, target: float) -> float:
        """Bytes that the decoder keeps for a subword; what it keeps for the source's tokens is counted with it."""
        config, D = self._config, self._config.d_model
        layer = self._kept.decoder * D + 2 * self._value * config.decoder_ffn_dim
        return config.decoder_layers * (layer + self._kept.source * D * source / target)
