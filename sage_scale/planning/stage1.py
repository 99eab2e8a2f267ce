"""Stage 1 on one rank: weights and optimizer, encoder, loss; and the largest batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sage_scale.config import Recipe
from sage_scale.models.describe import describe, language_model_config
from sage_scale.planning.encoder import ClipSize, clip_cost
from sage_scale.planning.loss import LossSize, Way, loss_bytes, loss_operations

RESERVED = 0.08
"""Share of a GPU's memory that is not ours: context, libraries, fragments."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One step of stage 1 on one rank; bytes and operations."""

    batch: int
    weights_bytes: float
    """Weights, gradients and optimizer states, as ZeRO spreads them."""
    encoder_bytes: float
    """Activations of the clips that are in the encoder at once."""
    tokens_bytes: float
    """Tokens, hidden states and their gradients, of all own clips."""
    loss_bytes: float
    """One level at its peak, and the other's normalised tokens, which wait for their backward pass."""
    host_bytes: float
    """The rank's clips in host memory, once."""
    encoder_operations: float
    loss_operations: float
    """Both levels."""
    cached: bool
    """Whether clips pass in chunks, twice."""

    @property
    def device_bytes(self) -> float:
        """Peak: the loss runs between the passes of a cached step, and beside the activations of a direct one."""
        parts = self.encoder_bytes, self.loss_bytes
        return self.weights_bytes + self.tokens_bytes + (max(parts) if self.cached else sum(parts))

    @property
    def operations(self) -> float:
        """Of a whole step on this rank."""
        return self.encoder_operations + self.loss_operations


class Stage1:
    """Stage 1 of a recipe on so many ranks, for any batch."""

    def __init__(self, recipe: Recipe, clip: ClipSize, ranks: int, bf16: bool) -> None:
        """Raises CheckpointError where the recipe's language model is unknown."""
        self.clip, self.ranks = clip, ranks
        self.cost = clip_cost(recipe, clip, bf16)
        self.width = language_model_config(recipe).d_model
        self.levels = 2 if recipe.model.context_layers and recipe.clcl.beta < 1 else 1
        self._zero, self._bf16 = recipe.pretrain.zero_stage, bf16
        self._states = 2 if recipe.pretrain.optimizer == "adamw" else int(recipe.pretrain.momentum > 0)
        parts = describe(recipe)
        self._trained = sum(part.stage1 for part in parts)
        # The frozen text side is about half of the language model, whole on every rank.
        self._frozen = next(part.parameters for part in parts if part.name == "language model") / 2

    def plan(self, batch: int, way: Way = "ring", micro_batch: int = 0) -> StagePlan:
        """A step at a global batch; `micro_batch` clips pass the encoder at once (0: direct, all of the rank's)."""
        own = -(-batch // self.ranks)
        cached = 0 < micro_batch < own
        size = LossSize(batch, self.clip.visual_tokens, self.clip.text_tokens, self.width, self.ranks)
        waiting = 4 * self.width * own * (self.clip.visual_tokens + self.clip.text_tokens)
        return StagePlan(
            batch=batch,
            weights_bytes=self._weights(cached),
            encoder_bytes=(micro_batch if cached else own) * self.cost.activation_bytes,
            tokens_bytes=own * self.cost.token_bytes,
            loss_bytes=loss_bytes(size, way) + (self.levels - 1) * waiting,
            host_bytes=own * self.cost.input_bytes,
            encoder_operations=own * self.cost.operations * (4 if cached else 3),
            loss_operations=self.levels * loss_operations(size, way),
            cached=cached,
        )

    def largest_batch(self, memory_bytes: float, way: Way = "ring", micro_batch: int = 0) -> int:
        """The largest global batch whose step fits into a rank's memory, to within one clip; 0 where none does."""
        room = (1 - RESERVED) * memory_bytes
        return largest(lambda batch: self.plan(batch, way, micro_batch).device_bytes <= room)

    def _weights(self, cached: bool) -> float:
        ranks, zero, trained = self.ranks, self._zero, self._trained
        weights = trained / (ranks if zero == 3 else 1)
        # Before they are reduced once, gradients of a cached step are whole on every rank.
        gradients = trained / (ranks if zero >= 2 and not cached else 1)
        states = self._states * trained / (ranks if zero >= 1 else 1)
        flat = trained / ranks if zero in (1, 2) else 0
        rounded = 2 * trained if self._bf16 else 0
        return 4 * (weights + gradients + states + flat + self._frozen) + rounded


def largest(fits: Callable[[int], bool], limit: int = 1 << 30) -> int:
    """The largest number up to `limit` for which `fits` holds, where it holds for all smaller ones; 0 for none."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
