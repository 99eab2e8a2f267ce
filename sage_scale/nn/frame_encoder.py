"""The frame encoder: a ResNet of basic blocks (SAGE, section 3.1.3), from transformers, with our BatchNorm."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel
from transformers.models.resnet.modeling_resnet import ResNetShortCut

from sage_scale.config import Augment, Backbone
from sage_scale.nn.batchnorm import Mode, convert_batchnorm
from sage_scale.vision.augment import augment, centre_crop
from sage_scale.vision.packed import PackedVideo
from sage_scale.vision.pretrained_weights import load_exactly
from sage_scale.vision.resnet_weights import read_resnet_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class FrameEncoder(nn.Module):
    """Frames (F, 3, crop, crop) to features (F, widths[-1]); F may be 0."""

    def __init__(self, backbone: Backbone, crop: int, batchnorm: Mode = "sync") -> None:
        super().__init__()
        self.width = backbone.widths[-1]
        self.resnet = ResNetModel(
            ResNetConfig(
                embedding_size=backbone.widths[0],
                hidden_sizes=list(backbone.widths),
                depths=list(backbone.depths),
                layer_type="basic",
            )
        )
        for module in self.resnet.modules():
            if isinstance(module, ResNetShortCut) and narrow(module.convolution):
                module.convolution.__class__ = PickedConv
        convert_batchnorm(self.resnet, batchnorm)
        self.flatten: nn.Linear | None = None
        if backbone.pool == "flatten":
            side = last_map_side(crop, len(backbone.widths))
            self.flatten = nn.Linear(self.width * side * side, self.width)
        # Passes over memory, not arithmetic, are what small maps cost on a CPU.
        for module in self.resnet.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = True
        mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, frames_FCHW: Tensor, centred: bool = False) -> Tensor:
        """`frames_FCHW` are floats from 0 to 255, or, `centred`, their difference to a background."""
        x = frames_FCHW * self.scale if centred else torch.addcmul(self.shift, frames_FCHW, self.scale)
        x = x.contiguous(memory_format=torch.channels_last)
        stem = self.resnet.embedder
        x = stem.embedder.normalization(stem.embedder.convolution(x))
        # The largest of ReLUs is the ReLU of the largest: the same values, a quarter of the work.
        x = stem.embedder.activation(stem.pooler(x))
        for stage in self.resnet.encoder.stages:
            x = stage(x)
        if self.flatten is None:
            return x.mean(dim=(-2, -1))
        return self.flatten(x.flatten(1))


def frame_pixels(
    video: PackedVideo,
    rows: slice,
    clip_F: Tensor,
    settings: Augment,
    crop: int,
    active: bool,
    kind: torch.dtype,
) -> Tensor:
    """Float frames (F, 3, crop, crop) of these rows, of clips `clip_F`: the background taken off, and, `active`,
    augmented."""
    assert video.frames_FCHW is not None
    frames_FCHW = video.frames_FCHW[rows]
    frames_FCHW = frames_FCHW if active else centre_crop(frames_FCHW, crop)
    x_FCHW = frames_FCHW.to(kind, memory_format=torch.channels_last)
    if video.background_BCHW is not None:
        background = video.background_BCHW if active else centre_crop(video.background_BCHW, crop)
        x_FCHW.sub_(background[clip_F])
    if active:
        assert video.clip_seeds_B is not None
        x_FCHW = augment(x_FCHW, clip_F, video.clip_seeds_B, settings, crop)
    return x_FCHW


class PickedConv(nn.Conv2d):
    """A 1 x 1 convolution with strides that picks the pixels it reads first: the same result, without strides."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        rows, columns = self.stride
        picked = x_BCHW[:, :, ::rows, ::columns]
        if not picked.numel():  # the backward pass of no frames
            return super().forward(x_BCHW)
        picked = picked.contiguous(memory_format=torch.channels_last)
        return nn.functional.conv2d(picked, self.weight, self.bias)


def narrow(convolution: nn.Conv2d) -> bool:
    """Whether the weight gradient of a 1 x 1 convolution with strides writes past its memory on a CPU.

    Seen with torch 2.13 (oneDNN, AVX-512) in channels_last for fewer than 16 channels to at most 16, on maps of 56 x 56
    and more: the process ends by SIGSEGV.
    """
    return convolution.in_channels < 16 and convolution.out_channels <= 16


def load_backbone(encoder: FrameEncoder, path: str) -> None:
    """Initial weights of the ResNet from a torchvision or transformers file or folder (`model.backbone.weights`).

    Raises CheckpointError where one is missing, too many or of another shape, naming it.
    """
    state = read_resnet_weights(Path(path))
    # torch counts batches, which nothing needs at a fixed momentum.
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    load_exactly(encoder.resnet, state, Path(path))


def last_map_side(crop: int, stages: int) -> int:
    """Side of the last feature map: the stem, its pooling and every stage but the first halve it, rounding up."""
    side = crop
    for _ in range(stages + 1):
        side = (side + 1) // 2
    return side
