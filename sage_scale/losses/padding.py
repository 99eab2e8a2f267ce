"""From packed rows to padded ones and back."""

from __future__ import annotations

import torch
from torch import Tensor


def pad_packed(rows_ND: Tensor, lengths_B: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Packed rows as (B, L, D), zeros behind each clip's end, with the mask (B, L) of real rows.

    L is `width`, or the longest length. Raises ValueError where the lengths do not sum to the rows.
    """
    lengths = [int(length) for length in lengths_B.tolist()]
    if sum(lengths) != rows_ND.shape[0]:
        raise ValueError(f"lengths sum to {sum(lengths)}, but there are {rows_ND.shape[0]} rows")
    width = max(lengths, default=0) if width is None else width
    mask_BL = torch.arange(width, device=rows_ND.device) < lengths_B.to(rows_ND.device)[:, None]
    padded_BLD = rows_ND.new_zeros(len(lengths), width, *rows_ND.shape[1:])
    scattered = mask_BL.reshape(*mask_BL.shape, *[1] * (rows_ND.ndim - 1))
    return padded_BLD.masked_scatter(scattered, rows_ND), mask_BL
