"""Operations of one training step, counted from the architecture; what MFU is a share of.

MFU (Chowdhery et al. 2022, appendix B) counts what the model asks for: forward and backward once, each multiplication
and addition of a matrix product as one operation. What is computed twice (recomputed layers, the embedding cache) does
not count twice, and a backward pass is two forward passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sage_scale.config import Recipe
from sage_scale.planning.gpus import Gpu

PASSES = 3
"""Forward, and backward with twice its work."""
LOGIT_BYTES = {4: 12, 2: 14}
"""Kept for a subword of the vocabulary (product, float32, log-probability, gradient), by bytes of a product's value."""
RESERVED = 0.08
"""Share of a GPU's memory that is not ours: context, libraries, fragments."""


@dataclass(frozen=True, slots=True)
class ClipSize:
    """A mean clip of a corpus."""

    frames: float
    """Stored frames (on the recipe's stride) in its segments."""
    visual_tokens: float
    """Segments, N."""
    text_tokens: float
    """Subwords of its pseudo-glosses or sentence, M."""


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a global batch holds; means may be multiplied by a number of clips."""

    clips: float
    frames: float
    """Frames in segments."""
    visual_tokens: float
    text_tokens: float
    """Subwords: stage 1, of pseudo-glosses or sentences; stage 2, labels."""


@dataclass(frozen=True)
class PlanRequest:
    """A plan that is asked for."""

    recipe: Recipe
    clip: ClipSize
    ranks: int
    gpu: str
    """Name of the device."""
    device: Gpu
    batches: tuple[int, ...]
    """Global batches beside the recipe's; empty: the model's choice."""
    chunk: int
    """Clips in a chunk of the embedding cache; 0: the recipe's."""
    prototypes: int
    """Pseudo-glosses with a prototype."""
    vocabulary: int
    """Subwords that trimming leaves; 0: the language model's own."""
    share: float
    """Share of the device's matrix rate that is reached."""


def gb(size: float) -> str:
    """Bytes as GB (10^9), three digits."""
    return f"{size / 1e9:.3g}" if size < 1e12 else f"{size / 1e9:,.0f}"


def largest(fits: Callable[[int], bool], limit: int = 1 << 30) -> int:
    """The largest number up to `limit` for which `fits` holds, where it holds for all smaller ones; 0 for none."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
