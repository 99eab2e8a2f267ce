"""The contrastive loss of a batch distributed over ranks, without a B x B matrix on any rank.

Each rank keeps its own tokens of one side, the longer one (usually the videos), and computes 1/W of the pairs: all its
clips against every clip of the other side, whose tokens travel round the ranks (`ring.Ring`). Two passes:

forward   tile by tile Zv and Zt; of them the log sums of exponentials of rows and columns and the diagonal are kept.
          Rows end on their rank; columns are merged over ranks, each with its own maximum, so stably at any scale.
backward  the tiles again; with L = scale Z, rows and columns closed, a tile's gradient is known at once:

              dL/dZ[a,b] = scale / B (w_row softmax over b of L + w_col softmax over a of L - [a is b] (w_row + w_col))

          and goes through `Tile.gradient` into the tokens. A travelling side's gradient follows its tokens one round
          behind and comes home after the last.

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
from sage_scale.losses.products import Precision, precision_of_products
from sage_scale.losses.ring import LogSum, Ring, sum_over_ranks
from sage_scale.losses.tokens import Block, length_order

KEEP_BYTES = 256 << 20
"""Zv and Zt of this rank's rows are kept for the backward pass up to this size, by tiles that gain from it."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of the four InfoNCE terms: over rows and columns of Zv and of Zt."""

    rows: tuple[float, float]
    columns: tuple[float, float]


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
    batch: Batch,
    weights: Weights,
    softmax: Softmax,
    products: Precision,
    tile_type: type[Tile],
) -> Tensor:
    """Returns this rank's share of the loss (scalar), with exact gradients of both sides' tokens and the scale.

    Every rank of the batch's group must call it, and its backward pass, at the same point.
    """
    tokens = [sum(map(sum, lengths)) for lengths in (batch.visual_lengths, batch.text_lengths)]
    if tokens[0] < tokens[1]:
        # The matrices of swapped sides are Zt^T and Zv^T.
        weights = Weights(weights.columns[::-1], weights.rows[::-1])
        batch = Batch(
            batch.text_lengths, batch.visual_lengths, batch.text_ids, batch.trained[::-1], batch.group
        )
        visual_ND, text_MD = text_MD, visual_ND
    return _RingLoss.apply(visual_ND, text_MD, scale, batch, weights, softmax, products, tile_type)


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

    def rounds(self) -> Iterator[tuple[int, Tensor]]:
        """Yields (owner rank, its normalised texts as matrix factors) in ring order."""
        return self.ring.rounds(self.text.normalised(self.sweep.travels))

    def tiles(self, owner: int, text_MD: Tensor) -> Iterator[_Pairs]:
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
            yield _Pairs(rows, columns, rows_RD, columns_CD, u_RC, text_indices, own_ab, same_ab)


@dataclass(slots=True)
class _Pairs:
    """The clip pairs of one tile: a block of own clips and a block of texts."""

    rows: Block
    columns: Block
    rows_RD: Tensor
    columns_CD: Tensor
    u_RC: Tensor
    text_indices: slice
    """Indices of the texts among those of all ranks."""
    own_ab: Tensor | None
    """Pairs of a clip with its own text; None where there is none."""
    same_ab: Tensor | None
    """Pairs of a clip with another clip of the same text, where those are no negatives."""

    def logits(self, Z_2ab: Tensor, scale: Tensor) -> Tensor:
        """Returns scale Z, with -inf for pairs that are no negatives."""
        logits_2ab = scale * Z_2ab
        return logits_2ab if self.same_ab is None else logits_2ab.masked_fill_(self.same_ab, -torch.inf)


class _RingLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        visual_ND: Tensor,
        text_MD: Tensor,
        scale: Tensor,
        batch: Batch,
        weights: Weights,
        softmax: Softmax,
        products: Precision,
        tile_type: type[Tile],
    ) -> Tensor:
        run = _Pass(visual_ND, text_MD, batch, softmax, products, tile_type)
        unit = run.visual.norm_N
        own, B = len(batch.visual_lengths[run.rank]), batch.clips
        factor = scale.detach().to(unit.dtype).reshape(())
        by_row, by_column = LogSum((2, own), unit), LogSum((2, B), unit)
        diagonal_2 = unit.new_zeros(2)
        small = 2 * own * B * unit.itemsize <= KEEP_BYTES
        ctx.kept = {} if small and not run.tile.measures_first else None
        with precision_of_products(products, run.sweep.device):
            for owner, tokens_MD in run.rounds():
                for pairs in run.tiles(owner, tokens_MD):
                    Z_2ab = torch.stack(run.tile.measure(pairs.u_RC, pairs.rows, pairs.columns)[:2])
                    if ctx.kept is not None:
                        ctx.kept[pairs.rows.clip, pairs.text_indices.start] = Z_2ab
                    logits_2ab = pairs.logits(Z_2ab, factor)
                    by_row.add(pairs.rows.clips, logits_2ab, 2)
                    by_column.add(pairs.text_indices, logits_2ab, 1)
                    if pairs.own_ab is not None:
                        diagonal_2 += torch.where(pairs.own_ab, logits_2ab, 0).sum((1, 2))
        by_column.merge(batch.group)
        ctx.row_sums, ctx.column_sums = by_row.value(), by_column.value()
        ctx.run, ctx.weights, ctx.scale = run, weights, scale.detach()
        ctx.save_for_backward(visual_ND, text_MD)
        row_2, column_2 = unit.new_tensor(weights.rows), unit.new_tensor(weights.columns)
        mine = slice(run.starts[run.rank], run.starts[run.rank + 1])
        share = row_2 @ ctx.row_sums.sum(1) + column_2 @ ctx.column_sums[:, mine].sum(1)
        return (share - (row_2 + column_2) @ diagonal_2) / max(B, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run: _Pass = ctx.run
        _ = ctx.saved_tensors  # torch checks that the tokens have not been modified
        sweep, ring, unit = run.sweep, run.ring, run.visual.norm_N
        # The terms of a column belong to the text's rank: the gradient of its share applies to them.
        asked_W = unit.new_zeros(ring.world)
        asked_W[run.rank] = grads[0].to(unit.dtype)
        asked_W = sum_over_ranks(asked_W, run.batch.group) / max(run.batch.clips, 1)
        row_211, column_211 = (
            unit.new_tensor(weights)[:, None, None] for weights in (ctx.weights.rows, ctx.weights.columns)
        )
        factor = ctx.scale.to(unit.dtype).reshape(())
        scale_grad = unit.new_zeros(())
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
                    logits_2ab = pairs.logits(Z_2ab, factor)
                    G_2ab = (
                        (logits_2ab - ctx.row_sums[:, rows.clips, None])
                        .exp_()
                        .mul_(row_211 * asked_W[run.rank])
                    )
                    logits_2ab -= ctx.column_sums[:, None, pairs.text_indices]
                    G_2ab.addcmul_(logits_2ab.exp_(), column_211 * asked_W[owner])
                    if pairs.own_ab is not None:
                        G_2ab -= pairs.own_ab * ((row_211 + column_211) * asked_W[run.rank])
                    scale_grad += (G_2ab * Z_2ab).sum()
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
            None, None, None, None, None,
        )  # fmt: skip
