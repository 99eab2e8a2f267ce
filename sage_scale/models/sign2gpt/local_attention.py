"""Attention inside a window over packed clips, at a cost that is linear in the frames (section 3.1).

Rows are cut into blocks; a block's queries see its own keys and `window // 2` on either side, and a mask keeps the band
and the clips apart. A dense mask of all rows would cost their square.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16
"""Queries in a block. 16 with window 7 compute 3.1 times the products needed; 32, 5.4 times, and took longer."""


class Windows:
    """The blocks of packed clips: made once for all layers that see the same rows."""

    def __init__(self, clip_N: Tensor, window: int) -> None:
        """`clip_N` (int64) is the clip of each row, ascending; `window` is odd: |i - j| <= window // 2."""
        self.reach = reach = window // 2
        rows = clip_N.numel()
        self.blocks = -(-rows // BLOCK)
        self.spare = self.blocks * BLOCK - rows
        # Spare rows are of a clip of their own, so that none of them is without a key.
        query_NQ = F.pad(clip_N, (0, self.spare), value=-1).view(self.blocks, BLOCK)
        key_NK = self._windows(clip_N, -1)
        distance_QK = torch.arange(BLOCK + 2 * reach, device=clip_N.device) - torch.arange(
            BLOCK, device=clip_N.device
        ).unsqueeze(1)
        band_QK = (distance_QK >= 0) & (distance_QK <= 2 * reach)
        self.mask_N1QK = ((query_NQ[:, :, None] == key_NK[:, None, :]) & band_QK)[:, None]

    def attend(self, q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor) -> Tensor:
        """Returns (N, heads, D): softmax of scaled products inside each row's window, times the values."""
        if not self.blocks:
            return q_NHD + 0 * (k_NHD + v_NHD)
        queries = F.pad(q_NHD, (0, 0, 0, 0, 0, self.spare)).unflatten(0, (self.blocks, BLOCK)).transpose(1, 2)
        keys, values = (self._windows(x).permute(0, 1, 3, 2) for x in (k_NHD, v_NHD))
        out = F.scaled_dot_product_attention(queries, keys, values, self.mask_N1QK)
        return out.transpose(1, 2).flatten(0, 1)[: q_NHD.shape[0]]

    def _windows(self, rows: Tensor, value: int = 0) -> Tensor:
        """Returns each block's rows with those in reach, along a new last dimension: a view, not a copy."""
        if not self.blocks:
            return rows.new_zeros(0, BLOCK + 2 * self.reach)
        sides = (0, 0) * (rows.ndim - 1) + (self.reach, self.reach + self.spare)
        return F.pad(rows, sides, value=value).unfold(0, BLOCK + 2 * self.reach, BLOCK)


class DenseMask:
    """Attention by a whole mask for each clip: global attention, and the released code's padding."""

    def __init__(self, lengths_B: Tensor, real_B: Tensor | None = None, window: int = 0) -> None:
        """Rows of clip b are `lengths_B[b]` in number, the first `real_B[b]` of them real (all by default).

        A row sees the real rows of its clip inside the window (0: all of them), and itself.
        """
        width = int(lengths_B.max()) if lengths_B.numel() else 0
        position_L = torch.arange(width, device=lengths_B.device)
        self.there_BL = position_L < lengths_B[:, None]
        mask_BLL = (position_L < (lengths_B if real_B is None else real_B)[:, None])[:, None]
        if window:
            mask_BLL = mask_BLL & ((position_L[:, None] - position_L).abs() <= window // 2)
        self.mask_B1LL = (mask_BLL | torch.eye(width, dtype=torch.bool, device=lengths_B.device))[:, None]

    def attend(self, q_NHD: Tensor, k_NHD: Tensor, v_NHD: Tensor) -> Tensor:
        """Returns `Windows.attend`; memory grows with the square of the longest clip where torch has no fused way."""
        if not q_NHD.shape[0]:
            return q_NHD + 0 * (k_NHD + v_NHD)
        q, k, v = (self._padded(x_NHD) for x_NHD in (q_NHD, k_NHD, v_NHD))
        return F.scaled_dot_product_attention(q, k, v, self.mask_B1LL).transpose(1, 2)[self.there_BL]

    def _padded(self, x_NHD: Tensor) -> Tensor:
        x_BLHD = x_NHD.new_zeros(*self.there_BL.shape, *x_NHD.shape[1:])
        return x_BLHD.masked_scatter(self.there_BL[:, :, None, None], x_NHD).transpose(1, 2)
