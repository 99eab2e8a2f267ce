"""The vision-to-language mapper: visual tokens into the language model's embedding space (SAGE, section 3.1.4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sage_scale.config import Model
from sage_scale.nn.batchnorm import BatchNorm
from sage_scale.nn.dropout import keyed_dropout


class Mapper(nn.Module):
    """`mapper_blocks` times normalisation, Linear, GELU, dropout; (N, token_dim) to (N, d_model).

    The released code's last block is the Linear alone (`mapper_last=linear`).
    """

    def __init__(self, model: Model, d_model: int) -> None:
        super().__init__()
        self.dropout = model.dropout
        self.last_linear = model.mapper_last == "linear"
        widths = [model.token_dim] + [d_model] * (model.mapper_blocks - 1)
        self.linears = nn.ModuleList(nn.Linear(width, d_model) for width in widths)
        normed = widths[:-1] if self.last_linear else widths
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) if model.mapper_norm == "layer" else BatchNorm(width, model.batchnorm)
            for width in normed
        )

    def forward(self, x_ND: Tensor, seeds_N: Tensor | None = None) -> Tensor:
        """`seeds_N` (int64), one a token, decide the dropout; needed in training where `dropout` is not 0."""
        for block, linear in enumerate(self.linears):
            if self.last_linear and block == len(self.linears) - 1:
                return linear(x_ND)
            x_ND = F.gelu(linear(self.norms[block](x_ND)))
            x_ND = keyed_dropout(x_ND, seeds_N, self.dropout, salt=block, training=self.training)
        return x_ND
