"""The trained frame encoder: a ResNet of basic blocks (SAGE, section 3.1.3), or an image model of transformers.

Frames pass it at once or in chunks; chunks are computed again in the backward pass, so that long clips need no more
memory: what the backward pass needs is kept of one chunk, of the others their output. BatchNorm takes the running
statistics (`frozen`) or those of a chunk (`group`), which move once a step, and not when a chunk is computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import ResNetConfig, ResNetModel
from transformers.models.resnet.modeling_resnet import ResNetShortCut

from sage_scale.config import Augment, Backbone, Recipe, Stage
from sage_scale.errors import CheckpointError
from sage_scale.losses.collectives import gather_counts
from sage_scale.nn.batchnorm import BatchNorm, Mode, convert_batchnorm, statistics_kept, statistics_of_chunks
from sage_scale.nn.dropout import switch_off_dropout
from sage_scale.untrusted.files import expanded
from sage_scale.vision.augment import augment, centre_crop
from sage_scale.vision.backbone_choice import ENCODER, IMAGENET_MEAN, IMAGENET_STD, encoder_width
from sage_scale.vision.image_models import ImageModel
from sage_scale.vision.packed import PackedVideo
from sage_scale.vision.pretrained_weights import load_exactly, read_resnet_weights


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
        """Returns (F, width). `frames_FCHW` are floats from 0 to 255, or, `centred`, their difference to a
        background."""
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
    """Returns float frames (F, 3, crop, crop) of these rows, of clips `clip_F`: the background subtracted, and,
    `active`, augmented."""
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
    """Returns whether the weight gradient of a 1 x 1 convolution with strides writes past its memory on a CPU.

    Seen with torch 2.13 (oneDNN, AVX-512) in channels_last for fewer than 16 channels to at most 16, on maps of 56 x 56
    and more: the process ends by SIGSEGV.
    """
    return convolution.in_channels < 16 and convolution.out_channels <= 16


def load_backbone(encoder: nn.Module, path: str) -> None:
    """Load initial weights of the ResNet from a torchvision or transformers file or folder (`model.backbone.weights`).

    An image model of transformers has its weights already. Raises CheckpointError naming the first tensor that is
    missing, unknown or of another shape.
    """
    if path and isinstance(encoder, FrameEncoder):
        load_exactly(encoder.resnet, read_resnet_weights(path), Path(path))


def last_map_side(crop: int, stages: int) -> int:
    """Returns side of the last feature map: the stem, its pooling and every stage but the first halve it, rounding
    up."""
    side = crop
    for _ in range(stages + 1):
        side = (side + 1) // 2
    return side


def make_frame_encoder(recipe: Recipe) -> FrameEncoder | ImageModel:
    """Returns the trained frame encoder of `model.backbone`: a ResNet with random weights, or the model of its folder.

    An image model trains without dropout or stochastic depth of its own: chunks and the embedding cache compute it
    twice. Parameters that its features do not depend on are frozen. Raises CheckpointError for an unfit folder.
    """
    backbone, crop, mode = recipe.model.backbone, recipe.vision.crop, recipe.model.batchnorm
    if not backbone.folder:
        return FrameEncoder(backbone, crop, mode)
    folder = expanded(backbone.folder)
    encoder = ImageModel.open(folder)
    convert_batchnorm(encoder, mode)
    switch_off_dropout(encoder)
    encoder.eval()  # the trial moves no statistics
    try:
        encoder(torch.zeros(1, 3, crop, crop)).sum().backward()
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"model.backbone.folder={folder}: no pictures of vision.crop={crop} pixels: {str(error).splitlines()[0]}"
        ) from None
    for parameter in encoder.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    return encoder.train()


def check_frame_encoder(recipe: Recipe) -> None:
    """Raise CheckpointError where the folder of `model.backbone` has no image model; reads no weights."""
    if recipe.vision.kind == "frames":
        encoder_width(recipe.model.backbone)


def save_encoder_config(encoder: nn.Module | None, folder: Path) -> None:
    """Write the configuration of an image model into a folder beside its weights (`encoder_beside`)."""
    if isinstance(encoder, ImageModel):
        encoder.save_config(folder / ENCODER)


class FrameFeatures(nn.Module):
    """Base of a model's visual side: stored features, or frames that pass its `backbone`."""

    norm: BatchNorm
    """BatchNorm behind the features; its weight has the type of the arithmetic."""

    def __init__(self, recipe: Recipe, stage: Stage | None, backbone: nn.Module | None) -> None:
        """`stage` is the one that is trained: its augmentation, chunks and compilation; none by default."""
        super().__init__()
        stage = stage or Stage()
        self.settings, self.chunk_frames, self.crop = stage.augment, stage.chunk_frames, recipe.vision.crop
        self._compile = stage.compile
        self._compiled: Callable[..., Tensor] | None = None
        self.backbone = backbone

    def frame_features(self, video: PackedVideo, augmented: bool | None = None) -> Tensor:
        """Returns (F, C): the video's features where it has them (stored, or kept from a frozen backbone), else the
        backbone's of its frames. Frames are augmented in training (or where `augmented` says so) where the video has
        seeds. Raises ValueError where the recipe has stored features and the video none."""
        if video.features_FC is not None:
            return video.features_FC.to(self.norm.weight.dtype)
        if self.backbone is None or video.frames_FCHW is None:
            raise ValueError("the recipe has vision.kind=features, but the video holds frames")
        wanted = self.training if augmented is None else augmented
        active = wanted and video.clip_seeds_B is not None and self.settings.active
        clip_F = video.frame_clip_F()

        def pixels(rows: slice) -> Tensor:
            kind = self.norm.weight.dtype
            return frame_pixels(video, rows, clip_F[rows], self.settings, self.crop, active, kind)

        return self.encode_frames(pixels, video, len(video.frames_FCHW), video.background_BCHW is not None)

    def encode_frames(
        self, pixels: Callable[[slice], Tensor], video: PackedVideo, count: int, centred: bool
    ) -> Tensor:
        """Returns (F, C) of the `count` frames that `pixels` gives; `centred`: differences to a background."""
        assert self.backbone is not None

        def some(rows: slice) -> Tensor:
            return self._through_backbone(pixels(rows), centred)

        if not self.chunk_frames:
            return some(slice(0, count))
        return in_chunks(self.backbone, some, count, self.chunk_frames)

    def _through_backbone(self, x_FCHW: Tensor, centred: bool) -> Tensor:
        assert self.backbone is not None
        if not self._compile or not len(x_FCHW):
            return self.backbone(x_FCHW, centred=centred)
        if self._compiled is None:
            self._compiled = torch.compile(self.backbone.forward, dynamic=not self.chunk_frames)
        frames, short = len(x_FCHW), self.chunk_frames - len(x_FCHW)
        statistics = self.training and self.norm.mode != "frozen"
        if short > 0 and not statistics:  # one shape, one compilation; no frame is seen by another
            x_FCHW = torch.cat([x_FCHW, x_FCHW.new_zeros(short, *x_FCHW.shape[1:])])
        return self._compiled(x_FCHW, centred=centred)[:frames]


def in_chunks(module: nn.Module, some: Callable[[slice], Tensor], rows: int, chunk: int) -> Tensor:
    """Returns `some(slice(0, rows))`, a function of each row alone but for BatchNorm in `module`, computed by `chunk`
    rows at a time.

    In training every rank must call it, one without rows too.
    """
    count = max(1, -(-rows // chunk))
    if module.training:  # under ZeRO-3 every pass gathers weights: ranks must make as many
        device = next(module.parameters()).device
        count = max(counts[0] for counts in gather_counts([count], device=device))
    edges = [min(number * chunk, rows) for number in range(count + 1)]
    slices = [slice(begin, end) for begin, end in pairwise(edges)]

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), statistics_kept(module)

    with statistics_of_chunks(module) if module.training else nullcontext():
        if len(slices) == 1 or not torch.is_grad_enabled():
            parts = [some(part) for part in slices]
        else:
            # Nothing random happens in a backbone. ZeRO-3 holds parts of the weights between passes, which a
            # comparison of what was saved would take for a difference.
            parts = [
                checkpoint(
                    some, part, use_reentrant=False, context_fn=contexts, preserve_rng_state=False,
                    determinism_check="none",
                )
                for part in slices
            ]  # fmt: skip
    return torch.cat(parts)
