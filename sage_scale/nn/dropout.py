"""Dropout that is a function of (seed, epoch, sample): no rank layout, no recomputation changes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import MBartForConditionalGeneration

from sage_scale.vision.packed import mix

_ODD = -4658895280553007687  # 0xBF58476D1CE4E5B9, of SplitMix64, as a signed integer

VALUES_AT_ONCE = (1 << 15, 1 << 24)
"""Hashed together on a CPU, where they stay in its cache, and on a GPU."""


def token_seeds(clip_seeds_B: Tensor | None, clip_segments_B: Tensor) -> Tensor | None:
    """Returns int64 (N,): a seed for each token, from its clip's seed and its position in the clip; None without."""
    if clip_seeds_B is None:
        return None
    starts_B = clip_segments_B.cumsum(0) - clip_segments_B
    clip_N = torch.repeat_interleave(clip_segments_B)
    position_N = torch.arange(clip_N.numel(), device=clip_N.device) - starts_B[clip_N]
    return mix(clip_seeds_B[clip_N], position_N)


def keyed_dropout(x_ND: Tensor, seeds_N: Tensor | None, p: float, salt: int, training: bool = True) -> Tensor:
    """Returns the values, each 0 with probability `p`, else divided by 1 - p; a row's pattern follows from its seed and
    `salt`.

    Any number of dimensions may stand for N. Outside training, or with p = 0, the input itself. Raises ValueError in
    training without seeds.
    """
    if not training or p == 0:
        return x_ND
    if seeds_N is None:
        raise ValueError("dropout in training needs PackedVideo.clip_seeds_B, the clips' random numbers")
    # Rows and columns are hashed in full, their sums in one round: the work is per value, and costs memory passes.
    width = x_ND.shape[-1]
    columns_D = mix(torch.arange(width, device=x_ND.device), salt)
    rows_N1 = mix(seeds_N, salt).reshape(-1, 1)
    keep_ND = torch.empty(x_ND.shape, dtype=x_ND.dtype, device=x_ND.device)
    flat_ND = keep_ND.view(-1, width)
    # Some rows at a time: 17 bytes a value would be more than all that the layer keeps of it.
    step = max(1, VALUES_AT_ONCE[x_ND.device.type == "cuda"] // max(width, 1))
    for begin in range(0, len(rows_N1), step):
        bits_RD = rows_N1[begin : begin + step] + columns_D
        bits_RD ^= bits_RD >> 32
        bits_RD *= _ODD
        flat_ND[begin : begin + step] = bits_RD >= round(p * 2**64) - 2**63
    return x_ND * keep_ND.div_(1 - p)


def switch_off_dropout(model: nn.Module) -> None:
    """Set all rates of dropout and stochastic depth to 0, in modules and in the numbers that transformers' layers
    keep."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in (
            "dropout",
            "attention_dropout",
            "activation_dropout",
            "layerdrop",
            "dropout_prob",
            "drop_prob",
        ):
            if isinstance(getattr(module, name, None), int | float):
                setattr(module, name, 0.0)


class LanguageModelDropout:
    """mBART's own dropout, keyed: where and at the rate that transformers' modules have it, whose own is switched off.

    Weights and configuration stay as they are, and so does dropout of attention weights, which mBART has none of. After
    `set_keys`, a value's fate follows from its clip's number, layer, position and column.
    """

    def __init__(self, language_model: MBartForConditionalGeneration) -> None:
        self.p = float(language_model.config.dropout)
        self._seeds: dict[str, Tensor] = {}
        salt = 10_000
        for side, stack in (
            ("encoder", language_model.model.encoder),
            ("decoder", language_model.model.decoder),
        ):
            for module in (stack, *stack.layers):
                module.dropout = 0.0
            # Each of these stands right before a dropout of MBartEncoder, MBartDecoder or their layers.
            for name, module in stack.named_modules():
                if name.endswith(("layernorm_embedding", "attn.out_proj", "fc2")):
                    module.register_forward_hook(self._hook(side, salt))
                    salt += 1

    @classmethod
    def of(cls, language_model: MBartForConditionalGeneration) -> LanguageModelDropout:
        """Returns the one of this model, made at the first call."""
        holder: Any = language_model
        if not hasattr(holder, "keyed_dropout"):
            holder.keyed_dropout = cls(language_model)
        return holder.keyed_dropout

    def set_keys(self, clip_seeds_B: Tensor | None, encoder: int, decoder: int) -> None:
        """Let the clips' seeds decide from now on, over these numbers of positions; None: torch's generator does.

        They stay after the forward pass, for a backward pass that recomputes it.
        """
        self._seeds = {}
        if clip_seeds_B is not None:
            for number, (side, length) in enumerate((("encoder", encoder), ("decoder", decoder)), start=1):
                position_L = torch.arange(length, device=clip_seeds_B.device)
                self._seeds[side] = mix(mix(clip_seeds_B, number)[:, None], position_L)

    def _hook(self, side: str, salt: int) -> Any:
        def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if side in self._seeds:
                return keyed_dropout(output, self._seeds[side], self.p, salt, module.training)
            return nn.functional.dropout(output, self.p, module.training)

        return drop
