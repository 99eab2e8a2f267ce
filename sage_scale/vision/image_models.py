"""Image models of transformers as frame encoders: pictures in, one row a frame out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sage_scale.errors import CheckpointError
from sage_scale.text.hub import loading
from sage_scale.vision.backbone_choice import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PREPROCESSOR,
    model_width,
    picture_statistics,
)

POOLED = "sage_scale_pooled"
"""Key of the config.json that `save_config` writes; such a folder has no weights of its own."""


class ImageModel(nn.Module):
    """Frames (F, 3, H, W) to features (F, width); F may be 0.

    A row is the pooled output where the model has weights for it, else the class token, else the mean of the last map.
    """

    def __init__(
        self,
        model: nn.Module,
        width: int,
        statistics: tuple[tuple[float, ...], tuple[float, ...]] = (IMAGENET_MEAN, IMAGENET_STD),
        pooled: bool = True,
    ) -> None:
        """`statistics` are mean and deviation of the pictures' values, from 0 to 1."""
        super().__init__()
        self.model, self.width, self.pooled = model, width, pooled
        self.mean: Tensor
        self.std: Tensor
        for name, values in zip(("mean", "std"), statistics):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    @classmethod
    def open(cls, folder: Path) -> ImageModel:
        """Returns the model of a folder that `AutoModel` or `AutoBackbone` opens, without code of the folder.

        On the meta device, and of a folder that `save_config` wrote, weights are not read. Pictures are normalised as
        preprocessor_config.json says, else as those of ImageNet. Raises CheckpointError where the folder cannot be
        opened or lacks weights.
        """
        from transformers import AutoConfig, AutoModel
        from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING

        width = model_width(folder)
        with loading(folder, "backbone"):
            config = AutoConfig.from_pretrained(folder)
            known = type(config) in MODEL_MAPPING
            # AutoBackbone.from_pretrained itself takes names of the hub alone (transformers 5.23).
            kind: Any = AutoModel if known else MODEL_FOR_BACKBONE_MAPPING[type(config)]
            pooled = getattr(config, POOLED, None)
            lacking: list[str] = []
            if pooled is not None or torch.empty(0).is_meta:
                model: Any = AutoModel.from_config(config) if known else kind(config)
            else:
                model, report = kind.from_pretrained(
                    folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
                )
                pooled = not any("pooler" in name for name in report["missing_keys"])
                lacking = sorted(name for name in report["missing_keys"] if "pooler" not in name)
        if lacking:
            raise CheckpointError(f"backbone '{folder}' lacks {len(lacking)} weights, such as {lacking[0]}")
        inner: nn.Module = getattr(model, "vision_model", model)
        return cls(inner, width, picture_statistics(folder), pooled is not False)

    def save_config(self, folder: Path) -> None:
        """Write the configuration, from which `open` builds the same model with random weights."""
        config: Any = self.model.config
        setattr(config, POOLED, self.pooled)
        config.save_pretrained(folder)
        statistics = {"image_mean": self.mean.flatten().tolist(), "image_std": self.std.flatten().tolist()}
        (folder / PREPROCESSOR).write_text(json.dumps(statistics) + "\n", encoding="utf-8")

    def forward(self, frames_FCHW: Tensor, centred: bool = False) -> Tensor:
        """Returns (F, width). `frames_FCHW` are floats from 0 to 255, or, `centred`, their difference to a
        background."""
        if not len(frames_FCHW) and not any(
            name.endswith("running_mean") for name, _ in self.named_buffers()
        ):
            # Attention cannot run without rows. A rank without frames passes the same modules as the others, whose
            # weights ZeRO-3 gathers in step. A model with BatchNorm runs without rows: none is in its statistics.
            return self(frames_FCHW.new_zeros(1, *frames_FCHW.shape[1:]), centred)[:0]
        x_FCHW = frames_FCHW / 255
        x_FCHW = ((x_FCHW if centred else x_FCHW - self.mean) / self.std).contiguous(
            memory_format=torch.channels_last
        )
        output: Any = self.model(x_FCHW)
        rows = getattr(output, "pooler_output", None) if self.pooled else None
        if rows is None and (maps := getattr(output, "feature_maps", None)):
            rows = maps[-1].mean((-2, -1))
        if rows is None:
            last = output.last_hidden_state
            rows = last[:, 0] if last.dim() == 3 else last.mean((-2, -1))
        return rows.flatten(1)
