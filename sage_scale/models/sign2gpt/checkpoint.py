"""Adapter checkpoints: all of a Sign2GPT but the frozen models below it, which are named with a hash.

    adapters.safetensors    LoRA pairs, gates, projections, sign encoder, norms and their statistics, float32
    adapters.json           format, what the frozen models are called and their hashes, parameters

The paper's decoder is 1.7 billion parameters, of which 3.8 million are stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sage_scale.config import Recipe
from sage_scale.errors import CheckpointError
from sage_scale.models.sign2gpt.model import SignFeatures
from sage_scale.nn.frame_encoder import save_encoder_config
from sage_scale.nn.weights import read_weights, write_weights
from sage_scale.training.export import save_tensors
from sage_scale.untrusted.files import read_bytes
from sage_scale.untrusted.json_values import parse_json

TENSORS, DESCRIPTION = "adapters.safetensors", "adapters.json"
FORMAT = 1
_TRAINED = ("lora", "cross")
"""Parts of a frozen model's names that are ours."""
VIT = "spatial.backbone.dino."
"""Names of the vision transformer, frozen but for its adapters."""


def frozen_models(model: nn.Module) -> dict[str, str]:
    """Returns the prefix of each frozen model's names in `model`, by the recipe's name of it."""
    prefixes = {"language_model": "decoder.language_model.", "vit_weights": VIT}
    names = [name for name, _ in model.named_parameters()]
    return {key: prefix for key, prefix in prefixes.items() if any(name.startswith(prefix) for name in names)}


def plain_name(name: str) -> str | None:
    """Returns transformers' own name of a frozen model's tensor; None where the tensor is one of ours."""
    parts = name.split(".")
    if any(part in _TRAINED or part.endswith("_lora") for part in parts):
        return None
    return ".".join(part for part in parts if part != "base")


def adapter_state(model: SignFeatures) -> dict[str, Tensor]:
    """Returns every tensor of the model that is not a frozen model's own, by name."""
    prefixes = tuple(frozen_models(model).values())
    state = {}
    for name, value in model.state_dict().items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is None or plain_name(name.removeprefix(prefix)) is None:
            state[name] = value
    return state


def unsaved_frozen_weights(model: SignFeatures, recipe: Recipe) -> dict[str, Tensor]:
    """Returns the frozen weights that no file holds: those of a vision transformer that started at random."""
    if recipe.model.sign2gpt.vit_weights:
        return {}
    own = adapter_state(model)
    state = model.state_dict()
    return {name: value for name, value in state.items() if name.startswith(VIT) and name not in own}


def save_signs(model: SignFeatures, recipe: Recipe, path: Path) -> None:
    """Write what stage 1 trained, its statistics, and frozen weights that no file holds."""
    save_encoder_config(model.spatial and model.spatial.backbone, path.parent)
    save_tensors(adapter_state(model) | unsaved_frozen_weights(model, recipe), path)


def frozen_hash(model: nn.Module, prefix: str) -> str:
    """Returns sha256 over names, shapes and values of a frozen model, rounded to bfloat16.

    Rounded, because the same model may be held in float32 or bfloat16; its adapters do not matter.
    """
    digest = hashlib.sha256()
    for name, value in sorted(_frozen(model, prefix)):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        # In parts: a copy of 500 million embeddings would take as much memory as they do.
        for part in value.detach().reshape(-1).split(1 << 22):
            digest.update(part.cpu().to(torch.bfloat16).view(torch.uint8).numpy())
    return digest.hexdigest()


def _frozen(model: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        plain = plain_name(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if plain is not None:
            yield plain, parameter


def save_adapters(model: SignFeatures, recipe: Recipe, folder: str | Path) -> None:
    """Write the two files into `folder`, which is made; the description last, so that a cut-off save has none."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in adapter_state(model).items()
    }
    called = {
        "language_model": recipe.model.language_model,
        "vit_weights": recipe.model.sign2gpt.vit_weights,
    }
    description = {
        "format": FORMAT,
        "model": "sign2gpt",
        "frozen": {
            key: {"name": called[key], "sha256": frozen_hash(model, prefix)}
            for key, prefix in frozen_models(model).items()
        },
        "parameters": sum(value.numel() for value in state.values()),
    }
    (folder / DESCRIPTION).unlink(missing_ok=True)
    write_weights(state, folder / TENSORS)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def load_adapters(model: SignFeatures, folder: str | Path) -> None:
    """Put the adapters of `folder` onto a model whose frozen models are the same ones.

    Raises CheckpointError where files are missing or damaged, a frozen model is another one, or a tensor does not fit.
    """
    folder = Path(folder)
    description = read_description(folder)
    for key, prefix in frozen_models(model).items():
        stored = description["frozen"].get(key)
        if stored is None:
            raise CheckpointError(
                f"{folder}: these adapters were trained without a frozen {key}: use their recipe"
            )
        if stored["sha256"] != frozen_hash(model, prefix):
            raise CheckpointError(
                f"{folder}: these adapters belong to another {key} ('{stored['name']}', sha256 "
                f"{stored['sha256'][:12]}...): give that one"
            )
    try:
        state = read_weights(folder / TENSORS)
    except FileNotFoundError:
        raise CheckpointError(f"{folder / TENSORS} is missing: copy the whole folder") from None
    own = adapter_state(model)
    for kind, names in (("lacks", own.keys() - state.keys()), ("has a strange", state.keys() - own.keys())):
        if names:
            raise CheckpointError(
                f"{folder / TENSORS} {kind} {min(names)} ({len(names)} such): use its recipe"
            )
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise CheckpointError(
                f"{folder / TENSORS}: {name} is {tuple(value.shape)}, here {tuple(own[name].shape)}: use its recipe"
            )
    model.load_state_dict(state, strict=False)


def read_description(folder: Path) -> dict[str, Any]:
    """Returns adapters.json, checked. Raises CheckpointError in one line."""
    if not (folder / DESCRIPTION).is_file():
        raise CheckpointError(f"{folder} holds no adapters ({DESCRIPTION})")
    try:
        description = parse_json(read_bytes(folder / DESCRIPTION))
        known = description["format"] == FORMAT and description["model"] == "sign2gpt"
        known = known and all("sha256" in frozen for frozen in description["frozen"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise CheckpointError(f"{folder / DESCRIPTION} is damaged or of another format than {FORMAT}")
    return description
