"""Computations on one tile of similarities: the two inner softmaxes of CLCL and their elementwise gradient.

A tile is u = V T^T / tau for the tokens of a few videos (rows) and a few texts (columns), V and T of length one. Per
pair of clips (a, b), with n and m tokens, one e = exp(u) serves both softmaxes:

    R[i,b] = sum_j e        P[i,b] = sum_j u e        r = P / R        Zv[a,b] = tau mean over i of r
    C[a,j] = sum_i e        Q[a,j] = sum_i u e        c = Q / C        Zt[a,b] = tau mean over j of c

Derivation of the gradient. With p = e / R: r = sum_j p u and dp_j/du_k = p_j (delta_jk - p_k), so

    dr/du_j = p_j + u_j p_j - p_j r = (e_j / R) (1 + u_j - r)

and alike for c. With G = dL/dZv, H = dL/dZt, A = G / (n R), B = H / (m C), and du/ds = 1 / tau, which takes tau away,

    W = dL/ds = e [A (1 + u - r) + B (1 + u - c)] = e [u A + A (1 - r) + u B + B (1 - c)]

a few passes over the tile, since A depends on (i, b) and B on (a, j) only. Then dL/dV = W T and dL/dT = W^T V. Nothing
of a tile is kept: u, e and the sums are computed again in the backward pass.

No maximum is subtracted from u as long as exp(2 / tau) stays inside float32; below tau .025 rows and columns have
their own maxima and so their own exponentials. tau = 0 stands for the limit, MaxSim: u = s, and e is 1 at a maximum
and 0 elsewhere, so that r = max_j s, c = max_i s, and equal maxima share the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sage_scale.losses.tokens import Block, LengthRun

ONE_EXPONENTIAL = 0.025
"""From this tau on exp(u) is between 4e-18 and 2e17: no maxima are needed in float32."""


@dataclass(frozen=True, slots=True)
class Softmax:
    """Parameters of the inner softmax."""

    tau: float
    """Temperature; 0 is the limit, the maximum."""

    @property
    def unit(self) -> float:
        """Returns the unit of u: s = unit * u."""
        return self.tau or 1.0


class Tile(Protocol):
    """Interface of tile computations; `TorchTile` and `clcl_triton.TritonTile` implement it."""

    measures_first: bool
    """Whether `gradient` is cheaper after `measure`, whose kept values it then uses."""

    def __init__(self, softmax: Softmax, factors: torch.dtype) -> None:
        """`factors` is the dtype of W in the matrix products."""
        ...

    def measure(self, u_RC: Tensor, rows: Block, columns: Block) -> tuple[Tensor, Tensor, Any]:
        """Returns Zv and Zt of the pairs (clips of rows, clips of columns), and values that `gradient` can reuse."""
        ...

    def gradient(
        self, u_RC: Tensor, kept: Any, G_ab: Tensor, H_ab: Tensor, rows: Block, columns: Block
    ) -> Tensor:
        """Returns W = dL/ds, laid out as u, from G = dL/dZv and H = dL/dZt; overwrites u.

        `kept` are the values of `measure`, or None. W has the dtype of u or of the products' factors.
        """
        ...


class TorchTile:
    """Tile computations by torch operations, on any device; one object per sweep, with two scratch tiles."""

    measures_first = True

    def __init__(self, softmax: Softmax, factors: torch.dtype | None = None) -> None:
        self.tau, self.unit = softmax.tau, softmax.unit
        self._scratch: list[Tensor | None] = [None, None]

    def measure(self, u_RC: Tensor, rows: Block, columns: Block) -> tuple[Tensor, Tensor, Any]:
        kept: Any
        if self.tau >= ONE_EXPONENTIAL:
            kept = self._with_one_exponential(u_RC, rows, columns)
        else:
            kept = self._with_two_exponentials(u_RC, rows, columns)
        r_ib, c_aj = kept[-2:]
        return row_means(r_ib, rows) * self.unit, column_means(c_aj, columns) * self.unit, kept

    def gradient(
        self, u_RC: Tensor, kept: Any, G_ab: Tensor, H_ab: Tensor, rows: Block, columns: Block
    ) -> Tensor:
        if kept is None:
            kept = self.measure(u_RC, rows, columns)[2]
        G_ib = spread_rows(G_ab / counts(rows, G_ab)[:, None], rows)
        H_aj = spread_columns(H_ab / counts(columns, H_ab)[None, :], columns)
        x_RC = self._like(u_RC, 1)
        if self.tau >= ONE_EXPONENTIAL:
            e_RC, R_ib, C_aj, r_ib, c_aj = kept
            A_ib, B_aj = G_ib / R_ib, H_aj / C_aj
            self._rows_part(x_RC, u_RC, A_ib, r_ib, columns)
            for run in rows.runs:
                B_k1C, c_k1C = B_aj[run.clip_slice, None], c_aj[run.clip_slice, None]
                by_video(x_RC, run).addcmul_(by_video(u_RC, run), B_k1C).add_(
                    torch.addcmul(B_k1C, B_k1C, c_k1C, value=-1)
                )
            return x_RC.mul_(e_RC)
        maximum_ib, maximum_aj, R_ib, C_aj, r_ib, c_aj = kept
        A_ib, B_aj = G_ib / R_ib, H_aj / C_aj
        self._rows_part(x_RC, u_RC, A_ib, r_ib, columns)
        x_RC.mul_(self._exponential_by_text(u_RC, maximum_ib, columns))
        e_RC = self._exponential_by_video(u_RC, maximum_aj, rows)
        for run in rows.runs:
            by_video(u_RC, run).add_((1 - c_aj)[run.clip_slice, None]).mul_(B_aj[run.clip_slice, None])
        return x_RC.addcmul_(u_RC, e_RC)

    @staticmethod
    def _rows_part(x_RC: Tensor, u_RC: Tensor, A_ib: Tensor, r_ib: Tensor, columns: Block) -> None:
        """Compute x = A (1 + u - r): two passes with a factor and a term that are constant inside a text."""
        offset_ib = torch.addcmul(A_ib, A_ib, r_ib, value=-1)
        for run in columns.runs:
            torch.mul(by_text(u_RC, run), A_ib[:, run.clip_slice, None], out=by_text(x_RC, run))
            by_text(x_RC, run).add_(offset_ib[:, run.clip_slice, None])

    def _with_one_exponential(self, u_RC: Tensor, rows: Block, columns: Block) -> tuple[Tensor, ...]:
        e_RC, x_RC = self._like(u_RC, 0), self._like(u_RC, 1)
        torch.exp(u_RC, out=e_RC)
        torch.mul(u_RC, e_RC, out=x_RC)
        R_ib, C_aj = row_sums(e_RC, columns), column_sums(e_RC, rows)
        return e_RC, R_ib, C_aj, row_sums(x_RC, columns).div_(R_ib), column_sums(x_RC, rows).div_(C_aj)

    def _with_two_exponentials(self, u_RC: Tensor, rows: Block, columns: Block) -> tuple[Tensor, ...]:
        maximum_ib, maximum_aj = row_maxima(u_RC, columns), column_maxima(u_RC, rows)
        e_RC = self._exponential_by_text(u_RC, maximum_ib, columns)
        R_ib, P_ib = row_sums(e_RC, columns), row_sums(e_RC.mul_(u_RC), columns)
        e_RC = self._exponential_by_video(u_RC, maximum_aj, rows)
        C_aj, Q_aj = column_sums(e_RC, rows), column_sums(e_RC.mul_(u_RC), rows)
        return maximum_ib, maximum_aj, R_ib, C_aj, P_ib.div_(R_ib), Q_aj.div_(C_aj)

    def _exponential_by_text(self, u_RC: Tensor, maximum_ib: Tensor, columns: Block) -> Tensor:
        e_RC = self._like(u_RC, 0)
        for run in columns.runs:
            torch.sub(by_text(u_RC, run), maximum_ib[:, run.clip_slice, None], out=by_text(e_RC, run))
        return self._powers(e_RC)

    def _exponential_by_video(self, u_RC: Tensor, maximum_aj: Tensor, rows: Block) -> Tensor:
        e_RC = self._like(u_RC, 0)
        for run in rows.runs:
            torch.sub(by_video(u_RC, run), maximum_aj[run.clip_slice, None], out=by_video(e_RC, run))
        return self._powers(e_RC)

    def _powers(self, below_RC: Tensor) -> Tensor:
        """Returns exp of non-positive values; at tau = 0 the limit, 1 for each maximum and 0 elsewhere."""
        return below_RC.exp_() if self.tau else below_RC.eq_(0)

    def _like(self, u_RC: Tensor, which: int) -> Tensor:
        """Returns a scratch tile with the layout of s, including spare rows and columns."""
        room = u_RC.untyped_storage().nbytes() // u_RC.itemsize
        held = self._scratch[which]
        if held is None or held.numel() < room:
            held = self._scratch[which] = torch.empty(room, dtype=u_RC.dtype, device=u_RC.device)
        return held.as_strided(u_RC.shape, u_RC.stride())


def counts(block: Block, like: Tensor) -> Tensor:
    """Returns the number of tokens of each clip of the block, in the dtype and on the device of `like`."""
    return block.starts_and_lengths(like.device, like.dtype)[1]


def by_text(x_RC: Tensor, run: LengthRun) -> Tensor:
    """Returns (R, texts, m): the run's columns, text by text."""
    return x_RC[:, run.tokens].unflatten(1, (run.clips, run.length))


def by_video(x_RC: Tensor, run: LengthRun) -> Tensor:
    """Returns (videos, n, C): the run's rows, video by video."""
    return x_RC[run.tokens].unflatten(0, (run.clips, run.length))


def row_sums(x_RC: Tensor, columns: Block) -> Tensor:
    """Returns (R, texts): each row's sum over the tokens of each text."""
    out_ib = x_RC.new_empty(x_RC.shape[0], len(columns.lengths))
    for run in columns.runs:
        torch.sum(by_text(x_RC, run), dim=2, out=out_ib[:, run.clip_slice])
    return out_ib


def column_sums(x_RC: Tensor, rows: Block) -> Tensor:
    """Returns (videos, C): each column's sum over the tokens of each video."""
    out_aj = x_RC.new_empty(len(rows.lengths), x_RC.shape[1])
    for run in rows.runs:
        torch.sum(by_video(x_RC, run), dim=1, out=out_aj[run.clip_slice])
    return out_aj


def row_maxima(x_RC: Tensor, columns: Block) -> Tensor:
    """Returns (R, texts): each row's maximum over the tokens of each text."""
    out_ib = x_RC.new_empty(x_RC.shape[0], len(columns.lengths))
    for run in columns.runs:
        torch.amax(by_text(x_RC, run), dim=2, out=out_ib[:, run.clip_slice])
    return out_ib


def column_maxima(x_RC: Tensor, rows: Block) -> Tensor:
    """Returns (videos, C): each column's maximum over the tokens of each video."""
    out_aj = x_RC.new_empty(len(rows.lengths), x_RC.shape[1])
    for run in rows.runs:
        torch.amax(by_video(x_RC, run), dim=1, out=out_aj[run.clip_slice])
    return out_aj


def row_means(r_ib: Tensor, rows: Block) -> Tensor:
    """Returns (videos, texts): mean over each video's tokens."""
    return column_sums(r_ib, rows) / counts(rows, r_ib)[:, None]


def column_means(c_aj: Tensor, columns: Block) -> Tensor:
    """Returns (videos, texts): mean over each text's tokens."""
    return row_sums(c_aj, columns) / counts(columns, c_aj)[None, :]


def spread_rows(G_ab: Tensor, rows: Block) -> Tensor:
    """Returns (R, texts): each video's row once for each of its tokens."""
    out_ib = G_ab.new_empty(rows.size, G_ab.shape[1])
    for run in rows.runs:
        by_video(out_ib, run).copy_(G_ab[run.clip_slice, None])
    return out_ib


def spread_columns(H_ab: Tensor, columns: Block) -> Tensor:
    """Returns (videos, C): each text's column once for each of its tokens."""
    out_aj = H_ab.new_empty(H_ab.shape[0], columns.size)
    for run in columns.runs:
        by_text(out_aj, run).copy_(H_ab[:, run.clip_slice, None])
    return out_aj
