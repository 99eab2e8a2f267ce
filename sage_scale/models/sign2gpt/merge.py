"""Adapters merged into plain models that transformers' `from_pretrained` opens.

Mergeable: a frozen weight W and its own LoRA pair are one weight, W + s B A. So the language model becomes
a plain one of its class (it writes as the adapted one does when it is shown no signs), DINOv2 a plain `Dinov2Model`,
which interpolates its positions in its own way (see `vit.PublishedPositions`).

Not mergeable: the gated cross-attention, since no causal language model of transformers has one, nor the sign encoder.
They stay beside the models as an adapter checkpoint over the *merged* ones. Cross-attention shares the projections, but
not the pair of the self-attention, which is now inside of them; a pair of twice the rank subtracts it again,

    W + s B' A' = (W + s B A) + s [B' | -B] [A' ; A]

so that both together translate exactly as before, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sage_scale.config import Recipe, to_yaml
from sage_scale.models.sign2gpt.adapters import FORMS
from sage_scale.models.sign2gpt.checkpoint import adapter_state, plain_name, save_adapters
from sage_scale.models.sign2gpt.lora import Lora, LoraLinear
from sage_scale.models.sign2gpt.model import Sign2GptTranslator
from sage_scale.models.sign2gpt.vit import AdaptedAttention, VisionTransformer
from sage_scale.nn.frame_encoder import save_encoder_config
from sage_scale.untrusted.hashes import write_hashes

LANGUAGE_MODEL, VIT = "language_model", "vit"


@torch.no_grad()
def save_merged(model: Sign2GptTranslator, tokenizer: Any, recipe: Recipe, folder: str | Path) -> Recipe:
    """Write `language_model/` (with the tokenizer), `vit/` where there is one, adapters and `recipe.yaml` to `folder`.

    Gives the recipe that opens them: its rank is twice the old one, its models are the merged ones, in float32.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    language_model = plain_model(model.decoder.language_model)
    language_model.save_pretrained(folder / LANGUAGE_MODEL)
    tokenizer.save_pretrained(folder / LANGUAGE_MODEL)
    old = recipe.model.sign2gpt
    settings = replace(
        old, lora_rank=2 * old.lora_rank, lora_alpha=2 * old.lora_alpha, language_dtype="float32"
    )
    if model.spatial is not None and isinstance(model.spatial.backbone, VisionTransformer):
        plain_model(model.spatial.backbone.dino).save_pretrained(folder / VIT)
        settings = replace(settings, vit_weights=str(folder / VIT))
    merged = replace(
        recipe, model=replace(recipe.model, language_model=str(folder / LANGUAGE_MODEL), sign2gpt=settings)
    )
    over = Sign2GptTranslator(merged, language_model)
    over.load_state_dict(_over_merged(model, over), strict=False)
    save_adapters(over, merged, folder)
    save_encoder_config(over.spatial and over.spatial.backbone, folder)
    (folder / "recipe.yaml").write_text(to_yaml(merged), encoding="utf-8")
    write_hashes(folder)
    return merged


def merge_export(model: Sign2GptTranslator, tokenizer: Any, recipe: Recipe, folder: Path) -> Iterator[str]:
    """Yields a line on each thing written, by `save_merged`."""
    save_merged(model, tokenizer, recipe, folder)
    yield f"{folder / LANGUAGE_MODEL}: a plain {type(model.decoder.language_model).__name__}"
    if (folder / VIT).is_dir():
        yield f"{folder / VIT}: a plain Dinov2Model"
    yield f"{folder / 'adapters.safetensors'}: gated cross-attention, sign encoder and projections, over these two"


def vit_beside(folder: Path) -> list[str]:
    """Returns overrides for the recipe of a merged folder, which may have been moved since: its own vision
    transformer."""
    return [f"model.sign2gpt.vit_weights={folder / VIT}"] if (folder / VIT).is_dir() else []


@torch.no_grad()
def plain_model(adapted: Any, merged: bool = True) -> Any:
    """Returns a model of transformers' class, float32, with each pair added to its weight unless `merged` is false; the
    adapted one stays."""
    state = {}
    for name, value in adapted.state_dict().items():
        plain = plain_name(name)
        if plain is not None:
            state[plain] = value.float() if value.is_floating_point() else value
    for name, product in _products(adapted) if merged else ():
        state[name] = state[name] + product.to(state[name])
    with torch.device("meta"):
        plain_one = type(adapted)(adapted.config)
    # Buffers that no file holds (positions) are made again, off the meta device.
    made = plain_one.to_empty(device="cpu").float()
    made.load_state_dict({name: value.cpu() for name, value in state.items()}, strict=False)
    fresh = dict(adapted.named_buffers())
    for name, buffer in made.named_buffers():
        buffer.copy_(fresh[name])
    made.tie_weights()
    return made.eval()


def _products(adapted: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields transformers' name of each weight that has a pair, and the product that the pair adds."""
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLinear):
            yield f"{plain_name(name)}.weight", module.lora.product()
        elif isinstance(module, AdaptedAttention):
            for part, product in zip("qkv", module.qkv_lora.product().chunk(3)):
                yield f"{name}.{part}_proj.weight", product


def _over_merged(model: Sign2GptTranslator, over: Sign2GptTranslator) -> dict[str, Tensor]:
    """Returns the tensors of `over`, the same model over merged weights: pairs of self-attention and DINOv2 are zero,
    those of cross-attention of twice the rank."""
    old = adapter_state(model)
    state = {}
    for name, value in adapter_state(over).items():
        if name.endswith((".down.weight", ".up.weight")):
            state[name] = torch.zeros_like(value)
        else:
            state[name] = old[name].to(value)
    form = FORMS[model.decoder.language_model.config.model_type]
    path = f"decoder.language_model.{form.layers}"
    for number, layer in enumerate(model.get_submodule(path).children()):
        attention = getattr(layer, form.attention)
        cross = getattr(attention, form.output).cross
        inputs = [getattr(attention, name).lora for name in form.inputs]
        for index, kind in enumerate(("query", "key", "value")):
            own: Lora = inputs[index] if len(inputs) == 3 else inputs[0]
            rows = cross.part(torch.arange(own.up.out_features), index)
            pair: Lora = getattr(cross, kind)
            stem = f"{path}.{number}.{form.attention}.{form.output}.cross.{kind}"
            state[f"{stem}.down.weight"] = torch.cat([pair.down.weight, own.down.weight])
            state[f"{stem}.up.weight"] = torch.cat([pair.up.weight, -own.up.weight[rows]], dim=1)
    return state
