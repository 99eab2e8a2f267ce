"""Positions: sines that are added, and rotations of queries and keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def packed_positions(lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Returns int64 (N,) each: the clip of every packed row, and its position in that clip."""
    clip_N = torch.repeat_interleave(lengths_B)
    starts_B = lengths_B.cumsum(0) - lengths_B
    return clip_N, torch.arange(clip_N.numel(), device=clip_N.device) - starts_B[clip_N]


def sine_positions(position_N: Tensor, width: int) -> Tensor:
    """Returns float32 (N, width): sine in even columns, cosine in odd ones (Vaswani et al. 2017, section 3.5)."""
    column_D = torch.arange(width, device=position_N.device)
    rate_D = torch.exp(-math.log(10_000) * (2 * (column_D // 2) / width))
    angle_ND = position_N[:, None].float() * rate_D
    return torch.where(column_D % 2 == 0, angle_ND.sin(), angle_ND.cos())


def rotations(position_N: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Returns float32 cosine and sine, each (N, width), that `rotate` takes for heads of this width."""
    rate = 10_000 ** (-torch.arange(0, width, 2, device=position_N.device).float() / width)
    angle = (position_N[:, None].float() * rate).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x_NHD: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    """Returns the rows rotated by their position: products of queries and keys then depend on distances (RoFormer, Su
    et al. 2021).

    A column is paired with the one half the width away, as in GPT-NeoX.
    """
    first, second = x_NHD.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return x_NHD * cos_ND[:, None].to(x_NHD.dtype) + turned * sin_ND[:, None].to(x_NHD.dtype)


class TokenPositions(nn.Module):
    """Positions that are added to the tokens before the decoder's linear layer (section 3.3; Table 4).

    `sine`, `none`, or a learned table that starts at zero (`learned_zero`) or at random (`learned_random`).
    """

    longest = 2048
    """Rows of a learned table; later positions take its last row."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind.startswith("learned"):
            self.table = nn.Parameter(torch.zeros(self.longest, width))
            if kind == "learned_random":
                nn.init.normal_(self.table, std=0.02)

    def forward(self, tokens_ND: Tensor, position_N: Tensor) -> Tensor:
        """Returns the tokens, (N, D), with their positions added."""
        if self.kind == "none":
            return tokens_ND
        if self.kind == "sine":
            return tokens_ND + sine_positions(position_N, tokens_ND.shape[1]).to(tokens_ND.dtype)
        return tokens_ND + self.table[position_N.clamp(max=self.longest - 1)]
