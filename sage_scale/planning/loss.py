"""Memory and operations of the contrastive loss on one rank (docs/clcl.md, "Counts").

B clips of the whole batch on W ranks, b = B / W of them on this one, N visual and M text tokens a clip, width D, and
E = b N B M pairs of tokens on this rank. Memory is what a forward and backward pass holds at its peak beside the input
tokens, in float32; text tokens are frozen, as in training, unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sage_scale.losses.clcl_tiled import CPU_TILE, CUDA_TILE
from sage_scale.losses.tokens import ROWS_AT_ONCE

Way = Literal["naive", "tiled", "ring"]
WAYS: tuple[Way, ...] = ("naive", "tiled", "ring")

NAIVE_COPIES = 7
"""Values of four dimensions that torch keeps of the reference: s, both logits, both softmaxes, and two gradients."""
TILES = 6
"""A tile, its exponentials, a scratch, and what reductions over it hold for a moment."""
CLIP_PAIRS = 16
"""Values that a tile's pairs of clips need: both similarities, logits, their gradients, masks, sums of rows."""
MATRICES = 7
"""Zv, Zt, their logits and what InfoNCE's backward pass makes of them, of this rank's clips against all."""


@dataclass(frozen=True, slots=True)
class LossSize:
    """A batch as the loss sees it."""

    clips: int
    """B, over all ranks."""
    visual_tokens: float
    """N, of a clip."""
    text_tokens: float
    """M, of a clip."""
    width: int
    """D."""
    ranks: int = 1
    """W."""

    @property
    def pairs(self) -> float:
        """Returns E, pairs of tokens that one rank computes."""
        return self.clips / self.ranks * self.visual_tokens * self.clips * self.text_tokens


def loss_operations(size: LossSize, way: Way, text_trained: bool = False) -> float:
    """Returns floating-point operations of the matrix products on one rank, forward and backward, for one level.

    2 E D each: similarities, the gradient of the visual tokens, that of the text tokens where they are trained, and,
    but for the naive way, the similarities again.
    """
    products = 2 + int(text_trained) + int(way != "naive")
    return 2 * products * size.pairs * size.width


def loss_bytes(size: LossSize, way: Way, device: str = "cuda", text_trained: bool = False) -> float:
    """Returns peak bytes on one rank beside the input tokens, for one level.

    naive   7 E, and the whole batch in one process: at W > 1 every rank has all texts and its own rows
    tiled   normalised tokens of the texts, the gradient and (where lengths differ) its copy in the order given,
            tiles, 7 b B
    ring    the same with the texts of three ranks at most (own, held, coming) and log sums, 8 B, instead of matrices
    """
    own = size.clips / size.ranks
    visual, text = own * size.visual_tokens * size.width, size.clips * size.text_tokens * size.width
    if way == "naive":
        return 4 * (NAIVE_COPIES * size.pairs + 2 * visual + (1 + text_trained) * text)
    most = CPU_TILE if device == "cpu" else CUDA_TILE
    rows = min(most[0], own * size.visual_tokens)
    columns = min(most[1], (size.clips if way == "tiled" else own) * size.text_tokens)
    tiles = TILES * rows * columns + CLIP_PAIRS * rows / size.visual_tokens * columns / size.text_tokens
    # Normalising goes by ROWS_AT_ONCE, and not while tiles are at work; a block's factors are held with the tile.
    work = max(tiles, 3 * min(ROWS_AT_ONCE, own * size.visual_tokens) * size.width)
    work += 2 * rows * size.width
    if way == "tiled":
        return 4 * (2 * visual + (1 + 2 * text_trained) * text + work + MATRICES * own * size.clips)
    held = min(size.ranks, 3) + (3 * text_trained)
    return 4 * (2 * visual + held * text / size.ranks + work + 8 * size.clips)
