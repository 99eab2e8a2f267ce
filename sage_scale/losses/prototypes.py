"""Prototype pretraining: which pseudo-glosses occur in a clip, and where (Sign2GPT, section 3.3, equations 2 to 5).

Shape letters: B clips, N sign features of all clips, packed, D width, U prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-8
"""Presences are clamped to at least this (released code)."""


@dataclass(frozen=True)
class PrototypeScores:
    """Scores of every prototype for the features of a batch of clips."""

    localisation_NU: Tensor
    """E, each in [0, 1]: the product of both softmaxes; the zero class is left out."""
    presence_BU: Tensor
    """E summed over a clip's features (equation 5), in [0, 1]."""


def prototype_scores(
    features_ND: Tensor, lengths_B: Tensor, prototypes_UD: Tensor, tau_time: Tensor | float, tau_class: Tensor | float
) -> PrototypeScores:  # fmt: skip
    """Returns the scores of equations 2 to 5 from packed features (N, D), `lengths_B` rows (at least 1) per clip.

    A zero class, whose cosine with anything is 0, takes part in the softmax over classes; it stands for the
    video between signs. The softmax over time is each clip's own, so no other clip and no padding is in it.
    """
    with torch.autocast(features_ND.device.type, enabled=False):
        kind = torch.promote_types(features_ND.dtype, torch.float32)
        unit_ND, unit_UD = (
            F.normalize(features_ND.to(kind), dim=1),
            F.normalize(prototypes_UD.to(kind), dim=1),
        )
        cosine_NU = unit_ND @ unit_UD.T
        # The zero class's logit is 0, whatever the temperature.
        class_NU = F.pad(cosine_NU / tau_class, (0, 1)).softmax(dim=1)[:, :-1]
        localisation_NU = class_NU * _softmax_over_time(cosine_NU / tau_time, lengths_B)
        clip_N = torch.repeat_interleave(lengths_B)
        presence_BU = localisation_NU.new_zeros(lengths_B.numel(), unit_UD.shape[0])
        return PrototypeScores(localisation_NU, presence_BU.index_add(0, clip_N, localisation_NU))


def prototype_loss(presence_BU: Tensor, classes_G: Tensor, counts_B: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the binary cross-entropy of the presences summed over B x U, and B x U (int64); the loss is their ratio.

    Clip b holds `counts_B[b]` of the pseudo-glosses `classes_G` (int64, packed); repeats count once.
    """
    clip_G = torch.repeat_interleave(counts_B)
    wanted_BU = torch.zeros_like(presence_BU).index_put_((clip_G, classes_G), presence_BU.new_ones(()))
    with torch.autocast(presence_BU.device.type, enabled=False):
        largest = 1 - max(SMALLEST, torch.finfo(presence_BU.dtype).eps / 2)
        clamped_BU = presence_BU.clamp(SMALLEST, largest)
        loss = F.binary_cross_entropy(clamped_BU, wanted_BU, reduction="sum")
    return loss, torch.tensor(presence_BU.numel(), device=presence_BU.device)


def _softmax_over_time(logits_NU: Tensor, lengths_B: Tensor) -> Tensor:
    """Returns the softmax over the rows of each clip."""
    clip_N = torch.repeat_interleave(lengths_B)
    sums_BU = logits_NU.new_zeros(lengths_B.numel(), logits_NU.shape[1])
    with torch.no_grad():
        index_NU = clip_N[:, None].expand_as(logits_NU)
        largest_BU = sums_BU.scatter_reduce(0, index_NU, logits_NU, "amax", include_self=False)
    exponent_NU = (logits_NU - largest_BU[clip_N]).exp()
    return exponent_NU / sums_BU.index_add(0, clip_N, exponent_NU)[clip_N]
