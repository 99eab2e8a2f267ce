"""Tile computations as two Triton kernels: the equations of `clcl_tile`, with one read and one write per tile.

Matrix products stay with the library: fused, a pair's accumulators (64 x 512 in float32) would fill a multiprocessor's
registers. A program takes one video and a few texts, (n, texts, m) values, so that both softmaxes of each pair happen
in registers. Lengths are ragged; what lies outside of a clip is masked, exactly. In float32 and float64;
TRITON_INTERPRET=1 runs it on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sage_scale.losses.clcl_tile import ONE_EXPONENTIAL, Softmax, TorchTile
from sage_scale.losses.tokens import Block

VALUES = 2048
"""Values that a program aims at: 16 a thread with four warps."""
MOST_VALUES = 16384
"""A pair with more (128 x 128 tokens) would spill registers: its tile goes through torch operations."""

ONE, TWO, MAXIMUM = 0, 1, 2
"""One exponential for rows and columns, one for each with its maximum, or the maximum itself."""


class TritonTile:
    """Tile computations by the kernels below; equal to `TorchTile`."""

    measures_first = False

    def __init__(self, softmax: Softmax, factors: torch.dtype) -> None:
        self.factors = factors
        self._narrow = torch.empty(0, dtype=factors)
        self.unit = softmax.unit
        self.mode = MAXIMUM if softmax.tau == 0 else ONE if softmax.tau >= ONE_EXPONENTIAL else TWO
        self._torch = TorchTile(softmax)

    def measure(self, u_RC: Tensor, rows: Block, columns: Block) -> tuple[Tensor, Tensor, Any]:
        """Returns `clcl_tile.Tile.measure`, without values for reuse."""
        if self._too_large(rows, columns):
            return self._torch.measure(u_RC, rows, columns)
        Z_2ab = u_RC.new_empty(2, len(rows.lengths), len(columns.lengths))
        launch = self._launch(u_RC, rows, columns)
        _measure[launch.grid](*launch.pointers, Z_2ab[0], Z_2ab[1], *launch.sizes, **launch.constants)
        Z_2ab *= self.unit
        return Z_2ab[0], Z_2ab[1], None

    def gradient(
        self, u_RC: Tensor, kept: Any, G_ab: Tensor, H_ab: Tensor, rows: Block, columns: Block
    ) -> Tensor:
        """Returns `clcl_tile.Tile.gradient`: in place, or in a scratch of the products' type, which saves a pass."""
        if self._too_large(rows, columns):
            return self._torch.gradient(u_RC, kept, G_ab, H_ab, rows, columns)
        launch = self._launch(u_RC, rows, columns)
        G_ab, H_ab = G_ab.contiguous(), H_ab.contiguous()
        W_RC = u_RC
        if u_RC.dtype != self.factors:
            room = u_RC.untyped_storage().nbytes() // u_RC.itemsize
            if self._narrow.numel() < room or self._narrow.device != u_RC.device:
                self._narrow = torch.empty(room, dtype=self.factors, device=u_RC.device)
            W_RC = self._narrow.as_strided(u_RC.shape, u_RC.stride())
        _gradient[launch.grid](*launch.pointers, W_RC, G_ab, H_ab, *launch.sizes, **launch.constants)
        return W_RC

    @staticmethod
    def _too_large(rows: Block, columns: Block) -> bool:
        return _power(rows.lengths[-1]) * _power(columns.lengths[-1]) > MOST_VALUES

    def _launch(self, u_RC: Tensor, rows: Block, columns: Block) -> _Launch:
        n, m = _power(rows.lengths[-1]), _power(columns.lengths[-1])
        texts = max(1, min(VALUES // (n * m), _power(len(columns.lengths))))
        return _Launch(
            grid=(len(rows.lengths), triton.cdiv(len(columns.lengths), texts)),
            pointers=(
                u_RC,
                *rows.starts_and_lengths(u_RC.device, torch.int32),
                *columns.starts_and_lengths(u_RC.device, torch.int32),
            ),
            sizes=(u_RC.stride(0), len(columns.lengths)),
            constants={
                "n_block": n,
                "texts_block": texts,
                "m_block": m,
                "mode": self.mode,
                "num_warps": max(1, min(16, n * m * texts // 512)),
            },
        )


class _Launch:
    def __init__(self, grid: Any, pointers: Any, sizes: Any, constants: Any) -> None:
        self.grid, self.pointers, self.sizes, self.constants = grid, pointers, sizes, constants


def _power(length: int) -> int:
    return 1 << max(length - 1, 0).bit_length()


# Below: i counts the tokens of the video (n of them), k the texts of this program, j the tokens of text k (m_K[k]).


@triton.jit
def _softmaxes(
    u_ptr, row_start, n, column_start_K, m_K, stride,
    n_block: tl.constexpr, m_block: tl.constexpr, mode: tl.constexpr,
):  # fmt: skip
    """Returns u and, of both softmaxes, the powers, their sums and the weighted means; 0 outside of the clips."""
    i = tl.arange(0, n_block)[:, None, None]
    j = tl.arange(0, m_block)[None, None, :]
    real_ikj = (i < n) & (j < m_K[None, :, None])
    # A tile may have more than 2^31 values.
    place_ikj = (row_start + i).to(tl.int64) * stride + column_start_K[None, :, None] + j
    u_ikj = tl.load(u_ptr + place_ikj, mask=real_ikj, other=0.0)
    if mode == 0:
        e_ikj = tl.where(real_ikj, tl.exp(u_ikj), 0.0)
        f_ikj = e_ikj
        R_ik = tl.sum(e_ikj, 2)
        C_kj = tl.sum(f_ikj, 0)
    else:
        low_ikj = tl.where(real_ikj, u_ikj, float("-inf"))
        top_ik = tl.max(low_ikj, 2)
        top_kj = tl.max(low_ikj, 0)
        top_ik = tl.where(top_ik == float("-inf"), 0.0, top_ik)
        top_kj = tl.where(top_kj == float("-inf"), 0.0, top_kj)
        if mode == 1:
            e_ikj = tl.where(real_ikj, tl.exp(u_ikj - top_ik[:, :, None]), 0.0)
            f_ikj = tl.where(real_ikj, tl.exp(u_ikj - top_kj[None, :, :]), 0.0)
        else:
            e_ikj = tl.where(real_ikj & (u_ikj == top_ik[:, :, None]), 1.0, 0.0).to(u_ikj.dtype)
            f_ikj = tl.where(real_ikj & (u_ikj == top_kj[None, :, :]), 1.0, 0.0).to(u_ikj.dtype)
        R_ik = tl.sum(e_ikj, 2)
        C_kj = tl.sum(f_ikj, 0)
    # Outside of the clips the sums and the terms that they divide are 0.
    R_ik = tl.where(R_ik > 0, R_ik, 1.0)
    C_kj = tl.where(C_kj > 0, C_kj, 1.0)
    r_ik = tl.sum(e_ikj * u_ikj, 2) / R_ik
    c_kj = tl.sum(f_ikj * u_ikj, 0) / C_kj
    return place_ikj, real_ikj, u_ikj, e_ikj, f_ikj, R_ik, C_kj, r_ik, c_kj


@triton.jit
def _measure(
    u_ptr, row_start_ptr, n_ptr, column_start_ptr, m_ptr, Zv_ptr, Zt_ptr,
    stride, texts,
    n_block: tl.constexpr, texts_block: tl.constexpr, m_block: tl.constexpr, mode: tl.constexpr,
):  # fmt: skip
    """Write the means over i of r and over j of c, for video program_id(0) and the texts of program_id(1)."""
    a = tl.program_id(0)
    b_K = tl.program_id(1) * texts_block + tl.arange(0, texts_block)
    n = tl.load(n_ptr + a)
    m_K = tl.load(m_ptr + b_K, mask=b_K < texts, other=0)
    column_start_K = tl.load(column_start_ptr + b_K, mask=b_K < texts, other=0)
    _, _, _, _, _, _, _, r_ik, c_kj = _softmaxes(
        u_ptr, tl.load(row_start_ptr + a), n, column_start_K, m_K, stride,
        n_block, m_block, mode,
    )  # fmt: skip
    place_K = a.to(tl.int64) * texts + b_K
    tl.store(Zv_ptr + place_K, tl.sum(r_ik, 0) / n, mask=b_K < texts)
    tl.store(Zt_ptr + place_K, tl.sum(c_kj, 1) / tl.maximum(m_K, 1), mask=b_K < texts)


@triton.jit
def _gradient(
    u_ptr, row_start_ptr, n_ptr, column_start_ptr, m_ptr, W_ptr, G_ptr, H_ptr,
    stride, texts,
    n_block: tl.constexpr, texts_block: tl.constexpr, m_block: tl.constexpr, mode: tl.constexpr,
):  # fmt: skip
    """Write W = e A (1 + u - r) + f B (1 + u - c) to W (which may be u), with A = G / (n R) and B = H / (m C)."""
    a = tl.program_id(0)
    b_K = tl.program_id(1) * texts_block + tl.arange(0, texts_block)
    n = tl.load(n_ptr + a)
    m_K = tl.load(m_ptr + b_K, mask=b_K < texts, other=0)
    column_start_K = tl.load(column_start_ptr + b_K, mask=b_K < texts, other=0)
    place_ikj, real_ikj, u_ikj, e_ikj, f_ikj, R_ik, C_kj, r_ik, c_kj = _softmaxes(
        u_ptr, tl.load(row_start_ptr + a), n, column_start_K, m_K, stride,
        n_block, m_block, mode,
    )  # fmt: skip
    place_K = a.to(tl.int64) * texts + b_K
    G_K = tl.load(G_ptr + place_K, mask=b_K < texts, other=0.0) / n
    H_K = tl.load(H_ptr + place_K, mask=b_K < texts, other=0.0) / tl.maximum(m_K, 1)
    A_ik = G_K[None, :] / R_ik
    B_kj = H_K[:, None] / C_kj
    rows_ikj = e_ikj * A_ik[:, :, None] * (1.0 + u_ikj - r_ik[:, :, None])
    columns_ikj = f_ikj * B_kj[None, :, :] * (1.0 + u_ikj - c_kj[None, :, :])
    tl.store(W_ptr + place_ikj, rows_ikj + columns_ikj, mask=real_ikj)
