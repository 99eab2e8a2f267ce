"""Exact CLCL similarities by tiles, without storing all token similarities.

Pairs of blocks of clips (`tokens.Block`) are taken one after the other: one matrix product gives the tile, `clcl_tile`
both directions from it, and the backward pass computes the tile again. Of E = pairs of tokens, forward and backward
take 8 E D operations (6 without a gradient of the texts) against the reference's 6 E D with 7 copies of E in memory.
Memory beside the inputs: the texts' tokens as factors, the gradients, three tiles, and the matrices Bv x Bt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sage_scale.losses.clcl_tile import Softmax, Tile, TorchTile
from sage_scale.losses.products import (
    Precision,
    accumulate,
    factor_type,
    granule,
    multiply,
    precision_of_products,
)
from sage_scale.losses.tokens import Block, Side, blocks_of

SHARP = 0.05
"""Below this tau products of bfloat16 take the similarities themselves in float32: the rounding of s, over tau, would
change the softmaxes by more than the 1% that is promised. MaxSim (tau 0) keeps bfloat16, as everyone's MaxSim does: the
rounding can only choose another of nearly equal tokens."""
CPU_TILE = (1024, 512)
"""Tokens by tokens. A float32 tile takes 2 MB; on two cores half of each of three fits a second-level cache nearly, and
half as many operations are started as with 512 x 512 (14% faster with bfloat16 products, as fast with float32)."""
CUDA_TILE = (8192, 4096)
"""Large enough that a tile takes longer than starting its kernels; 134 MB in float32."""


def tiled_clcl_similarity(
    visual_ND: Tensor,
    text_MD: Tensor,
    visual_lengths_B: Tensor,
    text_lengths_B: Tensor,
    tau: float = 0.07,
    products: Precision = "float32",
    tile: type[Tile] = TorchTile,
) -> tuple[Tensor, Tensor]:
    """Returns Zv and Zt, both (Bv, Bt), as `clcl.reference_similarity`, with exact gradients of both inputs.

    Tokens are packed, of any floating type, and are computed in float32 (float64 in float64). `tau=0` is MaxSim.
    Raises ValueError where lengths do not fit the tokens or a clip has no token.
    """
    visual_lengths, text_lengths = _integers(visual_lengths_B), _integers(text_lengths_B)
    Zv, Zt = _Similarity.apply(visual_ND, text_MD, visual_lengths, text_lengths, Softmax(tau), products, tile)
    return Zv, Zt


class Sweep:
    """The tiles of two sides: the matrix products that make and consume them, and their buffers."""

    def __init__(
        self, compute: torch.dtype, device: torch.device, products: Precision, softmax: Softmax
    ) -> None:
        """`compute` is the dtype, `products` the precision of products; a tile is similarities / softmax.unit."""
        self.compute, self.device, self.products, self.unit = compute, device, products, softmax.unit
        self.factors = factor_type(products, compute, device)
        self.sharp = products == "bfloat16" and 0 < softmax.tau < SHARP
        self.travels = compute if self.sharp else self.factors
        """The type of the texts' tokens that `tiles` takes."""
        self.granule = granule(products, compute, device)
        self._buffer = torch.empty(0, dtype=compute, device=device)

    @property
    def tile_size(self) -> tuple[int, int]:
        """Returns the numbers of tokens of a block of rows and of a block of columns."""
        rows, columns = CPU_TILE if self.device.type == "cpu" else CUDA_TILE
        return (rows, columns) if self.compute != torch.float64 else (rows, columns // 2)

    def side(self, tokens_ND: Tensor, lengths: list[int]) -> Side:
        return Side(tokens_ND, lengths, self.compute, spare=self.granule - 1)

    def blocks(self, lengths: list[int], columns: bool = False) -> tuple[Block, ...]:
        return blocks_of(lengths, self.tile_size[columns])

    def tile(self, rows_RD: Tensor, columns_CD: Tensor, rows: Block, columns: Block) -> Tensor:
        """Returns the product of two blocks' factors, in a buffer that the next call overwrites."""
        R, C = rows_RD.shape[0], columns_CD.shape[0]
        if self._buffer.numel() < R * C:
            self._buffer = torch.empty(R * C, dtype=self.compute, device=self.device)
        whole_RC = self._buffer[: R * C].view(R, C)
        with precision_of_products("float32", self.device) if self.sharp else nullcontext():
            multiply(rows_RD, columns_CD.T, whole_RC)
        return whole_RC[: rows.size, : columns.size]

    def tiles(
        self, visual: Side, text_MD: Tensor, text_lengths: list[int]
    ) -> Iterator[tuple[Block, Block, Tensor, Tensor, Tensor]]:
        """Yields the blocks of both sides, their factors, and the tile u of each pair of blocks.

        `text_MD` are normalised tokens in sorted order (ascending lengths), of dtype `travels`, with spare rows.
        """
        texts = self.blocks(text_lengths, columns=True)
        for rows in self.blocks(visual.lengths):
            rows_RD = visual.unit(self._tokens(rows))
            scaled_RD, rows_RD = (rows_RD / self.unit).to(self.travels), rows_RD.to(self.factors)
            for columns in texts:
                columns_CD = text_MD[self._tokens(columns)]
                u_RC = self.tile(scaled_RD, columns_CD, rows, columns)
                yield rows, columns, rows_RD, columns_CD.to(self.factors), u_RC

    def padded(self, tile_RC: Tensor, rows: Block, columns: Block) -> Tensor:
        """Returns a tile (u or a scratch tile) with zeros in its spare rows and columns, as a matrix factor."""
        R, C = self._filled(rows), self._filled(columns)
        whole_RC = torch.as_strided(tile_RC, (R, C), (C, 1))
        whole_RC[rows.size :] = 0
        whole_RC[:, columns.size :] = 0
        return whole_RC.to(self.factors)

    def add(self, grad_ND: Tensor, block: Block, tile_RC: Tensor, other_CD: Tensor) -> None:
        """Add a tile's part to the gradient of a block's tokens."""
        accumulate(grad_ND[block.token : block.token + tile_RC.shape[0]], tile_RC, other_CD)

    def _tokens(self, block: Block) -> slice:
        """Returns the block's tokens on its side, filled up to the granule by those that follow."""
        return slice(block.token, block.token + self._filled(block))

    def _filled(self, block: Block) -> int:
        return -(-block.size // self.granule) * self.granule


class _Similarity(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        visual_ND: Tensor,
        text_MD: Tensor,
        visual_lengths: list[int],
        text_lengths: list[int],
        softmax: Softmax,
        products: Precision,
        tile_type: type[Tile],
    ) -> tuple[Tensor, Tensor]:
        compute = torch.float64 if torch.float64 in (visual_ND.dtype, text_MD.dtype) else torch.float32
        sweep = Sweep(compute, visual_ND.device, products, softmax)
        visual, text = sweep.side(visual_ND, visual_lengths), sweep.side(text_MD, text_lengths)
        ctx.sweep, ctx.visual, ctx.text, ctx.make = (
            sweep,
            visual,
            text,
            lambda: tile_type(softmax, sweep.factors),
        )
        ctx.save_for_backward(visual_ND, text_MD)
        Zv_ab = visual.norm_N.new_empty(len(visual_lengths), len(text_lengths))
        Zt_ab = torch.empty_like(Zv_ab)
        tile = ctx.make()
        with precision_of_products(products, sweep.device):
            for rows, columns, _, _, u_RC in sweep.tiles(
                visual, text.normalised(sweep.travels), text.lengths
            ):
                Zv, Zt, _ = tile.measure(u_RC, rows, columns)
                Zv_ab[rows.clips, columns.clips] = Zv
                Zt_ab[rows.clips, columns.clips] = Zt
        return _given_order(Zv_ab, visual, text), _given_order(Zt_ab, visual, text)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # torch checks that the tokens have not been modified
        sweep, visual, text = ctx.sweep, ctx.visual, ctx.text
        G_ab, H_ab = (grad[visual.order][:, text.order].to(sweep.compute) for grad in grads)
        of_visual, of_text = ctx.needs_input_grad[:2]
        visual_grad_ND = visual.zeros() if of_visual else None
        text_grad_MD = text.zeros() if of_text else None
        tile = ctx.make()
        with precision_of_products(sweep.products, sweep.device):
            for rows, columns, rows_RD, columns_CD, u_RC in sweep.tiles(
                visual, text.normalised(sweep.travels), text.lengths
            ):
                G, H = G_ab[rows.clips, columns.clips], H_ab[rows.clips, columns.clips]
                W_RC = sweep.padded(tile.gradient(u_RC, None, G, H, rows, columns), rows, columns)
                if visual_grad_ND is not None:
                    sweep.add(visual_grad_ND, rows, W_RC, columns_CD)
                if text_grad_MD is not None:
                    sweep.add(text_grad_MD, columns, W_RC.T, rows_RD)
        return (
            None if visual_grad_ND is None else visual.gradient(visual_grad_ND),
            None if text_grad_MD is None else text.gradient(text_grad_MD),
            None, None, None, None, None,
        )  # fmt: skip


def _given_order(Z_ab: Tensor, visual: Side, text: Side) -> Tensor:
    if visual.index_N is None and text.index_N is None:
        return Z_ab
    back = [sorted(range(len(side.order)), key=side.order.__getitem__) for side in (visual, text)]
    return Z_ab[back[0]][:, back[1]]


def _integers(lengths_B: Tensor) -> list[int]:
    return [int(length) for length in lengths_B.tolist()]
