"""Frozen backbones for `vision.kind=features`: a decoded clip in, one float16 row a frame of the stride grid
out.

Batches have a fixed, padded shape, because float results depend on it: a clip's features are the same bytes
whatever stands beside it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sage_scale.config import Vision
from sage_scale.errors import CheckpointError, ClipRejected, RecipeError
from sage_scale.vision.decode import DecodedClip
from sage_scale.vision.dinov2_weights import read_dinov2_weights
from sage_scale.vision.keypoint_features import keypoint_features
from sage_scale.vision.keypoint_files import POINTS
from sage_scale.vision.pretrained_weights import load_exactly
from sage_scale.vision.resnet_weights import read_resnet_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BACKBONES = ("resnet34", "dinov2-vits14", "keypoints")
_RANDOM_SEED = 34


class FrozenBackbone:
    """Features of a frozen image backbone or of keypoints."""

    def __init__(self, vision: Vision, device: str | torch.device = "cpu") -> None:
        """Raises RecipeError for an unknown backbone or missing weights, CheckpointError for unfit ones."""
        if vision.backbone not in BACKBONES:
            raise RecipeError(f"vision.backbone {vision.backbone!r}; known: {', '.join(BACKBONES)}")
        self.vision = vision
        self.device = torch.device(device)
        self.model: nn.Module | None = None
        if vision.backbone != "keypoints":
            self.model = _load(vision).eval().requires_grad_(False).to(self.device)
            self._mean = torch.tensor(IMAGENET_MEAN, device=self.device)[:, None, None]
            self._std = torch.tensor(IMAGENET_STD, device=self.device)[:, None, None]

    @property
    def dim(self) -> int:
        """C, the width of a row; `model.feature_dim` of the recipe must say the same."""
        if self.vision.backbone == "keypoints":
            return 2 * POINTS * (2 if self.vision.keypoint_velocities else 1)
        return {"resnet34": 512, "dinov2-vits14": 384}[self.vision.backbone]

    def __call__(self, decoded: DecodedClip) -> np.ndarray:
        """float16 (n, C) for the n frames of the clip's stride grid; row r belongs to frame r * stride."""
        if self.model is None:
            if decoded.keypoints_TKC is None:
                raise ClipRejected("no-keypoints", "the source is not a keypoint file (.npz, .pose)")
            grid = decoded.keypoints_TKC[:: decoded.stride]
            return keypoint_features(grid, velocities=self.vision.keypoint_velocities)
        if not len(decoded.frames):
            raise ClipRejected("no-pictures", "the source has no pictures for an image backbone")
        return self.pictures(decoded.frames)

    @torch.inference_mode()
    def pictures(self, frames_nHWC: np.ndarray) -> np.ndarray:
        """float16 (n, C) of uint8 pictures (n, S, S, 3); their middle `vision.crop` pixels are seen."""
        assert self.model is not None, "a keypoint backbone sees no pictures"
        crop, batch = self.vision.crop, self.vision.backbone_batch
        margin = (frames_nHWC.shape[1] - crop) // 2
        cropped = frames_nHWC[:, margin : margin + crop, margin : margin + crop]
        rows = []
        for start in range(0, len(cropped), batch):
            part = cropped[start : start + batch]
            pixels = torch.zeros(batch, crop, crop, 3, dtype=torch.uint8)
            pixels[: len(part)] = torch.from_numpy(np.ascontiguousarray(part))
            x = pixels.to(self.device).permute(0, 3, 1, 2).float() / 255
            rows.append(self._forward((x - self._mean) / self._std)[: len(part)].half().cpu())
        return torch.cat(rows).numpy() if rows else np.zeros((0, self.dim), np.float16)

    def _forward(self, x: Tensor) -> Tensor:
        assert self.model is not None
        output = self.model(x.contiguous(memory_format=torch.channels_last))
        return output.pooler_output.flatten(
            1
        )  # ResNet: mean of the last map; DINOv2: the class token after its norm


def load_backbone(vision: Vision, device: str | torch.device = "cpu") -> FrozenBackbone:
    """The frozen backbone of a recipe's `vision` on `device`."""
    return FrozenBackbone(vision, device)


def _load(vision: Vision) -> nn.Module:
    if vision.crop > vision.size:
        raise RecipeError(f"vision.crop {vision.crop} is larger than vision.size {vision.size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)  # so that random backbones (tests) agree between actors
        model, read = _resnet34() if vision.backbone == "resnet34" else _dinov2(vision)
    if vision.backbone_weights:
        path = Path(vision.backbone_weights).expanduser()
        if not path.exists():
            raise CheckpointError(f"vision.backbone_weights: there is no {path}")
        load_exactly(model, read(path), path)
    elif not vision.allow_random_backbone:
        raise RecipeError(
            f"vision.backbone={vision.backbone} needs vision.backbone_weights=FILE_OR_FOLDER "
            "(random features only with vision.allow_random_backbone=true)"
        )
    return model


def _resnet34():
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[3, 4, 6, 3], layer_type="basic"
    )
    return ResNetModel(config), read_resnet_weights


def _dinov2(vision: Vision):
    from transformers import Dinov2Config, Dinov2Model

    if vision.crop % 14:
        raise RecipeError(f"vision.crop {vision.crop} is no multiple of 14, the patch of dinov2-vits14")
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        patch_size=14,
        image_size=518,
        mlp_ratio=4,
    )
    return Dinov2Model(config), read_dinov2_weights
