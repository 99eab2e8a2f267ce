"""The CLIP-style loss that CLCL is compared with (SAGE, Table 4a): one vector a clip."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sage_scale.losses.contrastive import info_nce, matches


def clip_similarity(visual: Tensor, text: Tensor, visual_lengths: Tensor, text_lengths: Tensor) -> Tensor:
    """(Bv, Bt): cosine of the means of each clip's tokens, before the logit scale; inputs packed, (sum, D)."""
    visual_BD, text_BD = mean_tokens(visual, visual_lengths), mean_tokens(text, text_lengths)
    return F.normalize(visual_BD, dim=-1) @ F.normalize(text_BD, dim=-1).T


def clip_loss(
    Z: Tensor,
    scale: Tensor | float,
    text_ids: Tensor | None = None,
    same_text: Literal["negative", "masked"] = "negative",
) -> Tensor:
    """Symmetric InfoNCE of `scale * Z` over B clips in one process; `same_text` as in `clcl_loss`."""
    other_BB = matches(text_ids, text_ids) if same_text == "masked" and text_ids is not None else None
    return info_nce(scale * Z, other_BB)


def mean_tokens(tokens_ND: Tensor, lengths_B: Tensor) -> Tensor:
    """(B, D): the mean of each clip's packed tokens; a clip without tokens is refused elsewhere."""
    lengths_B = lengths_B.to(tokens_ND.device)
    clip_N = torch.repeat_interleave(lengths_B, output_size=tokens_ND.shape[0])
    sums_BD = tokens_ND.new_zeros(lengths_B.numel(), tokens_ND.shape[1]).index_add(0, clip_N, tokens_ND)
    return sums_BD / lengths_B.to(sums_BD)[:, None]
