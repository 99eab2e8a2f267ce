"""Losses of all pairs of a batch, streamed over tiles of the similarity matrices: InfoNCE and the pairwise sigmoid.

`clcl_ring` passes every tile twice. In the forward pass a loss adds the tile to its sums, in the backward pass it
returns the gradient of the tile's logits, L = scale Z (+ bias). Neither keeps the matrices.

Own clips are the rows: this rank's clips of the side that stays on its rank. Sums of columns are merged over ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sage_scale.losses.ring import LogSum, sum_over_ranks
from sage_scale.losses.tokens import Block


@dataclass(slots=True)
class Pairs:
    """The clip pairs of one tile: a block of own clips and a block of the other side's."""

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


@dataclass(frozen=True, slots=True)
class Layout:
    """Clips of a batch as a rank sees them."""

    own: int
    """Clips of this rank."""
    clips: int
    """Clips of all ranks, B."""
    mine: slice
    """Indices of this rank's clips among all."""
    rank: int
    world: int
    group: dist.ProcessGroup | None


class Sums(Protocol):
    """State of a loss between the passes of one step."""

    def add(self, pairs: Pairs, Z_2ab: Tensor) -> None:
        """Add a tile: Zv and Zt of its pairs, before scale and bias."""
        ...

    def share(self) -> Tensor:
        """Returns this rank's share of the loss, a scalar; called once, by every rank, after all tiles."""
        ...

    def begin_gradient(self, asked: Tensor) -> None:
        """Receive the gradient of `share`; called once, by every rank, before `gradient`."""
        ...

    def gradient(self, pairs: Pairs, owner: int, Z_2ab: Tensor) -> Tensor:
        """Returns the gradient of the logits of a tile with texts of rank `owner`, (2, a, b)."""
        ...


class PairLoss(Protocol):
    """A loss of Zv and Zt that is computed tile by tile."""

    def swapped(self) -> PairLoss:
        """Returns the same loss for swapped sides, whose matrices are Zt^T and Zv^T."""
        ...

    def begin(self, layout: Layout, unit: Tensor, scale: Tensor, bias: Tensor | None) -> Sums:
        """Returns empty sums with the dtype and device of `unit`; `scale` and `bias` are scalars."""
        ...


@dataclass(frozen=True, slots=True)
class InfoNce:
    """InfoNCE with weights of its four terms: over rows and columns of Zv and of Zt."""

    rows: tuple[float, float]
    columns: tuple[float, float]

    def swapped(self) -> InfoNce:
        return InfoNce(self.columns[::-1], self.rows[::-1])

    def begin(self, layout: Layout, unit: Tensor, scale: Tensor, bias: Tensor | None) -> Sums:
        return _InfoNceSums(self, layout, unit, scale)  # a bias cancels in a softmax


class _InfoNceSums:
    """Log sums of exponentials of rows and columns, and the diagonal.

    Columns are merged over ranks, each with its own maximum, so stably at any scale. With both closed, a tile's
    gradient is known at once: 1 / B (w_row softmax over b + w_col softmax over a - [a is b] (w_row + w_col)).
    """

    def __init__(self, loss: InfoNce, layout: Layout, unit: Tensor, scale: Tensor) -> None:
        self.layout, self.scale = layout, scale
        self.row_2, self.column_2 = unit.new_tensor(loss.rows), unit.new_tensor(loss.columns)
        self.by_row, self.by_column = LogSum((2, layout.own), unit), LogSum((2, layout.clips), unit)
        self.diagonal_2 = unit.new_zeros(2)

    def add(self, pairs: Pairs, Z_2ab: Tensor) -> None:
        logits_2ab = self._logits(pairs, Z_2ab)
        self.by_row.add(pairs.rows.clips, logits_2ab, 2)
        self.by_column.add(pairs.text_indices, logits_2ab, 1)
        if pairs.own_ab is not None:
            self.diagonal_2 += torch.where(pairs.own_ab, logits_2ab, 0).sum((1, 2))

    def share(self) -> Tensor:
        self.by_column.merge(self.layout.group)
        self.row_sums, self.column_sums = self.by_row.value(), self.by_column.value()
        total = self.row_2 @ self.row_sums.sum(1) + self.column_2 @ self.column_sums[:, self.layout.mine].sum(
            1
        )
        return (total - (self.row_2 + self.column_2) @ self.diagonal_2) / max(self.layout.clips, 1)

    def begin_gradient(self, asked: Tensor) -> None:
        # The terms of a column belong to the text's rank: the gradient of its share applies to them.
        asked_W = self.row_2.new_zeros(self.layout.world)
        asked_W[self.layout.rank] = asked.to(asked_W.dtype)
        self.asked_W = sum_over_ranks(asked_W, self.layout.group) / max(self.layout.clips, 1)

    def gradient(self, pairs: Pairs, owner: int, Z_2ab: Tensor) -> Tensor:
        asked_W, rank = self.asked_W, self.layout.rank
        row_211, column_211 = self.row_2[:, None, None], self.column_2[:, None, None]
        logits_2ab = self._logits(pairs, Z_2ab)
        G_2ab = (logits_2ab - self.row_sums[:, pairs.rows.clips, None]).exp_().mul_(row_211 * asked_W[rank])
        logits_2ab -= self.column_sums[:, None, pairs.text_indices]
        G_2ab.addcmul_(logits_2ab.exp_(), column_211 * asked_W[owner])
        if pairs.own_ab is not None:
            G_2ab -= pairs.own_ab * ((row_211 + column_211) * asked_W[rank])
        return G_2ab

    def _logits(self, pairs: Pairs, Z_2ab: Tensor) -> Tensor:
        """Returns scale Z, with -inf for pairs that are no negatives."""
        logits_2ab = self.scale * Z_2ab
        return logits_2ab if pairs.same_ab is None else logits_2ab.masked_fill_(pairs.same_ab, -torch.inf)


@dataclass(frozen=True, slots=True)
class PairwiseSigmoid:
    """The sigmoid loss of each pair (Zhai et al. 2023, section 3.2), with weights of Zv and Zt.

    A pair's term is its own, without a sum over the batch: nothing is merged over ranks but the share.
    """

    weights: tuple[float, float]

    def swapped(self) -> PairwiseSigmoid:
        return PairwiseSigmoid(self.weights[::-1])

    def begin(self, layout: Layout, unit: Tensor, scale: Tensor, bias: Tensor | None) -> Sums:
        return _SigmoidSums(self, layout, unit, scale, bias)


class _SigmoidSums:
    def __init__(
        self, loss: PairwiseSigmoid, layout: Layout, unit: Tensor, scale: Tensor, bias: Tensor | None
    ) -> None:
        self.layout, self.scale, self.bias = layout, scale, bias
        self.weight_2 = unit.new_tensor(loss.weights)
        self.total_2 = unit.new_zeros(2)

    def add(self, pairs: Pairs, Z_2ab: Tensor) -> None:
        logits_2ab = self._logits(Z_2ab)
        terms_2ab = F.softplus(logits_2ab)  # -log sigmoid(-L), of negatives
        if pairs.own_ab is not None:
            terms_2ab -= torch.where(pairs.own_ab, logits_2ab, 0)  # softplus(-L) of positives
        self.total_2 += self._counted(pairs, terms_2ab).sum((1, 2))

    def share(self) -> Tensor:
        return self.weight_2 @ self.total_2 / max(self.layout.clips, 1)

    def begin_gradient(self, asked: Tensor) -> None:
        self.factor_211 = self.weight_2[:, None, None] * asked.to(self.weight_2) / max(self.layout.clips, 1)

    def gradient(self, pairs: Pairs, owner: int, Z_2ab: Tensor) -> Tensor:
        G_2ab = self._logits(Z_2ab).sigmoid_()
        if pairs.own_ab is not None:
            G_2ab -= pairs.own_ab.to(G_2ab.dtype)
        return self._counted(pairs, G_2ab).mul_(self.factor_211)

    def _logits(self, Z_2ab: Tensor) -> Tensor:
        logits_2ab = self.scale * Z_2ab
        return logits_2ab if self.bias is None else logits_2ab.add_(self.bias)

    def _counted(self, pairs: Pairs, values_2ab: Tensor) -> Tensor:
        return values_2ab if pairs.same_ab is None else values_2ab.masked_fill_(pairs.same_ab, 0)


def scalar(value: Any, unit: Tensor) -> Tensor:
    """Returns a trained number of shape (1,) or () as a scalar of the dtype of `unit`, detached."""
    return value.detach().to(unit.dtype).reshape(())
