"""InfoNCE over a matrix of similarities (SAGE, equation 3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def info_nce(
    logits_BB: Tensor,
    same_text_BB: Tensor | None = None,
    direction: Literal["both", "rows", "columns"] = "both",
) -> Tensor:
    """-log softmax of the diagonal, averaged over the clips; over rows, columns, or the mean of both (equation 3).

    `logits_BB` are similarities times the logit scale; `same_text_BB` (bool) marks pairs of the same text, which,
    off the diagonal, are no negatives. No clips give 0.
    """
    B = logits_BB.shape[0]
    place_B = torch.arange(B, device=logits_BB.device)
    parts = []
    if direction != "columns":
        parts.append(diagonal_losses(logits_BB, place_B, same_text_BB).sum())
    if direction != "rows":
        parts.append(
            diagonal_losses(logits_BB.T, place_B, None if same_text_BB is None else same_text_BB.T).sum()
        )
    return torch.stack(parts).sum() / max(B * len(parts), 1)


def diagonal_losses(logits_RB: Tensor, place_R: Tensor, same_text_RB: Tensor | None = None) -> Tensor:
    """(R,): log sum of exponentials of each row minus its own clip's logit, which stands in column `place_R`."""
    own_RB = place_R[:, None] == torch.arange(logits_RB.shape[1], device=logits_RB.device)
    if same_text_RB is not None:
        logits_RB = logits_RB.masked_fill(same_text_RB & ~own_RB, -torch.inf)
    return torch.logsumexp(logits_RB, dim=1) - logits_RB.gather(1, place_R[:, None]).squeeze(1)


def matches(left_ids_R: Tensor, right_ids_B: Tensor) -> Tensor:
    """(R, B) bool: which ids are equal."""
    return left_ids_R[:, None] == right_ids_B[None, :]
