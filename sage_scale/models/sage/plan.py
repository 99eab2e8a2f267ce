"""Stage 1 on one rank: weights and optimizer, encoder, loss; and the largest batch that fits."""

from __future__ import annotations

from dataclasses import dataclass

from sage_scale.config import Recipe
from sage_scale.models.sage.clip_cost import clip_cost
from sage_scale.models.sage.describe import describe, language_model_config
from sage_scale.planning.loss import LossSize, Way, loss_bytes, loss_operations
from sage_scale.planning.step import RESERVED, ClipSize, largest
from sage_scale.planning.weights import WeightsMemory, weights_bytes


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One step of stage 1 on one rank; bytes and operations."""

    batch: int
    memory: WeightsMemory
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
    def weights_bytes(self) -> float:
        """Weights, gradients and optimizer states together."""
        return self.memory.total

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
        self._chunk_frames = recipe.pretrain.chunk_frames
        parts = describe(recipe)
        # The frozen text side is about half of the language model, whole on every rank.
        frozen = next(part.parameters for part in parts if part.name == "language model") / 2
        trained = sum(part.stage1 for part in parts)
        self._memory = {
            cached: weights_bytes(recipe.pretrain, trained, frozen, ranks, bf16, cached)
            for cached in (False, True)
        }

    def plan(self, batch: int, way: Way = "ring", micro_batch: int = 0) -> StagePlan:
        """A step at a global batch; `micro_batch` clips pass the encoder at once (0: direct, all of the rank's)."""
        own = -(-batch // self.ranks)
        cached = 0 < micro_batch < own
        size = LossSize(batch, self.clip.visual_tokens, self.clip.text_tokens, self.width, self.ranks)
        waiting = 4 * self.width * own * (self.clip.visual_tokens + self.clip.text_tokens)
        return StagePlan(
            batch=batch,
            memory=self._memory[cached],
            encoder_bytes=self.cost.held_bytes(micro_batch if cached else own, self._chunk_frames),
            tokens_bytes=own * self.cost.token_bytes,
            loss_bytes=loss_bytes(size, way) + (self.levels - 1) * waiting,
            host_bytes=own * self.cost.input_bytes,
            encoder_operations=self.cost.step_operations(own, 2 if cached else 1, self._chunk_frames),
            loss_operations=self.levels * loss_operations(size, way),
            cached=cached,
        )

    def largest_batch(self, memory_bytes: float, way: Way = "ring", micro_batch: int = 0) -> int:
        """The largest global batch whose step fits into a rank's memory, to within one clip; 0 where none does."""
        room = (1 - RESERVED) * memory_bytes
        return largest(lambda batch: self.plan(batch, way, micro_batch).device_bytes <= room)
