"""ResNet weights of others: torchvision's and transformers' names, from one file or folder.

torchvision:    conv1, bn1, layer{1..4}.{block}.{conv1,bn1,conv2,bn2}, layer*.*.downsample.{0,1}, fc
transformers:   embedder.embedder, encoder.stages.{0..3}.layers.{block}.layer.{0,1}, encoder.*.shortcut
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sage_scale.errors import CheckpointError

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.(conv|bn)(\d+)\.(\w+)$")
_SHORTCUT = re.compile(r"layer(\d+)\.(\d+)\.downsample\.([01])\.(\w+)$")
_KIND = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}


def torchvision_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision ResNet's state dict under transformers' ResNetModel names; the classifier is left out.

    Names that are no torchvision ResNet's pass unchanged.
    """
    renamed = {}
    for name, value in state.items():
        if name.startswith("fc."):
            continue
        if block := _BLOCK.match(name):
            stage, number, kind, place, leaf = block.groups()
            name = (
                f"encoder.stages.{int(stage) - 1}.layers.{number}.layer.{int(place) - 1}.{_KIND[kind]}.{leaf}"
            )
        elif shortcut := _SHORTCUT.match(name):
            stage, number, kind, leaf = shortcut.groups()
            name = f"encoder.stages.{int(stage) - 1}.layers.{number}.shortcut.{_KIND[kind]}.{leaf}"
        elif name.startswith(("conv1.", "bn1.")):
            kind, leaf = name.split(".", 1)
            name = f"embedder.embedder.{_KIND[kind[:-1]]}.{leaf}"
        renamed[name] = value
    return renamed


def read_resnet_weights(path: str | Path) -> dict[str, Tensor]:
    """Weights under transformers' ResNetModel names, from safetensors, a torch state dict, or a folder with either.

    Raises CheckpointError where the file is missing or unreadable. Nothing is unpickled but tensors.
    """
    file = Path(path)
    if file.is_dir():
        names = ("model.safetensors", "pytorch_model.bin")
        found = [file / name for name in names if (file / name).is_file()]
        if not found:
            raise CheckpointError(f"no ResNet weights in '{file}': it has neither of {', '.join(names)}")
        file = found[0]
    if not file.is_file():
        raise CheckpointError(
            f"no ResNet weights at '{file}': give a torchvision or transformers file, or a folder"
        )
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"'{file}' is no readable weights file: {str(error).splitlines()[0]}") from None
    except Exception as error:  # pickle.UnpicklingError: weights_only refuses objects
        raise CheckpointError(
            f"'{file}' holds more than tensors ({type(error).__name__}): save its state dict"
        ) from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"'{file}' holds no state dict of tensors")
    state = {name.removeprefix("module.").removeprefix("resnet."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not name.startswith("classifier.")}
    return torchvision_to_transformers(state)
