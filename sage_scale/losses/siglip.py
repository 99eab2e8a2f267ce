"""SigLIP's pairwise sigmoid loss (Zhai et al. 2023, section 3.2, Algorithm 1), over pooled or token-level similarities.

For B clips, with z = 1 for a clip's own text and -1 for any other, and the trained scale t = exp(t') and bias b,

    loss = -1/B sum_a sum_b log sigmoid(z[a,b] (t Z[a,b] + b))

Each pair is a binary decision of its own: no softmax over the batch. t' starts at log 10 and b at -10, so that the many
negatives of the first steps weigh little. The published model compares one vector a side (`siglip`); `siglip_tokens`
takes CLCL's two similarities, weighted by `clcl.alpha`. Here t is clamped to `clcl.scale_max`, there it is not.
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from sage_scale.losses.clcl import matches
from sage_scale.losses.objectives import OBJECTIVES, Clcl, Clip
from sage_scale.losses.pair_losses import PairLoss, PairwiseSigmoid

SCALE_START, BIAS_START = 10.0, -10.0
CLIP_START = 1 / 0.07
"""Default of `clcl.scale_init`; any other value is the start of SigLIP's scale, too."""


def sigmoid_loss(logits_BB: Tensor, same_text_BB: Tensor | None = None) -> Tensor:
    """Returns the sum over all pairs of -log sigmoid(z logits), divided by B; 0 without clips.

    `same_text_BB` (bool) marks pairs of equal texts: off the diagonal they have no term.
    """
    B = logits_BB.shape[0]
    own_BB = logits_BB.new_zeros(logits_BB.shape).fill_diagonal_(1)
    terms_BB = -F.logsigmoid((2 * own_BB - 1) * logits_BB)
    if same_text_BB is not None:
        terms_BB = terms_BB.masked_fill(same_text_BB & (own_BB == 0), 0)
    return terms_BB.sum() / max(B, 1)


class SiglipTokens(Clcl):
    """The sigmoid loss over CLCL's similarities Zv and Zt."""

    name = "siglip_tokens"
    bias_start: ClassVar[float | None] = BIAS_START

    @property
    def scale_start(self) -> float:
        return SCALE_START if self.settings.scale_init == CLIP_START else self.settings.scale_init

    def loss(
        self,
        Zv_BB: Tensor,
        Zt_BB: Tensor,
        scale: Tensor | float,
        text_ids_B: Tensor | None = None,
        bias: Tensor | float | None = None,
    ) -> Tensor:
        """Returns `sigmoid_loss` of alpha Zv + (1 - alpha) Zt, each with its own terms."""
        masked = self.settings.same_text == "masked" and text_ids_B is not None
        same_BB = matches(text_ids_B, text_ids_B) if masked and text_ids_B is not None else None
        shift = BIAS_START if bias is None else bias
        alpha = self.settings.alpha
        return alpha * sigmoid_loss(scale * Zv_BB + shift, same_BB) + (1 - alpha) * sigmoid_loss(
            scale * Zt_BB + shift, same_BB
        )

    def pair_loss(self) -> PairLoss:
        return PairwiseSigmoid((self.settings.alpha, 1 - self.settings.alpha))


class Siglip(SiglipTokens, Clip):
    """The sigmoid loss of one vector a clip, the mean of its tokens."""

    name = "siglip"


OBJECTIVES |= {kind.name: kind for kind in (Siglip, SiglipTokens)}
