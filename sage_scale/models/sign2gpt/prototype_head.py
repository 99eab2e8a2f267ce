"""The head of prototype pretraining: sign features against word vectors (Sign2GPT, section 3.3, Figure 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sage_scale.config import Prototypes
from sage_scale.errors import CheckpointError
from sage_scale.losses.prototypes import prototype_scores
from sage_scale.nn.dropout import keyed_dropout, token_seeds

_SALT = 50_000


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
        """Localisation (N, U) and presence (B, U) of every prototype; `clip_seeds_B` decide the dropout, and are
        needed in training. A tuple: ZeRO-3 finds no tensors in other things, and then loses the temperatures'
        gradients."""
        seeds_N = None if clip_seeds_B is None else token_seeds(clip_seeds_B, lengths_B)
        dropped_ND = keyed_dropout(tokens_ND, seeds_N, self.settings.dropout, _SALT, self.training)
        low, high = self.settings.tau_min, self.settings.tau_max
        scores = prototype_scores(
            self.project(dropped_ND), lengths_B, self.prototypes_UD,
            self.tau_time.clamp(low, high), self.tau_class.clamp(low, high),
        )  # fmt: skip
        return scores.localisation_NU, scores.presence_BU
