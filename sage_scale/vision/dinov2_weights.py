"""DINOv2 weights of others, under the names of transformers' `Dinov2Model`.

published:      cls_token, pos_embed, patch_embed.proj, blocks.{layer}.{norm1,attn.qkv,attn.proj,ls1.gamma,...}, norm
transformers:   embeddings.*, encoder.layer.{layer}.{norm1,attention.{q,k,v,o}_proj,layer_scale1.lambda1,...}, layernorm
its files:      as transformers, but attention.attention.{query,key,value} and attention.output.dense
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from sage_scale.errors import CheckpointError
from sage_scale.vision.pretrained_weights import read_state_dict


def read_dinov2_weights(path: str | Path) -> dict[str, Tensor]:
    """A DINOv2's tensors in transformers' names (`Dinov2Model`), from the published `.pth` or a transformers
    file."""
    values = read_state_dict(Path(path))
    if "cls_token" not in values:
        return {_file_name(name.removeprefix("dinov2.")): value for name, value in values.items()}
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


def _file_name(name: str) -> str:
    """transformers' own files keep the names that its classes once had."""
    name = re.sub(r"attention\.attention\.([qkv])(uery|ey|alue)\.", r"attention.\1_proj.", name)
    return name.replace("attention.output.dense.", "attention.o_proj.")
