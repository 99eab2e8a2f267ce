"""Dropout that is a function of (seed, epoch, sample): no rank layout, no recomputation changes it."""

from __future__ import annotations

import torch
from torch import Tensor

from sage_scale.vision.draws import mix


def token_draws(draws_B: Tensor, clip_segments_B: Tensor) -> Tensor:
    """int64 (N,): a number for each token, from its clip's number and its place in the clip."""
    starts_B = clip_segments_B.cumsum(0) - clip_segments_B
    clip_N = torch.repeat_interleave(clip_segments_B)
    place_N = torch.arange(clip_N.numel(), device=clip_N.device) - starts_B[clip_N]
    return mix(draws_B[clip_N], place_N)


def keyed_dropout(x_ND: Tensor, draws_N: Tensor | None, p: float, salt: int, training: bool = True) -> Tensor:
    """Each value is 0 with probability `p`, else divided by 1 - p; a row's pattern follows from its draw and `salt`.

    Outside training, or with p = 0, the input itself. Raises ValueError in training without draws.
    """
    if not training or p == 0:
        return x_ND
    if draws_N is None:
        raise ValueError("dropout in training needs PackedVideo.draws_B, the clips' random numbers")
    bits_ND = mix(mix(draws_N, salt)[:, None], torch.arange(x_ND.shape[1], device=x_ND.device))
    keep_ND = (bits_ND & 0xFFFFFF) >= round(p * 2**24)
    return x_ND * keep_ND.to(x_ND.dtype) / (1 - p)
