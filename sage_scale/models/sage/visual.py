"""The visual encoder: segments of frames to one token each (SAGE, section 3.1.3).

Each frame passes the ResNet once. A temporal convolution sees its neighbours inside its own segment, the edge frames
repeated; BatchNorm, ReLU and the mean over the segment's frames follow. All of it is packed: no padding, no loop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sage_scale.config import Recipe, Stage
from sage_scale.nn.batchnorm import BatchNorm
from sage_scale.nn.chunked import in_chunks
from sage_scale.nn.frame_encoder import FrameEncoder, frame_pixels
from sage_scale.vision.packed import PackedVideo


class VisualEncoder(nn.Module):
    """PackedVideo to tokens (N, token_dim)."""

    def __init__(self, recipe: Recipe, stage: Stage | None = None) -> None:
        """`stage` is the one that is trained: its augmentation, chunks and compilation; none by default."""
        super().__init__()
        stage = stage or Stage()
        self.settings, self.chunk_frames, self._compile = stage.augment, stage.chunk_frames, stage.compile
        self._compiled: Callable[..., Tensor] | None = None
        model = recipe.model
        self.crop = recipe.vision.crop
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
        of its frames. Frames are augmented in training (or where `augmented` says so) where the video has seeds."""
        if video.features_FC is not None:
            return video.features_FC.to(self.norm.weight.dtype)
        if self.backbone is None or video.frames_FCHW is None:
            raise ValueError("the recipe has vision.kind=features, but the video holds frames")
        wanted = self.training if augmented is None else augmented
        active = wanted and video.clip_seeds_B is not None and self.settings.active
        clip_F = video.frame_clip_F()

        def some(rows: slice) -> Tensor:
            kind = self.norm.weight.dtype
            x_FCHW = frame_pixels(video, rows, clip_F[rows], self.settings, self.crop, active, kind)
            return self._through_backbone(x_FCHW, centred=video.background_BCHW is not None)

        frames = len(video.frames_FCHW)
        if not self.chunk_frames:
            return some(slice(0, frames))
        return in_chunks(self.backbone, some, frames, self.chunk_frames)

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
