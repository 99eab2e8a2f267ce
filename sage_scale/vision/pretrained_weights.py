"""Pretrained weights of image backbones: read safely, and renamed to what transformers calls them.

Nothing here unpickles: `.safetensors` files are read as such, others with torch's `weights_only`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sage_scale.errors import CheckpointError

_TORCHVISION_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(.+)")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, or of the one weights file in a folder; CheckpointError says what is
    wrong."""
    if path.is_dir():
        found = [
            path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()
        ]
        if not found:
            raise CheckpointError(f"{path}: no model.safetensors in this folder")
        path = found[0]
    if not path.is_file():
        raise CheckpointError(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # unpickling damaged or hostile bytes raises nearly anything
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a weights file that can be read safely: {reason}") from None
    for wrapper in ("state_dict", "model", "teacher"):
        if isinstance(values, Mapping) and isinstance(values.get(wrapper), Mapping):
            values = values[wrapper]
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise CheckpointError(f"{path}: expected a mapping from names to tensors")
    return {name.removeprefix("module."): value for name, value in values.items()}


def resnet_state_dict(path: Path) -> dict[str, Tensor]:
    """A ResNet's tensors in transformers' names (`ResNetModel`), from a torchvision or a transformers
    file."""
    values = read_state_dict(path)
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


def dinov2_state_dict(path: Path) -> dict[str, Tensor]:
    """A DINOv2's tensors in transformers' names (`Dinov2Model`), from the published `.pth` or a transformers
    file."""
    values = read_state_dict(path)
    if "cls_token" not in values:
        return {name.removeprefix("dinov2."): value for name, value in values.items()}
    renamed: dict[str, Tensor] = {}
    for name, value in values.items():
        if name in ("cls_token", "mask_token"):
            renamed[f"embeddings.{name}"] = value
        elif name == "pos_embed":
            renamed["embeddings.position_embeddings"] = value
        elif name.startswith("patch_embed.proj."):
            renamed[name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")] = value
        elif name.startswith("norm."):
            renamed[f"layernorm.{name.removeprefix('norm.')}"] = value
        elif match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", name):
            layer, kind = match.groups()
            for part, tensor in zip("qkv", value.chunk(3)):
                renamed[f"encoder.layer.{layer}.attention.{part}_proj.{kind}"] = tensor.clone()
        elif match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            rest = match[2].replace("attn.proj.", "attention.o_proj.")
            rest = re.sub(r"ls([12])\.gamma", r"layer_scale\1.lambda1", rest)
            renamed[f"encoder.layer.{match[1]}.{rest}"] = value
        else:
            raise CheckpointError(f"{name}: not a tensor of a DINOv2")
    return renamed


def load_exactly(model: torch.nn.Module, values: Mapping[str, Tensor], path: Path) -> None:
    """Load `values` into `model`: all of them and nothing missing, or CheckpointError with the first
    difference."""
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in values and not name.endswith("num_batches_tracked")]
    extra = [name for name in values if name not in wanted]
    shaped = [name for name in wanted if name in values and values[name].shape != wanted[name].shape]
    for kind, names in (("lacks", missing), ("has a strange", extra), ("has another shape of", shaped)):
        if names:
            raise CheckpointError(
                f"{path} does not fit {type(model).__name__}: it {kind} {names[0]} ({len(names)} such)"
            )
    model.load_state_dict(dict(values), strict=False)
