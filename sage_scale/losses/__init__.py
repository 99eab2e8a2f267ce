"""Contrastive losses over packed tokens.

Shape letters: B clips (v: of the videos, t: of the texts), N visual tokens, M text tokens, D width, W ranks. Packed
means that the tokens of all clips stand one after the other, without padding: (sum of lengths, D).
"""

from sage_scale.losses.cico import Cico
from sage_scale.losses.clcl import clcl_loss, clip_loss, clip_similarity, info_nce, reference_similarity
from sage_scale.losses.clcl_tiled import tiled_clcl_similarity
from sage_scale.losses.gradient_cache import cached_backward
from sage_scale.losses.objectives import (
    Objective,
    chosen_implementation,
    clcl_similarity,
    objective_of,
    triton_lacks,
)
from sage_scale.losses.siglip import sigmoid_loss

__all__ = [
    "Cico",
    "Objective",
    "cached_backward",
    "chosen_implementation",
    "clcl_loss",
    "clcl_similarity",
    "clip_loss",
    "clip_similarity",
    "info_nce",
    "objective_of",
    "reference_similarity",
    "sigmoid_loss",
    "tiled_clcl_similarity",
    "triton_lacks",
]
