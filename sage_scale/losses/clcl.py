"""The readable reference: CLCL, SAGE's token-level contrastive similarity (section 3.1.5, after CiCo), and InfoNCE.

For video a with tokens v[a,i] and text b with tokens t[b,j], all of length one, s[a,b,i,j] = v[a,i] . t[b,j] and

    video to text   r[a,b,i] = sum_j s softmax_j(s / tau)     Zv[a,b] = mean over i of r[a,b,i]
    text to video   c[a,b,j] = sum_i s softmax_i(s / tau)     Zt[a,b] = mean over j of c[a,b,j]

Faster versions (`clcl_tiled`, `clcl_triton`, `clcl_ring`) are proved equal to this one (`objectives` chooses). It holds
four-dimensional tensors of B * B * N * M values: about a gigabyte in training for 256 clips of 16 tokens on both sides.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sage_scale.losses.tokens import pad_packed

Variant = Literal["paper", "one_direction"]


def reference_similarity(
    visual: Tensor,
    text: Tensor,
    visual_lengths: Tensor,
    text_lengths: Tensor,
    tau: float = 0.07,
) -> tuple[Tensor, Tensor]:
    """Returns Zv and Zt, both (Bv, Bt), before the logit scale.

    `visual` (sum of visual_lengths, D) and `text` (sum of text_lengths, D) are packed and need not be normalised.
    Padding is in no softmax and no mean. Values from -1 to 1; a row depends on its own video only.
    `tau=0` is the limit of the softmax, the maximum over real tokens (ColBERT's MaxSim in both directions).
    """
    v_aiD, valid_ai = pad_packed(F.normalize(visual, dim=-1), visual_lengths)
    t_bjD, valid_bj = pad_packed(F.normalize(text, dim=-1), text_lengths)
    s_abij = torch.einsum("aid,bjd->abij", v_aiD, t_bjD)
    logits_abij = s_abij if tau == 0 else s_abij / tau
    logits_j = logits_abij.masked_fill(~valid_bj[None, :, None, :], torch.finfo(s_abij.dtype).min)
    logits_i = logits_abij.masked_fill(~valid_ai[:, None, :, None], torch.finfo(s_abij.dtype).min)
    if tau == 0:
        r_abi, c_abj = logits_j.amax(dim=3), logits_i.amax(dim=2)
    else:
        r_abi = (s_abij * logits_j.softmax(dim=3)).sum(dim=3)
        c_abj = (s_abij * logits_i.softmax(dim=2)).sum(dim=2)
    Zv_ab = (r_abi * valid_ai[:, None, :]).sum(dim=2) / visual_lengths.to(r_abi)[:, None]
    Zt_ab = (c_abj * valid_bj[None, :, :]).sum(dim=2) / text_lengths.to(c_abj)[None, :]
    return Zv_ab, Zt_ab


def clcl_loss(
    Zv: Tensor,
    Zt: Tensor,
    scale: Tensor | float,
    alpha: float = 0.5,
    variant: Variant = "paper",
    text_ids: Tensor | None = None,
    same_text: Literal["negative", "masked"] = "negative",
) -> Tensor:
    """Returns the loss of one level over B clips in one process, a scalar tensor.

    paper: alpha InfoNCE(scale Zv) + (1 - alpha) InfoNCE(scale Zt), each symmetric (equations 3 and 4); one_direction:
    rows of Zv and columns of Zt only, a half each (released code). `same_text="masked"` takes the pairs of different
    clips with equal `text_ids` (B,) out of the denominators.
    """
    other_BB = matches(text_ids, text_ids) if same_text == "masked" and text_ids is not None else None
    if variant == "one_direction":
        return 0.5 * (info_nce(scale * Zv, other_BB, "rows") + info_nce(scale * Zt, other_BB, "columns"))
    return alpha * info_nce(scale * Zv, other_BB) + (1 - alpha) * info_nce(scale * Zt, other_BB)


def clip_similarity(visual: Tensor, text: Tensor, visual_lengths: Tensor, text_lengths: Tensor) -> Tensor:
    """Returns (Bv, Bt): the cosine of each clip's mean tokens, before the logit scale; inputs packed, (sum, D)."""
    visual_BD, text_BD = mean_tokens(visual, visual_lengths), mean_tokens(text, text_lengths)
    return F.normalize(visual_BD, dim=-1) @ F.normalize(text_BD, dim=-1).T


def clip_loss(
    Z: Tensor,
    scale: Tensor | float,
    text_ids: Tensor | None = None,
    same_text: Literal["negative", "masked"] = "negative",
) -> Tensor:
    """Returns the symmetric InfoNCE of `scale * Z` over B clips in one process; `same_text` as in `clcl_loss`."""
    other_BB = matches(text_ids, text_ids) if same_text == "masked" and text_ids is not None else None
    return info_nce(scale * Z, other_BB)


def mean_tokens(tokens_ND: Tensor, lengths_B: Tensor) -> Tensor:
    """Returns the mean of each clip's packed tokens, (B, D); every clip must have a token."""
    lengths_B = lengths_B.to(tokens_ND.device)
    clip_N = torch.repeat_interleave(lengths_B, output_size=tokens_ND.shape[0])
    sums_BD = tokens_ND.new_zeros(lengths_B.numel(), tokens_ND.shape[1]).index_add(0, clip_N, tokens_ND)
    return sums_BD / lengths_B.to(sums_BD)[:, None]


def info_nce(
    logits_BB: Tensor,
    same_text_BB: Tensor | None = None,
    direction: Literal["both", "rows", "columns"] = "both",
) -> Tensor:
    """Returns the mean -log softmax of the diagonal, over rows, columns, or both averaged (equation 3).

    `logits_BB` are similarities times the logit scale; `same_text_BB` (bool) marks pairs of the same text, which
    are no negatives off the diagonal. Without clips it is 0.
    """
    B = logits_BB.shape[0]
    index_B = torch.arange(B, device=logits_BB.device)
    parts = []
    if direction != "columns":
        parts.append(diagonal_losses(logits_BB, index_B, same_text_BB).sum())
    if direction != "rows":
        parts.append(
            diagonal_losses(logits_BB.T, index_B, None if same_text_BB is None else same_text_BB.T).sum()
        )
    return torch.stack(parts).sum() / max(B * len(parts), 1)


def diagonal_losses(logits_RB: Tensor, index_R: Tensor, same_text_RB: Tensor | None = None) -> Tensor:
    """Returns per row, (R,), the log-sum-exp minus the logit of the row's own clip, in column `index_R`."""
    own_RB = index_R[:, None] == torch.arange(logits_RB.shape[1], device=logits_RB.device)
    if same_text_RB is not None:
        logits_RB = logits_RB.masked_fill(same_text_RB & ~own_RB, -torch.inf)
    return torch.logsumexp(logits_RB, dim=1) - logits_RB.gather(1, index_R[:, None]).squeeze(1)


def matches(left_ids_R: Tensor, right_ids_B: Tensor) -> Tensor:
    """Returns a bool matrix (R, B) of equal ids."""
    return left_ids_R[:, None] == right_ids_B[None, :]
