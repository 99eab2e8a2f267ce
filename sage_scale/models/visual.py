"""The visual encoder: segments of frames to one token each (SAGE, section 3.1.3).

Each frame passes the ResNet once. A temporal convolution sees its neighbours inside its own segment, the edge frames
repeated; BatchNorm, ReLU and the mean over the segment's frames follow. All of it is packed: no padding, no loop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sage_scale.config import Augment, Recipe
from sage_scale.models.batchnorm import BatchNorm
from sage_scale.models.resnet import FrameEncoder
from sage_scale.vision.augment import augment, centre_crop, is_active
from sage_scale.vision.packed import PackedVideo


class VisualEncoder(nn.Module):
    """PackedVideo to tokens (N, token_dim)."""

    def __init__(self, recipe: Recipe, settings: Augment | None = None) -> None:
        """`settings` is the augmentation of the stage that is trained; none by default."""
        super().__init__()
        model = recipe.model
        self.crop = recipe.vision.crop
        self.settings = settings or Augment()
        self.backbone: FrameEncoder | None = None
        width = model.feature_dim
        if recipe.vision.kind == "frames":
            self.backbone = FrameEncoder(model.backbone, recipe.vision.crop, model.batchnorm)
            width = self.backbone.width
        self.temporal = TemporalConv(width, model.token_dim, model.conv_kernel)
        self.norm = BatchNorm(model.token_dim, model.batchnorm)

    def forward(self, video: PackedVideo) -> Tensor:
        """Tokens (N, token_dim). Raises ValueError where the recipe has stored features and the video has none."""
        return self.tokens(self.frame_features(video), video.segment_frames_N)

    def tokens(self, features_FC: Tensor, segment_frames_N: Tensor) -> Tensor:
        """Tokens (N, token_dim) of frame features (F, C): temporal convolution, BatchNorm, ReLU, mean."""
        x_FD = torch.relu(self.norm(self.temporal(features_FC, segment_frames_N)))
        return torch.segment_reduce(x_FD, "mean", lengths=segment_frames_N, axis=0, unsafe=True)

    def frame_features(self, video: PackedVideo, augmented: bool | None = None) -> Tensor:
        """(F, C): the video's features where it has them (stored, or kept from a frozen backbone), else the backbone's
        of its frames. Frames are augmented in training (or where `augmented` says so) where the video has draws."""
        if video.features_FC is not None:
            return video.features_FC.to(self.norm.weight.dtype)
        if self.backbone is None or video.frames_FCHW is None:
            raise ValueError("the recipe has vision.kind=features, but the video holds frames")
        wanted = self.training if augmented is None else augmented
        active = wanted and video.draws_B is not None and is_active(self.settings)
        frames_FCHW = video.frames_FCHW if active else centre_crop(video.frames_FCHW, self.crop)
        x_FCHW = frames_FCHW.to(self.norm.weight.dtype, memory_format=torch.channels_last)
        if video.background_BCHW is not None:
            background = video.background_BCHW if active else centre_crop(video.background_BCHW, self.crop)
            x_FCHW.sub_(background[video.frame_clip_F()])
        if active:
            assert video.draws_B is not None
            x_FCHW = augment(x_FCHW, video.frame_clip_F(), video.draws_B, self.settings, self.crop)
        return self.backbone(x_FCHW, centred=video.background_BCHW is not None)


class TemporalConv(nn.Conv1d):
    """A 1-D convolution over the frames of each segment, the edge frames repeated: as many frames out as in.

    Equals nn.Conv1d on every segment after repeating its first and last frame (kernel - 1) / 2 times each. Repeating
    features, not frames, spares the ResNet 1.8 to 3 times the work.
    """

    def forward(self, x_FC: Tensor, segment_frames_N: Tensor) -> Tensor:  # type: ignore[override]
        neighbours_FK = neighbour_frames(segment_frames_N, self.kernel_size[0])
        window_FKC = x_FC[neighbours_FK].flatten(1)
        weight_DKC = self.weight.transpose(1, 2).flatten(1)
        return nn.functional.linear(window_FKC, weight_DKC, self.bias)


def neighbour_frames(segment_frames_N: Tensor, kernel: int) -> Tensor:
    """int64 (F, kernel): the frames that each frame's window covers, clamped to the frame's own segment."""
    first_N = segment_frames_N.cumsum(0) - segment_frames_N
    segment_F = torch.repeat_interleave(segment_frames_N)
    first_F = first_N[segment_F]
    last_F = first_F + segment_frames_N[segment_F] - 1
    place_F = torch.arange(segment_F.numel(), device=segment_F.device)
    offsets_K = torch.arange(kernel, device=segment_F.device) - kernel // 2
    return (place_F[:, None] + offsets_K).clamp(min=first_F[:, None], max=last_F[:, None])
