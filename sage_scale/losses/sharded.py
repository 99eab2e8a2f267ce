"""The contrastive loss of a batch that is spread over ranks.

Rank r holds the visual tokens of its own clips, with gradient, and the frozen text tokens of the same clips. It
gathers the texts of all ranks, computes its own rows of Zv and Zt (both inner softmaxes run inside a pair, so a
row needs one video only), gathers the small rows with an exact gradient and returns its share: the terms of the rows
and columns of its own clips, divided by the clips of the whole batch. The shares sum to `clcl_loss` of the whole
batch, and the ranks' gradients to its gradient. A rank may hold no clip at all; it still joins every collective.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from sage_scale.losses.clip import clip_similarity
from sage_scale.losses.collectives import gather_counts, gather_rows, group_rank
from sage_scale.losses.contrastive import diagonal_losses, matches
from sage_scale.losses.similarity import clcl_similarity


class Objective(Protocol):
    """What the loss needs to know; `config.Clcl` is one."""

    @property
    def loss(self) -> Literal["clcl", "clip"]: ...
    @property
    def variant(self) -> Literal["paper", "released"]: ...
    @property
    def tau(self) -> float: ...
    @property
    def alpha(self) -> float: ...
    @property
    def same_text(self) -> Literal["negative", "masked"]: ...


def sharded_clcl_loss(
    visual_ND: Tensor,
    text_MD: Tensor,
    visual_lengths_B: Tensor,
    text_lengths_B: Tensor,
    scale: Tensor,
    *,
    clcl: Objective,
    text_ids_B: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """This rank's share of the loss of one level, a tensor of no dimension; in one process the whole loss.

    The packed tokens and lengths are this rank's own, `text_ids_B` (int64, equal for equal texts) is needed for
    `clcl.same_text == "masked"` only. Half precision is computed in float32.
    """
    with torch.autocast(visual_ND.device.type, enabled=False):
        if visual_ND.dtype in (torch.float16, torch.bfloat16):
            visual_ND = visual_ND.float()
        text_MD = text_MD.detach().to(visual_ND.dtype)
        B = visual_lengths_B.numel()
        longest = int(visual_lengths_B.max()) if B else 0
        every = gather_counts([B, text_MD.shape[0], longest], group, visual_ND.device)
        clips = [counts[0] for counts in every]
        all_text_MD = gather_rows(text_MD, [counts[1] for counts in every], group)
        all_text_lengths = gather_rows(text_lengths_B.to(visual_ND.device), clips, group)
        start = sum(clips[: group_rank(group)])
        place_B = torch.arange(start, start + B, device=visual_ND.device)
        same_RB = None
        if clcl.same_text == "masked":
            if text_ids_B is None:
                raise ValueError("same_text=masked needs text_ids_B")
            ids_B = text_ids_B.to(visual_ND.device)
            same_RB = matches(ids_B, gather_rows(ids_B, clips, group))

        if clcl.loss == "clip":
            Z = clip_similarity(visual_ND, all_text_MD, visual_lengths_B, all_text_lengths)
            terms = [(Z, 0.5, "rows"), (Z, 0.5, "columns")]
        else:
            padded_to = None
            if clcl.variant == "released" and any(clips):
                padded_to = (max(counts[2] for counts in every), int(all_text_lengths.max()))
            Zv, Zt = clcl_similarity(
                visual_ND, all_text_MD, visual_lengths_B, all_text_lengths, clcl.tau, clcl.variant, padded_to
            )
            if clcl.variant == "released":
                terms = [(Zv, 0.5, "rows"), (Zt, 0.5, "columns")]
            else:
                halves = ((Zv, clcl.alpha / 2), (Zt, (1 - clcl.alpha) / 2))
                terms = [(Z, weight, direction) for Z, weight in halves for direction in ("rows", "columns")]

        share = (scale * 0.0).sum() + visual_ND.sum() * 0.0  # a rank without clips stays part of the graph
        for Z_RB, weight, direction in terms:
            if direction == "rows":
                logits_RB = scale * Z_RB
            else:  # column b of the whole matrix: text b against the videos of all ranks
                logits_RB = scale * gather_rows(Z_RB, clips, group)[:, place_B].T
            share = share + weight * diagonal_losses(logits_RB, place_B, same_RB).sum()
        return share / max(sum(clips), 1)
