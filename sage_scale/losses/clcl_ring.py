"""The contrastive loss of a batch distributed over ranks, without a B x B matrix on any rank.

Each rank keeps its own tokens of one side, the longer one (usually the videos), and computes 1/W of the pairs: all its
clips against every clip of the other side, whose tokens travel round the ranks (`ring.Ring`). Two passes:

forward   tile by tile Zv and Zt, of which the loss keeps sums (`pair_losses`).
backward  the tiles again; the loss gives the gradient of a tile's logits at once, and it goes through `Tile.gradient`
          into the tokens. A travelling side's gradient follows its tokens one round behind and comes home after the
          last.

The operations are those of the version that keeps Z (8 E D in all, 6 where one side is frozen): the backward pass has
to compute the tiles in either case, and Z falls out of them. So Z is kept only for kernels that do not need to
measure a tile before its gradient, and only where it is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sage_scale.losses.clcl_tile import Softmax, Tile
from sage_scale.losses.clcl_tiled import Sweep
from sage_scale.losses.collectives import group_rank
from sage_scale.losses.pair_losses import Layout, PairLoss, Pairs, scalar
from sage_scale.losses.products import Precision, precision_of_products
from sage_scale.losses.ring import Ring
from sage_scale.losses.tokens import length_order

KEEP_BYTES = 256 << 20
"""Zv and Zt of this rank's rows are kept for the backward pass up to this size, by tiles that gain from it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Sizes of the batch known to every rank; lists are indexed by rank."""

    visual_lengths: list[list[int]]
    text_lengths: list[list[int]]
    text_ids: list[Tensor] | None
    """Equal for equal texts: such pairs are no negatives. None where all pairs are."""
    trained: tuple[bool, bool]
    """Whether any rank needs the gradient of visual tokens, and of text tokens."""
    group: dist.ProcessGroup | None = None

    @property
    def clips(self) -> int:
        """Returns B, the number of clips over all ranks."""
        return sum(map(len, self.visual_lengths))


def ring_loss(
    visual_ND: Tensor,
    text_MD: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    batch: Batch,
    loss: PairLoss,
    softmax: Softmax,
    products: Precision,
    tile_type: type[Tile],
) -> Tensor:
    """Returns this rank's share of the loss (scalar), with exact gradients of both sides' tokens, scale and bias.

    Every rank of the batch's group must call it, and its backward pass, at the same point.
    """
    tokens = [sum(map(sum, lengths)) for lengths in (batch.visual_lengths, batch.text_lengths)]
    if tokens[0] < tokens[1]:
        # The matrices of swapped sides are Zt^T and Zv^T.
        loss = loss.swapped()
        batch = Batch(
            batch.text_lengths, batch.visual_lengths, batch.text_ids, batch.trained[::-1], batch.group
        )
        visual_ND, text_MD = text_MD, visual_ND
    return _RingLoss.apply(visual_ND, text_MD, scale, bias, batch, loss, softmax, products, tile_type)


class _Pass:
    """State common to both passes: this rank's two sides, the ring and the order of tiles."""

    def __init__(
        self,
        visual_ND: Tensor,
        text_MD: Tensor,
        batch: Batch,
        softmax: Softmax,
        products: Precision,
        tile_type: type[Tile],
    ) -> None:
        compute = torch.float64 if torch.float64 in (visual_ND.dtype, text_MD.dtype) else torch.float32
        self.batch, self.rank = batch, group_rank(batch.group)
        self.sweep = Sweep(compute, visual_ND.device, products, softmax)
        self.visual = self.sweep.side(visual_ND, batch.visual_lengths[self.rank])
        self.text = self.sweep.side(text_MD, batch.text_lengths[self.rank])
        self.tile = tile_type(softmax, self.sweep.factors)
        self.ring = Ring(
            [sum(lengths) for lengths in batch.text_lengths], batch.group, self.sweep.granule - 1
        )
        self.starts = [0]
        """Index of each rank's first text among all."""
        for lengths in batch.text_lengths:
            self.starts.append(self.starts[-1] + len(lengths))

    def layout(self) -> Layout:
        """Returns the clips as this rank sees them."""
        mine = slice(self.starts[self.rank], self.starts[self.rank + 1])
        own = len(self.batch.visual_lengths[self.rank])
        return Layout(own, self.batch.clips, mine, self.rank, self.ring.world, self.batch.group)

    def rounds(self) -> Iterator[tuple[int, Tensor]]:
        """Yields (owner rank, its normalised texts as matrix factors) in ring order."""
        return self.ring.rounds(self.text.normalised(self.sweep.travels))

    def tiles(self, owner: int, text_MD: Tensor) -> Iterator[Pairs]:
        """Yields the tiles of own clips and the texts of rank `owner`."""
        order = length_order(self.batch.text_lengths[owner])
        lengths = [self.batch.text_lengths[owner][clip] for clip in order]
        order_B = torch.tensor(order, device=text_MD.device)
        own_order_B = torch.tensor(self.visual.order, device=text_MD.device)
        ids = self.batch.text_ids
        for rows, columns, rows_RD, columns_CD, u_RC in self.sweep.tiles(self.visual, text_MD, lengths):
            row_clips, column_clips = own_order_B[rows.clips], order_B[columns.clips]
            own_ab = row_clips[:, None] == column_clips if owner == self.rank else None
            same_ab = None
            if ids is not None:
                same_ab = ids[self.rank][row_clips][:, None] == ids[owner][column_clips]
                same_ab = same_ab if own_ab is None else same_ab & ~own_ab
            text_indices = slice(
                self.starts[owner] + columns.clips.start, self.starts[owner] + columns.clips.stop
            )
            yield Pairs(rows, columns, rows_RD, columns_CD, u_RC, text_indices, own_ab, same_ab)


class _RingLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        visual_ND: Tensor,
        text_MD: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        batch: Batch,
        loss: PairLoss,
        softmax: Softmax,
        products: Precision,
        tile_type: type[Tile],
    ) -> Tensor:
        run = _Pass(visual_ND, text_MD, batch, softmax, products, tile_type)
        unit = run.visual.norm_N
        factor = scalar(scale, unit)
        ctx.sums = loss.begin(run.layout(), unit, factor, None if bias is None else scalar(bias, unit))
        small = 2 * len(run.visual.order) * batch.clips * unit.itemsize <= KEEP_BYTES
        ctx.kept = {} if small and not run.tile.measures_first else None
        with precision_of_products(products, run.sweep.device):
            for owner, tokens_MD in run.rounds():
                for pairs in run.tiles(owner, tokens_MD):
                    Z_2ab = torch.stack(run.tile.measure(pairs.u_RC, pairs.rows, pairs.columns)[:2])
                    if ctx.kept is not None:
                        ctx.kept[pairs.rows.clip, pairs.text_indices.start] = Z_2ab
                    ctx.sums.add(pairs, Z_2ab)
        ctx.run, ctx.scale, ctx.bias = run, scale.detach(), bias if bias is None else bias.detach()
        ctx.save_for_backward(visual_ND, text_MD)
        return ctx.sums.share()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run: _Pass = ctx.run
        _ = ctx.saved_tensors  # torch checks that the tokens have not been modified
        sweep, ring, unit = run.sweep, run.ring, run.visual.norm_N
        ctx.sums.begin_gradient(grads[0])
        factor = scalar(ctx.scale, unit)
        scale_grad, bias_grad = unit.new_zeros(()), unit.new_zeros(())
        of_visual, of_text = run.batch.trained
        visual_grad_ND = run.visual.zeros() if of_visual else None
        travelled: Tensor | None = None
        with precision_of_products(sweep.products, sweep.device):
            for step, (owner, tokens_MD) in enumerate(run.rounds()):
                coming = (
                    ring.send_gradient(travelled, (owner + 1) % ring.world)
                    if travelled is not None and step
                    else None
                )
                text_grad_MD = unit.new_zeros(tokens_MD.shape) if of_text else None
                for pairs in run.tiles(owner, tokens_MD):
                    rows, columns, kept = pairs.rows, pairs.columns, None
                    if ctx.kept is not None:
                        Z_2ab = ctx.kept[rows.clip, pairs.text_indices.start]
                    else:
                        Zv_ab, Zt_ab, kept = run.tile.measure(pairs.u_RC, rows, columns)
                        Z_2ab = torch.stack((Zv_ab, Zt_ab))
                    G_2ab = ctx.sums.gradient(pairs, owner, Z_2ab)
                    scale_grad += (G_2ab * Z_2ab).sum()
                    bias_grad += G_2ab.sum()
                    if visual_grad_ND is None and text_grad_MD is None:
                        continue
                    Gv_ab, Gt_ab = G_2ab.mul_(factor)
                    W_RC = run.tile.gradient(pairs.u_RC, kept, Gv_ab, Gt_ab, rows, columns)
                    W_RC = sweep.padded(W_RC, rows, columns)
                    if visual_grad_ND is not None:
                        sweep.add(visual_grad_ND, rows, W_RC, pairs.columns_CD)
                    if text_grad_MD is not None:
                        sweep.add(text_grad_MD, columns, W_RC.T, pairs.rows_RD)
                if text_grad_MD is not None:
                    travelled = text_grad_MD if coming is None else text_grad_MD.add_(coming.wait())
            if travelled is not None and ring.world > 1:
                travelled = ring.send_gradient(travelled, (run.rank + 1) % ring.world).wait()
        return (
            None if visual_grad_ND is None else run.visual.gradient(visual_grad_ND),
            None if travelled is None else run.text.gradient(travelled),
            scale_grad.to(ctx.scale.dtype).reshape(ctx.scale.shape),
            None if ctx.bias is None else bias_grad.to(ctx.bias.dtype).reshape(ctx.bias.shape),
            None, None, None, None, None,
        )  # fmt: skip
