"""Prototype pretraining: head, scores and loss (Sign2GPT, section 3.3, Figure 3, equations 2 to 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_scale.config import Prototypes
from sage_scale.errors import CheckpointError
from sage_scale.nn.dropout import keyed_dropout, token_seeds

_SALT = 50_000
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


class PrototypeHead(nn.Module):
    """Dropout, Linear to the width of the word vectors, and their comparison with the frozen prototypes."""

    def __init__(self, width: int, settings: Prototypes, prototypes_UD: Tensor) -> None:
        """`prototypes_UD` are word vectors, one a pseudo-gloss (text.prototype_vocabulary). Raises CheckpointError
        where their width is not `prototypes.dim`."""
        super().__init__()
        if prototypes_UD.ndim != 2 or prototypes_UD.shape[1] != settings.dim:
            raise CheckpointError(
                f"the prototypes are of width {prototypes_UD.shape[-1]}, but prototypes.dim={settings.dim}: set it so"
            )
        self.settings = settings
        self.project = nn.Linear(width, settings.dim)
        # Of shape (1,): a parameter of no dimension crashes DeepSpeed over gloo.
        self.tau_time = nn.Parameter(torch.tensor([settings.tau_time]))
        self.tau_class = nn.Parameter(torch.tensor([settings.tau_class]))
        # The released code clamps in the forward pass alone, where a temperature beyond its bounds has no gradient.
        self.bounds = dict.fromkeys(("tau_time", "tau_class"), (settings.tau_min, settings.tau_max))
        self.prototypes_UD: Tensor
        self.register_buffer("prototypes_UD", prototypes_UD)

    def forward(
        self, tokens_ND: Tensor, lengths_B: Tensor, clip_seeds_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns localisation (N, U) and presence (B, U) of every prototype; `clip_seeds_B` decide the dropout, and
        are needed in training. A tuple: ZeRO-3 finds no tensors in other things, and then loses the temperatures'
        gradients."""
        seeds_N = token_seeds(clip_seeds_B, lengths_B)
        dropped_ND = keyed_dropout(tokens_ND, seeds_N, self.settings.dropout, _SALT, self.training)
        low, high = self.settings.tau_min, self.settings.tau_max
        scores = prototype_scores(
            self.project(dropped_ND), lengths_B, self.prototypes_UD,
            self.tau_time.clamp(low, high), self.tau_class.clamp(low, high),
        )  # fmt: skip
        return scores.localisation_NU, scores.presence_BU
