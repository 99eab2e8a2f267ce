"""ResNet weights of others, under the names of transformers' `ResNetModel`.

torchvision:    conv1, bn1, layer{1..4}.{block}.{conv1,bn1,conv2,bn2}, layer*.*.downsample.{0,1}, fc
transformers:   embedder.embedder, encoder.stages.{0..3}.layers.{block}.layer.{0,1}, encoder.*.shortcut
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sage_scale.errors import CheckpointError
from sage_scale.vision.pretrained_weights import read_state_dict

_TORCHVISION_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(.+)")


def read_resnet_weights(path: str | Path) -> dict[str, Tensor]:
    """A ResNet's tensors in transformers' names (`ResNetModel`), from a torchvision or a transformers
    file."""
    values = read_state_dict(Path(path))
    if any(name.startswith("layer1.") for name in values):
        return torchvision_to_transformers(values)
    inner = {name.removeprefix("resnet."): value for name, value in values.items()}
    return {name: value for name, value in inner.items() if not name.startswith("classifier")}


def torchvision_to_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision ResNet of basic blocks, of any depth, in the names of transformers' `ResNetModel`.

    The classifier (`fc`) is left out. CheckpointError names the first tensor that is no part of such a
    network.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state_dict.items():
        if name.startswith("fc."):
            continue
        if name.startswith(("conv1.", "bn1.")):
            part, _, rest = name.partition(".")
            kind = "convolution" if part == "conv1" else "normalization"
            renamed[f"embedder.embedder.{kind}.{rest}"] = value
            continue
        match = _TORCHVISION_BLOCK.fullmatch(name)
        if not match:
            raise CheckpointError(f"{name}: not a tensor of a torchvision ResNet")
        stage, block, kind, number, rest = match.groups()
        if kind != "downsample." and number not in "12":
            raise CheckpointError(
                f"{name}: bottleneck blocks (ResNet-50 and deeper); basic blocks are needed"
            )
        place = f"encoder.stages.{int(stage) - 1}.layers.{block}"
        if kind == "downsample.":
            part = "convolution" if number == "0" else "normalization"
            renamed[f"{place}.shortcut.{part}.{rest}"] = value
        else:
            part = "convolution" if kind == "conv" else "normalization"
            renamed[f"{place}.layer.{int(number) - 1}.{part}.{rest}"] = value
    return renamed
