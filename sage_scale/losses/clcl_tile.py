"""What happens to one tile of similarities: the two inner softmaxes of CLCL and their gradient, element by element.

A tile is s = V T^T for the tokens of a few videos (rows) and a few texts (columns), all of length one. Per pair of
clips (a, b), with n and m tokens, e = exp(s / tau) serves both softmaxes:

    R[i,b] = sum_j e        P[i,b] = sum_j s e        r = P / R        Zv[a,b] = mean over i of r
    C[a,j] = sum_i e        Q[a,j] = sum_i s e        c = Q / C        Zt[a,b] = mean over j of c

Derivation of the gradient. With p = e / R: r = sum_j p s and dp_j/ds_k = p_j (delta_jk - p_k) / tau, so

    dr/ds_j = p_j + (s_j p_j - p_j r) / tau = (e_j / R) (1 + (s_j - r) / tau)

and alike for c. With G = dL/dZv, H = dL/dZt, A = G / (n R), B = H / (m C):

    dL/ds = e [A (1 + (s - r) / tau) + B (1 + (s - c) / tau)]
          = e [s A / tau + s B / tau + A (1 - r / tau) + B (1 - c / tau)]

which is four passes over the tile, since A depends on (i, b) and B on (a, j) only. Then dL/dv = dL/ds T and
dL/dt = dL/ds^T V. Nothing of a tile is kept: s, e and the sums are computed again in the backward pass.

exp needs no maximum taken off as long as exp(2 / tau) stays inside float32; below tau .025 rows and columns have
their own maxima and so their own exponentials. tau = 0 stands for the limit, MaxSim: r = max_j s and c = max_i s, where
equal maxima share the gradient.

The released variant runs the softmaxes over padding too, which has s = 0: it adds a count to R and C, and nothing
to P and Q.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sage_scale.losses.tokens import Block

ONE_EXPONENTIAL = 0.025
"""From this tau on exp(s / tau) is between 4e-18 and 2e17: no maxima are needed in float32."""


@dataclass(frozen=True, slots=True)
class Softmax:
    """The inner softmax."""

    tau: float
    """Temperature; 0 is the limit, the maximum."""
    padded_to: tuple[int, int] | None = None
    """(N, M) of the released variant: clips and texts are filled up with s = 0; None leaves padding out."""


class Tile(Protocol):
    """One way to treat tiles; `clcl_triton.TritonTile` is another."""

    def measure(self, s_RC: Tensor, rows: Block, columns: Block) -> tuple[Tensor, Tensor, Any]:
        """Zv and Zt of the pairs (clips of rows, clips of columns), and what `gradient` can use again."""
        ...

    def gradient(
        self, s_RC: Tensor, kept: Any, G_ab: Tensor, H_ab: Tensor, rows: Block, columns: Block
    ) -> Tensor:
        """dL/ds in place of s or of a scratch, from G = dL/dZv and H = dL/dZt; `kept` is `measure`'s or None."""
        ...


class TorchTile:
    """Tiles by torch operations, on any device; one object for each sweep, with two scratch tiles."""

    def __init__(self, softmax: Softmax) -> None:
        self.tau = softmax.tau
        self.padded_to = softmax.padded_to
        self._scratch: list[Tensor | None] = [None, None]

    def measure(self, s_RC: Tensor, rows: Block, columns: Block) -> tuple[Tensor, Tensor, Any]:
        if self.tau == 0:
            r_ib, c_aj = row_maxima(s_RC, columns), column_maxima(s_RC, rows)
            kept: Any = (r_ib, c_aj)
        elif self.tau >= ONE_EXPONENTIAL:
            kept = self._with_one_exponential(s_RC, rows, columns)
            r_ib, c_aj = kept[3], kept[4]
        else:
            kept = self._with_two_exponentials(s_RC, rows, columns)
            r_ib, c_aj = kept[4], kept[5]
        return row_means(r_ib, rows), column_means(c_aj, columns), kept

    def gradient(
        self, s_RC: Tensor, kept: Any, G_ab: Tensor, H_ab: Tensor, rows: Block, columns: Block
    ) -> Tensor:
        if kept is None:
            kept = self.measure(s_RC, rows, columns)[2]
        G_ib = spread_rows(G_ab / counts(rows, G_ab)[:, None], rows)
        H_aj = spread_columns(H_ab / counts(columns, H_ab)[None, :], columns)
        if self.tau == 0:
            return self._gradient_of_maxima(s_RC, kept, G_ib, H_aj, rows, columns)
        x_RC = self._like(s_RC, 1)
        tau = self.tau
        if tau >= ONE_EXPONENTIAL:
            e_RC, R_ib, C_aj, r_ib, c_aj = kept
            A_ib, B_aj = G_ib / R_ib, H_aj / C_aj
            linear(x_RC, s_RC, A_ib / tau, A_ib * (1 - r_ib / tau), columns)
            add_linear(x_RC, s_RC, B_aj / tau, B_aj * (1 - c_aj / tau), rows)
            return x_RC.mul_(e_RC)
        maximum_ib, maximum_aj, R_ib, C_aj, r_ib, c_aj = kept
        A_ib, B_aj = G_ib / R_ib, H_aj / C_aj
        linear(x_RC, s_RC, A_ib / tau, A_ib * (1 - r_ib / tau), columns)
        x_RC.mul_(self._exponential(s_RC, maximum_ib, columns, by_row=True))
        e_RC = self._exponential(s_RC, maximum_aj, rows, by_row=False)
        # s is not needed any more: it becomes the columns' part.
        for run in rows.runs:
            part_knC = s_RC[run.tokens].unflatten(0, (run.clips, run.length))
            part_knC.mul_((B_aj / tau)[run.places, None]).add_((B_aj * (1 - c_aj / tau))[run.places, None])
        return x_RC.add_(s_RC.mul_(e_RC))

    def _with_one_exponential(self, s_RC: Tensor, rows: Block, columns: Block) -> tuple[Tensor, ...]:
        e_RC, x_RC = self._like(s_RC, 0), self._like(s_RC, 1)
        torch.mul(s_RC, 1 / self.tau, out=e_RC)
        e_RC.exp_()
        torch.mul(s_RC, e_RC, out=x_RC)
        R_ib, C_aj = row_sums(e_RC, columns), column_sums(e_RC, rows)
        if self.padded_to is not None:
            R_ib += self._padding_of_texts(R_ib, columns)
            C_aj += self._padding_of_videos(C_aj, rows)
        return e_RC, R_ib, C_aj, row_sums(x_RC, columns) / R_ib, column_sums(x_RC, rows) / C_aj

    def _with_two_exponentials(self, s_RC: Tensor, rows: Block, columns: Block) -> tuple[Tensor, ...]:
        maximum_ib, maximum_aj = row_maxima(s_RC, columns), column_maxima(s_RC, rows)
        if self.padded_to is not None:
            maximum_ib = torch.where(
                self._padding_of_texts(maximum_ib, columns) > 0, maximum_ib.clamp_min(0), maximum_ib
            )
            maximum_aj = torch.where(
                self._padding_of_videos(maximum_aj, rows) > 0, maximum_aj.clamp_min(0), maximum_aj
            )
        e_RC = self._exponential(s_RC, maximum_ib, columns, by_row=True)
        R_ib, P_ib = row_sums(e_RC, columns), row_sums(e_RC.mul_(s_RC), columns)
        e_RC = self._exponential(s_RC, maximum_aj, rows, by_row=False)
        C_aj, Q_aj = column_sums(e_RC, rows), column_sums(e_RC.mul_(s_RC), rows)
        if self.padded_to is not None:
            R_ib += self._padding_of_texts(R_ib, columns) * (-maximum_ib / self.tau).exp()
            C_aj += self._padding_of_videos(C_aj, rows) * (-maximum_aj / self.tau).exp()
        return maximum_ib, maximum_aj, R_ib, C_aj, P_ib / R_ib, Q_aj / C_aj

    def _exponential(self, s_RC: Tensor, maximum: Tensor, block: Block, by_row: bool) -> Tensor:
        e_RC = self._like(s_RC, 0)
        for run in block.runs:
            if by_row:
                part, from_ = _by_text(e_RC, run), _by_text(s_RC, run)
                torch.sub(from_, maximum[:, run.places, None], out=part)
            else:
                part, from_ = _by_video(e_RC, run), _by_video(s_RC, run)
                torch.sub(from_, maximum[run.places, None], out=part)
        return e_RC.mul_(1 / self.tau).exp_()

    def _gradient_of_maxima(
        self, s_RC: Tensor, kept: Any, G_ib: Tensor, H_aj: Tensor, rows: Block, columns: Block
    ) -> Tensor:
        r_ib, c_aj = kept
        x_RC, e_RC = self._like(s_RC, 1), self._like(s_RC, 0)
        for run in columns.runs:
            torch.eq(_by_text(s_RC, run), r_ib[:, run.places, None], out=_by_text(x_RC, run))
        A_ib = G_ib / row_sums(x_RC, columns)
        for run in columns.runs:
            _by_text(x_RC, run).mul_(A_ib[:, run.places, None])
        for run in rows.runs:
            torch.eq(_by_video(s_RC, run), c_aj[run.places, None], out=_by_video(e_RC, run))
        B_aj = H_aj / column_sums(e_RC, rows)
        for run in rows.runs:
            _by_video(x_RC, run).addcmul_(_by_video(e_RC, run), B_aj[run.places, None])
        return x_RC

    def _padding_of_texts(self, like_ib: Tensor, columns: Block) -> Tensor:
        assert self.padded_to is not None
        return self.padded_to[1] - counts(columns, like_ib)[None, :]

    def _padding_of_videos(self, like_aj: Tensor, rows: Block) -> Tensor:
        assert self.padded_to is not None
        return self.padded_to[0] - counts(rows, like_aj)[:, None]

    def _like(self, s_RC: Tensor, which: int) -> Tensor:
        """A scratch tile laid out as s, in as much memory: spare rows and columns have their place too."""
        room = s_RC.untyped_storage().nbytes() // s_RC.itemsize
        held = self._scratch[which]
        if held is None or held.numel() < room:
            held = self._scratch[which] = torch.empty(room, dtype=s_RC.dtype, device=s_RC.device)
        return held.as_strided(s_RC.shape, s_RC.stride())


def counts(block: Block, like: Tensor) -> Tensor:
    """Tokens of each clip of the block, in the type and on the device of `like`."""
    return torch.tensor(block.lengths, dtype=like.dtype, device=like.device)


def _by_text(x_RC: Tensor, run: Any) -> Tensor:
    return x_RC[:, run.tokens].unflatten(1, (run.clips, run.length))


def _by_video(x_RC: Tensor, run: Any) -> Tensor:
    return x_RC[run.tokens].unflatten(0, (run.clips, run.length))


def row_sums(x_RC: Tensor, columns: Block) -> Tensor:
    """(R, texts): each row's sum over the tokens of each text."""
    out_ib = x_RC.new_empty(x_RC.shape[0], len(columns.lengths))
    for run in columns.runs:
        torch.sum(_by_text(x_RC, run), dim=2, out=out_ib[:, run.places])
    return out_ib


def column_sums(x_RC: Tensor, rows: Block) -> Tensor:
    """(videos, C): each column's sum over the tokens of each video."""
    out_aj = x_RC.new_empty(len(rows.lengths), x_RC.shape[1])
    for run in rows.runs:
        torch.sum(_by_video(x_RC, run), dim=1, out=out_aj[run.places])
    return out_aj


def row_maxima(x_RC: Tensor, columns: Block) -> Tensor:
    """(R, texts): each row's maximum over the tokens of each text."""
    out_ib = x_RC.new_empty(x_RC.shape[0], len(columns.lengths))
    for run in columns.runs:
        torch.amax(_by_text(x_RC, run), dim=2, out=out_ib[:, run.places])
    return out_ib


def column_maxima(x_RC: Tensor, rows: Block) -> Tensor:
    """(videos, C): each column's maximum over the tokens of each video."""
    out_aj = x_RC.new_empty(len(rows.lengths), x_RC.shape[1])
    for run in rows.runs:
        torch.amax(_by_video(x_RC, run), dim=1, out=out_aj[run.places])
    return out_aj


def row_means(r_ib: Tensor, rows: Block) -> Tensor:
    """(videos, texts): mean over each video's tokens."""
    return column_sums(r_ib, rows) / counts(rows, r_ib)[:, None]


def column_means(c_aj: Tensor, columns: Block) -> Tensor:
    """(videos, texts): mean over each text's tokens."""
    return row_sums(c_aj, columns) / counts(columns, c_aj)[None, :]


def spread_rows(G_ab: Tensor, rows: Block) -> Tensor:
    """(R, texts): each video's row once for each of its tokens."""
    out_ib = G_ab.new_empty(rows.size, G_ab.shape[1])
    for run in rows.runs:
        _by_video(out_ib, run).copy_(G_ab[run.places, None])
    return out_ib


def spread_columns(H_ab: Tensor, columns: Block) -> Tensor:
    """(videos, C): each text's column once for each of its tokens."""
    out_aj = H_ab.new_empty(H_ab.shape[0], columns.size)
    for run in columns.runs:
        _by_text(out_aj, run).copy_(H_ab[:, run.places, None])
    return out_aj


def linear(out_RC: Tensor, s_RC: Tensor, slope_ib: Tensor, offset_ib: Tensor, columns: Block) -> None:
    """out = s slope + offset, by row and text."""
    for run in columns.runs:
        slope_ik1, offset_ik1 = slope_ib[:, run.places, None], offset_ib[:, run.places, None]
        torch.addcmul(offset_ik1, _by_text(s_RC, run), slope_ik1, out=_by_text(out_RC, run))


def add_linear(out_RC: Tensor, s_RC: Tensor, slope_aj: Tensor, offset_aj: Tensor, rows: Block) -> None:
    """out += s slope + offset, by video and column."""
    for run in rows.runs:
        out_knC = _by_video(out_RC, run)
        out_knC.addcmul_(_by_video(s_RC, run), slope_aj[run.places, None]).add_(offset_aj[run.places, None])
