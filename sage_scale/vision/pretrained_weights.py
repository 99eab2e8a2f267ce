"""Weight files of others: read without unpickling, renamed as transformers names them, and loaded exactly.

`.safetensors` files are read as such, others with torch's `weights_only`.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sage_scale.errors import CheckpointError

Renaming = tuple[tuple[str, str], ...]
"""Patterns and their replacements, applied to each name one after the other."""
RESNET: Renaming = (
    # A transformers classifier.
    (r"^resnet\.", ""),
    # torchvision: conv1, bn1, layer{1..4}.{block}.{conv1,bn1,conv2,bn2}, layer{n}.0.downsample.{0,1}
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    *((rf"^layer{stage}\.(\d+)\.", rf"encoder.stages.{stage - 1}.layers.\1.") for stage in range(1, 10)),
    *((rf"\.conv{number}\.", f".layer.{number - 1}.convolution.") for number in (1, 2)),
    *((rf"\.bn{number}\.", f".layer.{number - 1}.normalization.") for number in (1, 2)),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
)
"""Names of `ResNetModel`, from those of torchvision or of a transformers classifier."""
DINOV2: Renaming = (
    # Files on the hub have the names that transformers' classes once had.
    (r"^dinov2\.", ""),
    (r"attention\.attention\.([qkv])(uery|ey|alue)\.", r"attention.\1_proj."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    # Published: cls_token, pos_embed, patch_embed.proj, blocks.{layer}.{norm1,attn.qkv,attn.proj,ls1.gamma,...}, norm
    (r"^(cls_token|mask_token)$", r"embeddings.\1"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.([qkvo])_proj\.", r".attention.\1_proj."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
)
"""Names of `Dinov2Model`, from the published ones or those of a transformers file."""


def read_resnet_weights(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a ResNet of basic blocks under the names of `ResNetModel`, without the classifier."""
    values = read_state_dict(Path(path))
    if deeper := next((name for name in values if re.search(r"layer\d\.\d+\.conv3\.", name)), None):
        raise CheckpointError(f"{deeper}: bottleneck blocks (ResNet-50 and deeper); basic blocks are needed")
    return _renamed(
        {name: value for name, value in values.items() if not name.startswith(("fc.", "classifier."))}, RESNET
    )


def read_dinov2_weights(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a DINOv2 under the names of `Dinov2Model`; queries, keys and values are split."""
    values: dict[str, Tensor] = {}
    for name, value in read_state_dict(Path(path)).items():
        if ".attn.qkv." in name:
            for part, tensor in zip("qkv", value.chunk(3)):
                values[name.replace("attn.qkv", f"attn.{part}_proj")] = tensor.clone()
        else:
            values[name] = value
    return _renamed(values, DINOV2)


def _renamed(values: Mapping[str, Tensor], renaming: Renaming) -> dict[str, Tensor]:
    found = {}
    for name, value in values.items():
        for pattern, replacement in renaming:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a weights file, or of the one in a folder. Raises CheckpointError in one line."""
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
        with warnings.catch_warnings():  # of another pickle protocol
            warnings.simplefilter("ignore")
            values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # unpickling damaged or hostile bytes raises nearly anything
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # its advice to load without the limit is not passed on
            reason = "it is damaged, or holds objects other than tensors"
        raise CheckpointError(f"{path}: not a weights file that can be read safely: {reason}") from None
    for wrapper in ("state_dict", "model", "teacher"):
        if isinstance(values, Mapping) and isinstance(values.get(wrapper), Mapping):
            values = values[wrapper]
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise CheckpointError(f"{path}: expected a mapping from names to tensors")
    return {name.removeprefix("module."): value for name, value in values.items()}


def load_exactly(model: torch.nn.Module, values: Mapping[str, Tensor], path: Path) -> None:
    """Load `values` into `model`; counts of batches do not matter.

    Raises CheckpointError naming the first tensor that is missing, unknown, of another shape or not finite.
    """
    values = {name: value for name, value in values.items() if not name.endswith("num_batches_tracked")}
    wanted = {n: value for n, value in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in values]
    extra = [name for name in values if name not in wanted]
    shaped = [name for name in wanted if name in values and values[name].shape != wanted[name].shape]
    for kind, names in (("lacks", missing), ("has a strange", extra), ("has another shape of", shaped)):
        if names:
            raise CheckpointError(
                f"{path} does not fit {type(model).__name__}: it {kind} {names[0]} ({len(names)} such)"
            )
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinite values: export or copy the weights again"
            )
    model.load_state_dict(values, strict=False)
