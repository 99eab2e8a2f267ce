"""LoRA (Hu et al. 2021): a frozen linear layer plus a trained product of two thin ones, 0 at the start.

The dropout before it is keyed like all of ours where `RowSeeds` holds numbers; else torch's generator draws.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_scale.config import Sign2Gpt
from sage_scale.nn.dropout import keyed_dropout


class RowSeeds:
    """The random numbers of the rows that LoRA pairs see, shared by all pairs that see the same rows.

    The caller of the network sets them first; they stay for a backward pass that computes it again.
    """

    def __init__(self) -> None:
        self.seeds_BL: Tensor | None = None
        """int64 (B, L), for rows (B, L, D); of a shorter input the first L are meant."""


class Lora(nn.Module):
    """scale * up(down(dropout(x))), rank `rank`; `down` is normal with deviation `std`, `up` starts at zero."""

    def __init__(
        self, width_in: int, width_out: int, settings: Sign2Gpt, std: float, seeds: RowSeeds, salt: int,
        dropout: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.down = nn.Linear(width_in, settings.lora_rank, bias=False)
        self.up = nn.Linear(settings.lora_rank, width_out, bias=False)
        self.scale = settings.lora_alpha / settings.lora_rank
        self.dropout = settings.lora_dropout if dropout else 0.0
        self._seeds, self._salt = seeds, salt
        nn.init.normal_(self.down.weight, std=std)
        nn.init.zeros_(self.up.weight)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Returns (B, L, width_out), in the type of `x_BLD` (or of the autocast that is on)."""
        kind, autocast = x_BLD.dtype, torch.is_autocast_enabled(x_BLD.device.type)
        if not autocast:  # frozen layers may be held in less precision than these
            x_BLD = x_BLD.to(self.down.weight.dtype)
        if self.training and self.dropout:
            seeds_BL = self._seeds.seeds_BL
            if seeds_BL is None:
                x_BLD = F.dropout(x_BLD, self.dropout)
            else:
                x_BLD = keyed_dropout(x_BLD, seeds_BL[:, : x_BLD.shape[1]], self.dropout, self._salt)
        added = self.up(self.down(x_BLD)) * self.scale
        return added if autocast else added.to(kind)

    @torch.no_grad()
    def product(self) -> Tensor:
        """Returns (width_out, width_in): what it adds to the frozen weight in eval mode."""
        return self.scale * (self.up.weight @ self.down.weight)


class LoraLinear(nn.Module):
    """A frozen linear layer and its pair."""

    def __init__(self, base: nn.Linear, lora: Lora) -> None:
        super().__init__()
        self.base, self.lora = base.requires_grad_(False), lora

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.base(x_BLD) + self.lora(x_BLD)
