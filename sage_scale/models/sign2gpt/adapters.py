"""Zero-gated cross-attention and LoRA in a frozen causal language model (Sign2GPT, section 3.1, equation 1, Figure 2).

Each self-attention of the model gets a second one, over the sign features: the same frozen projections and the same
norm, with LoRA pairs of its own and a gate for each head. Its output is added before the output projection, which
the two share:

    out(self-attention(x) + g * softmax(q(x) k(norm(s))^T / sqrt(d)) v(norm(s)))

transformers' own attention stays as it is, with its positions, masks and key-value cache: only its linear layers are
replaced. So one class adapts every model whose attention has such layers (`FORMS`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from sage_scale.config import Sign2Gpt
from sage_scale.errors import CheckpointError
from sage_scale.models.sign2gpt.lora import Lora, LoraLinear, RowSeeds
from sage_scale.nn.dropout import switch_off_dropout

LORA_STD = 0.2
"""Deviation of the pairs' first matrix in the language model (released code)."""
_SALT = 40_000


@dataclass(frozen=True)
class Form:
    """Names of the adapted parts in a family of transformers' models."""

    layers: str
    """Path from the model to its list of layers."""
    attention: str
    """Name of a layer's self-attention."""
    norm: str
    """Name of the norm in front of it."""
    inputs: tuple[str, ...]
    """Names of query, key and value projection, or of the one that joins them head by head."""
    output: str
    """Name of the output projection."""


FORMS = {
    "xglm": Form(
        "model.layers", "self_attn", "self_attn_layer_norm", ("q_proj", "k_proj", "v_proj"), "out_proj"
    ),
    "gpt_neox": Form("gpt_neox.layers", "attention", "input_layernorm", ("query_key_value",), "dense"),
}
"""By `model_type` of the configuration."""
for _family in ("qwen2", "llama", "mistral"):
    FORMS[_family] = Form(
        "model.layers", "self_attn", "input_layernorm", ("q_proj", "k_proj", "v_proj"), "o_proj"
    )


class SignMemory:
    """The sign features that a language model's layers attend to; the decoder sets them before each pass.

    They stay until the next pass, for a backward pass that computes layers again.
    """

    def __init__(self) -> None:
        self.features_BSD: Tensor | None = None
        """(B, S, hidden); None: the model is the plain frozen one with LoRA."""
        self.mask_BS: Tensor | None = None
        """bool, true on real tokens."""
        self.kept: dict[int, tuple[Tensor, Tensor]] | None = None
        """In generation: each layer's keys and values of the sign features, made at its first step."""
        self.text, self.signs = RowSeeds(), RowSeeds()

    def set_features(self, features_BSD: Tensor, mask_BS: Tensor, keep: bool = False) -> None:
        """Set the features; with `keep`, keys and values are made once, however often layers are passed."""
        self.features_BSD, self.mask_BS, self.kept = features_BSD, mask_BS, {} if keep else None

    def clear(self) -> None:
        """Remove the features."""
        self.features_BSD = self.mask_BS = self.kept = None


class _ThroughClamp(torch.autograd.Function):
    """Clamped to [0, 1]; the gradient passes unchanged, so that a gate pushed below 0 may come back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].clone()


class InputProjection(LoraLinear):
    """A self-attention's projection of queries, which keeps what went in and the frozen part of what came out for the
    cross-attention of the same pass: the frozen product is computed once."""

    def __init__(self, base: nn.Linear, lora: Lora, memory: SignMemory) -> None:
        super().__init__(base, lora)
        self._memory = memory
        self.seen: tuple[Tensor, Tensor] | None = None

    def forward(self, x_BLD: Tensor) -> Tensor:
        given_BLD = self.base(x_BLD)
        self.seen = (x_BLD, given_BLD) if self._memory.features_BSD is not None else None
        return given_BLD + self.lora(x_BLD)


class OutputProjection(LoraLinear):
    """The output projection that self- and cross-attention share."""

    def __init__(self, base: nn.Linear, lora: Lora, cross: GatedCrossAttention) -> None:
        super().__init__(base, lora)
        self.cross = cross

    def forward(self, x_BLD: Tensor) -> Tensor:
        added_BLD = self.cross()
        return super().forward(x_BLD if added_BLD is None else x_BLD + added_BLD.to(x_BLD.dtype))


class GatedCrossAttention(nn.Module):
    """Text looks at signs through the self-attention's frozen projections (equation 1)."""

    def __init__(
        self, attention: Any, norm: nn.Module, form: Form, config: Any, settings: Sign2Gpt, memory: SignMemory,
        layer: int,
    ) -> None:  # fmt: skip
        super().__init__()
        heads = config.num_attention_heads
        self.head = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.groups = heads // (getattr(config, "num_key_value_heads", None) or heads)
        self.layer = layer
        width, kv_width = config.hidden_size, heads * self.head // self.groups
        salt = _SALT + 10 * layer
        self.query = Lora(width, heads * self.head, settings, LORA_STD, memory.text, salt + 4)
        self.key = Lora(width, kv_width, settings, LORA_STD, memory.signs, salt + 5)
        self.value = Lora(width, kv_width, settings, LORA_STD, memory.signs, salt + 6)
        self.gate = nn.Parameter(torch.zeros(heads))
        # Not registered a second time: they are the self-attention's and the layer's own.
        self._shared: tuple[Any, nn.Module, Form] = (attention, norm, form)
        self._memory = memory

    def forward(self) -> Tensor | None:
        """Returns (B, L, heads * head) for the pass that the input projections have just seen; None without signs."""
        attention, _, form = self._shared
        first = getattr(attention, form.inputs[0])
        if self._memory.features_BSD is None or first.seen is None:
            return None
        (x_BLD, given_BLD), first.seen = first.seen, None
        query = self.part(given_BLD, 0) + self.query(x_BLD)
        keys, values = self._keys_and_values()
        mask_BS = self._memory.mask_BS
        assert mask_BS is not None
        clips, rows, length = keys.shape[0], query.shape[0], query.shape[1]
        # The beams of a clip stand next to each other: as more queries of one clip they share its keys.
        q = query.unflatten(-1, (-1, self.head)).unflatten(0, (clips, -1)).flatten(1, 2).transpose(1, 2)
        context = F.scaled_dot_product_attention(q.to(keys.dtype), keys, values, mask_BS[:, None, None, :])
        context = context * _ThroughClamp.apply(self.gate)[:, None, None].to(context.dtype)
        return context.transpose(1, 2).reshape(rows, length, -1)

    def _keys_and_values(self) -> tuple[Tensor, Tensor]:
        memory = self._memory
        if memory.kept is not None and self.layer in memory.kept:
            return memory.kept[self.layer]
        assert memory.features_BSD is not None
        attention, norm, form = self._shared
        signs_BSD = norm(memory.features_BSD)
        given = [getattr(attention, name).base(signs_BSD) for name in form.inputs[-2:]]
        made = []
        for index, lora in ((1, self.key), (2, self.value)):
            x_BSD = self.part(given[index - 1 if len(given) == 2 else 0], index) + lora(signs_BSD)
            x_BSHD = x_BSD.unflatten(-1, (-1, self.head))
            made.append(x_BSHD.repeat_interleave(self.groups, dim=2).transpose(1, 2))
        if memory.kept is not None:
            memory.kept[self.layer] = (made[0], made[1])
        return made[0], made[1]

    def part(self, given_BLD: Tensor, index: int) -> Tensor:
        """Returns the queries (0), keys (1) or values (2) of a projection's output: all of it, unless it joins the
        three."""
        if len(self._shared[2].inputs) == 3:
            return given_BLD
        return given_BLD.unflatten(-1, (-1, 3, self.head))[..., index, :].flatten(-2)


def adapt(language_model: PreTrainedModel, settings: Sign2Gpt, dropout: bool) -> SignMemory:
    """Freeze the model and put adapters into all its layers, in place; returns the memory of the sign features.

    Its own dropout is switched off unless `dropout`. Raises CheckpointError for a family that FORMS does not know.
    """
    config: Any = language_model.config
    form = FORMS.get(config.model_type)
    if form is None:
        raise CheckpointError(
            f"no adapters for a language model of type '{config.model_type}': known are {', '.join(sorted(FORMS))}"
        )
    language_model.requires_grad_(False)
    if not dropout:
        switch_off_dropout(language_model)
    memory = SignMemory()
    for number, layer in enumerate(language_model.get_submodule(form.layers).children()):
        attention: Any = getattr(layer, form.attention)
        salt = _SALT + 10 * number
        cross = GatedCrossAttention(
            attention, getattr(layer, form.norm), form, config, settings, memory, number
        )
        pair = _pairs(settings, memory)
        for index, name in enumerate(form.inputs):
            base = getattr(attention, name)
            given = pair(base, salt + index, True)
            adapted = LoraLinear(base, given) if index else InputProjection(base, given, memory)
            setattr(attention, name, adapted)
        base = getattr(attention, form.output)
        setattr(attention, form.output, OutputProjection(base, pair(base, salt + 3, False), cross))
    return memory


def train_along(language_model: PreTrainedModel, lr_scale: float) -> None:
    """Train an adapted model's own weights, too, with `lr_scale` times the learning rate of the adapters."""
    language_model.requires_grad_(True)
    ours = {part for module in language_model.modules() if isinstance(module, Lora | GatedCrossAttention)
            for part in module.modules()}  # fmt: skip
    module: Any
    for module in language_model.modules():
        if module not in ours:
            module.lr_scale = lr_scale


def _pairs(settings: Sign2Gpt, memory: SignMemory) -> Callable[[nn.Linear, int, bool], Lora]:
    def pair(base: nn.Linear, salt: int, dropout: bool) -> Lora:
        return Lora(
            base.in_features, base.out_features, settings, LORA_STD, memory.text, salt, dropout=dropout
        )

    return pair
