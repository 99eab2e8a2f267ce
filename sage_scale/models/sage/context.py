"""The context encoder of stage 1: mBART encoder layers over the mapped tokens (SAGE, section 3.1.3 and Table 5).

Weights and names are those of transformers' MBartEncoder (without its token embeddings), so that they may come from a
language model and go back into one. Dropout is where mBART has it, except on attention weights, and is keyed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import MBartConfig, MBartForConditionalGeneration
from transformers.models.mbart.modeling_mbart import MBartEncoderLayer, MBartLearnedPositionalEmbedding

from sage_scale.losses.tokens import pad_packed
from sage_scale.nn.dropout import keyed_dropout

_SALT = 1000  # apart from the mapper's


class ContextEncoder(nn.Module):
    """Packed tokens (N, d_model) to packed hidden states (N, d_model); attention stays inside a clip."""

    def __init__(self, config: MBartConfig, layers: int, dropout: float) -> None:
        super().__init__()
        config = copy.deepcopy(config)
        config.attention_dropout = 0.0
        config._attn_implementation = "sdpa"
        self.dropout = dropout
        self.recompute = False
        """Keep only the layers' inputs and compute the layers again in the backward pass."""
        self.longest = config.max_position_embeddings
        self.embed_positions = MBartLearnedPositionalEmbedding(config.max_position_embeddings, config.d_model)
        self.layernorm_embedding = nn.LayerNorm(config.d_model)
        self.layers = nn.ModuleList(MBartEncoderLayer(config) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(config.d_model)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.init_std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def copy_from(self, language_model: MBartForConditionalGeneration) -> None:
        """Copy positions, norms and the first layers of the language model's encoder."""
        wanted = set(self.state_dict())
        state = language_model.model.encoder.state_dict()
        self.load_state_dict({name: value for name, value in state.items() if name in wanted})

    def forward(self, x_ND: Tensor, lengths_B: Tensor, seeds_N: Tensor | None = None) -> Tensor:
        """Raises ValueError for a clip with more tokens than the language model has positions."""
        mask_BL = position_mask(lengths_B, self.longest)
        position_N = mask_BL.nonzero()[:, 1]
        x_ND = x_ND + self.embed_positions(position_N, position_ids=position_N)[0]
        x_ND = self._drop(self.layernorm_embedding(x_ND), seeds_N, 0)
        for number in range(1, len(self.layers) + 1):
            given = (number, x_ND, lengths_B, mask_BL, seeds_N)
            if self.recompute and self.training and torch.is_grad_enabled():
                # Dropout is keyed, so nothing random happens; under ZeRO-3 what is saved differs between the passes.
                x_ND = checkpoint(
                    self._layer,
                    *given,
                    use_reentrant=False,
                    preserve_rng_state=False,
                    determinism_check="none",
                )
            else:
                x_ND = self._layer(*given)
        return self.layer_norm(x_ND)

    def _layer(
        self, number: int, x_ND: Tensor, lengths_B: Tensor, mask_BL: Tensor, seeds_N: Tensor | None
    ) -> Tensor:
        layer: Any = self.layers[number - 1]
        attended_ND = self._attend(layer, layer.self_attn_layer_norm(x_ND), lengths_B, mask_BL)
        x_ND = x_ND + self._drop(attended_ND, seeds_N, 2 * number)
        fed_ND = layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(x_ND))))
        return x_ND + self._drop(fed_ND, seeds_N, 2 * number + 1)

    def _drop(self, x_ND: Tensor, seeds_N: Tensor | None, salt: int) -> Tensor:
        return keyed_dropout(x_ND, seeds_N, self.dropout, _SALT + salt, self.training)

    def _attend(self, layer: MBartEncoderLayer, x_ND: Tensor, lengths_B: Tensor, mask_BL: Tensor) -> Tensor:
        if not lengths_B.numel():
            # A rank without clips: one token of zeros, made of the input, so that every weight has a gradient and the
            # backward pass goes through the modules in the other ranks' order, which ZeRO-2 and 3 count on.
            return layer.self_attn(x_ND.sum(0).expand(1, 1, -1))[0][0, :0]
        padded_BLD, _ = pad_packed(x_ND, lengths_B, mask_BL.shape[1])
        attended_BLD, _ = layer.self_attn(padded_BLD, attention_mask=mask_BL[:, None, None, :])
        return attended_BLD[mask_BL]


def position_mask(lengths_B: Tensor, longest: int) -> Tensor:
    """Returns a bool mask (B, L), true on tokens. Raises ValueError where a clip has more than `longest` of them."""
    width = int(lengths_B.max()) if lengths_B.numel() else 0
    if width > longest:
        raise ValueError(f"a clip has {width} visual tokens, the language model only {longest} positions")
    return torch.arange(width, device=lengths_B.device) < lengths_B[:, None]
