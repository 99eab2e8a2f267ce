"""The CLIP-style loss that CLCL is compared with (SAGE, Table 4a): one vector a clip."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from sage_scale.losses.contrastive import info_nce, matches
from sage_scale.losses.padding import pad_packed


def clip_similarity(visual: Tensor, text: Tensor, visual_lengths: Tensor, text_lengths: Tensor) -> Tensor:
    """(Bv, Bt): cosine of the means of each clip's tokens, before the logit scale; inputs packed, (sum, D)."""
    return _pool(visual, visual_lengths) @ _pool(text, text_lengths).T


def clip_loss(
    Z: Tensor,
    scale: Tensor | float,
    text_ids: Tensor | None = None,
    same_text: Literal["negative", "masked"] = "negative",
) -> Tensor:
    """Symmetric InfoNCE of `scale * Z` over B clips in one process; `same_text` as in `clcl_loss`."""
    other_BB = matches(text_ids, text_ids) if same_text == "masked" and text_ids is not None else None
    return info_nce(scale * Z, other_BB)


def _pool(tokens_ND: Tensor, lengths_B: Tensor) -> Tensor:
    padded_BLD, _ = pad_packed(tokens_ND, lengths_B)
    return F.normalize(padded_BLD.sum(dim=1) / lengths_B.to(padded_BLD)[:, None], dim=-1)
