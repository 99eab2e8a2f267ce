"""The contrastive loss of a level, as the model asks for it: a batch that is spread over ranks, any of the losses.

Rank r holds the visual tokens of its own clips and the text tokens of the same clips, and returns its share: the terms
of the rows and columns of its own clips, divided by the clips of the whole batch. The shares sum to `clcl_loss` of the
whole batch, and the ranks' gradients to its gradient. A rank may hold no clip at all; it still joins every exchange.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from sage_scale.errors import RecipeError
from sage_scale.losses.clcl import Variant, clcl_loss, reference_similarity
from sage_scale.losses.clcl_ring import Batch, Weights, ring_loss
from sage_scale.losses.clcl_tile import Softmax
from sage_scale.losses.clip import mean_tokens
from sage_scale.losses.collectives import gather_counts, gather_rows
from sage_scale.losses.products import Precision
from sage_scale.losses.similarity import Implementation, chosen_implementation, tile_maker


class Objective(Protocol):
    """What the loss needs to know; `config.Clcl` is one."""

    @property
    def loss(self) -> Literal["clcl", "clip", "maxsim"]: ...
    @property
    def variant(self) -> Variant: ...
    @property
    def tau(self) -> float: ...
    @property
    def alpha(self) -> float: ...
    @property
    def same_text(self) -> Literal["negative", "masked"]: ...
    @property
    def implementation(self) -> Implementation: ...
    @property
    def products(self) -> Precision: ...


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

    The packed tokens and lengths are this rank's own; text tokens get a gradient where they want one. `text_ids_B`
    (int64, equal for equal texts) is needed for `clcl.same_text == "masked"` only. Half precision is computed in
    float32. Raises ValueError where lengths do not fit the tokens, RecipeError where the implementation cannot be had.
    """
    device = visual_ND.device
    every = gather_counts(
        [visual_lengths_B.numel(), int(visual_ND.requires_grad), int(text_MD.requires_grad)], group, device
    )
    clips = [counts[0] for counts in every]
    text_ids = None
    if clcl.same_text == "masked":
        if text_ids_B is None:
            raise ValueError("same_text=masked needs text_ids_B")
        text_ids = list(gather_rows(text_ids_B.to(device), clips, group).split(clips))
    if clcl.loss == "clip":
        visual_ND, text_MD = mean_tokens(visual_ND, visual_lengths_B), mean_tokens(text_MD, text_lengths_B)
        visual_lengths_B = text_lengths_B = torch.ones_like(visual_lengths_B)
    visual_lengths, text_lengths = (
        [part.tolist() for part in gather_rows(lengths_B.to(device), clips, group).split(clips)]
        for lengths_B in (visual_lengths_B, text_lengths_B)
    )
    variant: Variant = "paper" if clcl.loss == "clip" else clcl.variant
    tau = 0.0 if clcl.loss == "maxsim" else clcl.tau
    chosen = chosen_implementation(device, clcl.implementation)
    if chosen == "reference":
        if len(clips) > 1:
            raise RecipeError("clcl.implementation=reference is for one process: take auto")
        Z = reference_similarity(visual_ND, text_MD, visual_lengths_B, text_lengths_B, tau)
        return clcl_loss(*Z, scale, clcl.alpha, variant, text_ids_B, clcl.same_text)
    batch = Batch(
        visual_lengths,
        text_lengths,
        text_ids,
        (any(counts[1] for counts in every), any(counts[2] for counts in every)),
        group,
    )
    return ring_loss(
        visual_ND,
        text_MD,
        scale,
        batch,
        weights_of(variant, clcl.alpha),
        Softmax(tau),
        clcl.products,
        tile_maker(chosen),
    )


def weights_of(variant: Variant, alpha: float) -> Weights:
    """Returns the weights of equation 4, or the released code's rows of Zv and columns of Zt."""
    if variant == "one_direction":
        return Weights(rows=(0.5, 0.0), columns=(0.0, 0.5))
    halves = (alpha / 2, (1 - alpha) / 2)
    return Weights(rows=halves, columns=halves)
