"""Weights, gradients and optimizer states of a stage on one rank, as ZeRO spreads them."""

from __future__ import annotations

from dataclasses import dataclass

from sage_scale.config import Stage


@dataclass(frozen=True, slots=True)
class WeightsMemory:
    """Bytes on one rank."""

    weights: float
    """float32, as they are trained."""
    gradients: float
    states: float
    """Optimizer states: momentum, or AdamW's two."""
    flat: float
    """ZeRO-1 and 2: the rank's own part of the weights once more."""
    frozen: float
    """What is not trained, float32, whole on every rank."""
    rounded: float
    """bfloat16 copies that autocast makes of the weights for a step."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.states + self.flat + self.frozen + self.rounded


def weights_bytes(
    stage: Stage, trained: float, frozen: float, ranks: int, bf16: bool, cached: bool = False
) -> WeightsMemory:
    """For so many trained and frozen parameters. `cached`: gradients of a step in chunks, which are whole on every
    rank until they are reduced, once.
    """
    zero = stage.zero_stage
    states = 2 if stage.optimizer == "adamw" else int(stage.momentum > 0)
    return WeightsMemory(
        weights=4 * trained / (ranks if zero == 3 else 1),
        gradients=4 * trained / (ranks if zero >= 2 and not cached else 1),
        states=4 * states * trained / (ranks if zero >= 1 else 1),
        flat=4 * trained / ranks if zero in (1, 2) else 0,
        frozen=4 * frozen,
        rounded=2 * trained if bf16 else 0,
    )
