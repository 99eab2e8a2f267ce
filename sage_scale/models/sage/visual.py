"""The visual side: one token for each segment of frames, then the language model's space (SAGE, sections 3.1.3, 3.1.4).

Each frame passes the frame encoder once. A temporal convolution sees its neighbours inside its own segment, the edge
frames repeated; BatchNorm, ReLU and the mean over the segment's frames follow. Other reductions convolve over the whole
clip and pool otherwise (`model.pooling`). All is packed: no padding, no loop.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_scale.config import Model, Recipe, Stage
from sage_scale.nn.batchnorm import BatchNorm
from sage_scale.nn.dropout import keyed_dropout
from sage_scale.nn.frame_encoder import FrameFeatures, make_frame_encoder
from sage_scale.vision.packed import PackedVideo


class VisualEncoder(FrameFeatures):
    """PackedVideo to tokens (N, token_dim), one a segment; `model.pooling` says how a segment's frames become one."""

    def __init__(self, recipe: Recipe, stage: Stage | None = None) -> None:
        encoder = make_frame_encoder(recipe) if recipe.vision.kind == "frames" else None
        super().__init__(recipe, stage, encoder)
        model = recipe.model
        self.pooling, self.margin = model.pooling, model.window_margin
        self.temporal = TemporalConv(
            encoder.width if encoder else model.feature_dim, model.token_dim, model.conv_kernel
        )
        self.norm = BatchNorm(model.token_dim, model.batchnorm)

    def forward(self, video: PackedVideo) -> Tensor:
        """Returns tokens (N, token_dim). Raises ValueError as `frame_features`."""
        video = self.pooled_frames(video)
        return self.tokens(self.frame_features(video), video)

    def pooled_frames(self, video: PackedVideo) -> PackedVideo:
        """Returns the video with the frames that tokens are made of: each segment's first (`first`), else all."""
        return first_frames(video) if self.pooling == "first" else video

    def tokens(self, features_FC: Tensor, video: PackedVideo) -> Tensor:
        """Returns tokens (N, token_dim) of the features (F, C) of `pooled_frames`: temporal convolution, BatchNorm,
        ReLU, and the pooling of each segment's frames."""
        return self._pooled(self._frame_vectors(features_FC, video), video)

    def with_frames(self, video: PackedVideo) -> tuple[Tensor, Tensor, Tensor]:
        """Returns a vector a frame of `pooled_frames` (F, token_dim), the number of these frames in each clip (B,), and
        `forward`, which pools them."""
        video = self.pooled_frames(video)
        x_FD = self._frame_vectors(self.frame_features(video), video)
        return x_FD, video.clip_frames_B(), self._pooled(x_FD, video)

    def _frame_vectors(self, features_FC: Tensor, video: PackedVideo) -> Tensor:
        runs = video.segment_frames_N if self.pooling == "mean" else video.clip_frames_B()
        return torch.relu(self.norm(self.temporal(features_FC, runs)))

    def _pooled(self, x_FD: Tensor, video: PackedVideo) -> Tensor:
        frames_N = video.segment_frames_N
        if self.pooling == "window":
            rows_R, frames_N = window_frames(video, self.margin)
            x_FD = x_FD[rows_R]
        reduce = "max" if self.pooling == "max" else "mean"
        return torch.segment_reduce(x_FD, reduce, lengths=frames_N, axis=0, unsafe=True)


def first_frames(video: PackedVideo) -> PackedVideo:
    """Returns the same segments, of each its first frame alone."""
    frames_N = video.segment_frames_N
    first_N = frames_N.cumsum(0) - frames_N
    return replace(
        video,
        segment_frames_N=torch.ones_like(frames_N),
        frames_FCHW=None if video.frames_FCHW is None else video.frames_FCHW[first_N],
        features_FC=None if video.features_FC is None else video.features_FC[first_N],
    )


def window_frames(video: PackedVideo, margin: int) -> tuple[Tensor, Tensor]:
    """Returns the frames of each segment's window, int64 (R,), and their number, int64 (N,): the segment with `margin`
    frames on both sides, as far as its clip reaches."""
    frames_N, frames_B = video.segment_frames_N, video.clip_frames_B()
    end_N, clip_end_B = frames_N.cumsum(0), frames_B.cumsum(0)
    clip_N = torch.repeat_interleave(video.clip_segments_B)
    begin_N = torch.maximum(end_N - frames_N - margin, (clip_end_B - frames_B)[clip_N])
    counts_N = torch.minimum(end_N + margin, clip_end_B[clip_N]) - begin_N
    shift_N = begin_N - (counts_N.cumsum(0) - counts_N)
    shift_R = torch.repeat_interleave(shift_N, counts_N)
    return torch.arange(shift_R.numel(), device=shift_R.device) + shift_R, counts_N


class TemporalConv(nn.Conv1d):
    """A 1-D convolution over the frames of each run (segment or clip), the edge frames repeated: n frames in, n out.

    Equals nn.Conv1d on every run after repeating its first and last frame (kernel - 1) / 2 times each. Repeating
    features, not frames, spares the ResNet 1.8 to 3 times the work.
    """

    def forward(self, x_FC: Tensor, run_frames: Tensor) -> Tensor:  # type: ignore[override]
        """`run_frames`: int64, the frames of each run; they sum to F."""
        neighbours_FK = neighbour_frames(run_frames, self.kernel_size[0])
        window_FKC = x_FC[neighbours_FK].flatten(1)
        weight_DKC = self.weight.transpose(1, 2).flatten(1)
        return nn.functional.linear(window_FKC, weight_DKC, self.bias)


def neighbour_frames(run_frames: Tensor, kernel: int) -> Tensor:
    """Returns int64 (F, kernel): the frames that each frame's window covers, clamped to the frame's own run."""
    begins = run_frames.cumsum(0) - run_frames
    run_F = torch.repeat_interleave(run_frames)
    first_F = begins[run_F]
    last_F = first_F + run_frames[run_F] - 1
    position_F = torch.arange(run_F.numel(), device=run_F.device)
    offsets_K = torch.arange(kernel, device=run_F.device) - kernel // 2
    return (position_F[:, None] + offsets_K).clamp(min=first_F[:, None], max=last_F[:, None])


class Mapper(nn.Module):
    """Visual tokens (N, token_dim) into the language model's embedding space (N, d_model) (SAGE, section 3.1.4):
    `mapper_blocks` times normalisation, Linear, GELU, dropout.

    The released code's last block is the Linear alone (`mapper_last=linear`).
    """

    def __init__(self, model: Model, d_model: int) -> None:
        super().__init__()
        self.dropout = model.dropout
        self.last_linear = model.mapper_last == "linear"
        widths = [model.token_dim] + [d_model] * (model.mapper_blocks - 1)
        self.linears = nn.ModuleList(nn.Linear(width, d_model) for width in widths)
        normed = widths[:-1] if self.last_linear else widths
        self.norms = nn.ModuleList(
            nn.LayerNorm(width) if model.mapper_norm == "layer" else BatchNorm(width, model.batchnorm)
            for width in normed
        )

    def forward(self, x_ND: Tensor, seeds_N: Tensor | None = None) -> Tensor:
        """`seeds_N` (int64), one a token, decide the dropout; needed in training where `dropout` is not 0."""
        for block, linear in enumerate(self.linears):
            if self.last_linear and block == len(self.linears) - 1:
                return linear(x_ND)
            x_ND = F.gelu(linear(self.norms[block](x_ND)))
            x_ND = keyed_dropout(x_ND, seeds_N, self.dropout, salt=block, training=self.training)
        return x_ND
