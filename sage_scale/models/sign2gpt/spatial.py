"""The spatial model of Sign2GPT: one row of 512 a frame, of the frames that a training step draws (section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sage_scale.config import Recipe, Stage
from sage_scale.models.sign2gpt.positions import packed_positions
from sage_scale.models.sign2gpt.vit import VisionTransformer
from sage_scale.nn.batchnorm import BatchNorm
from sage_scale.nn.dropout import token_seeds
from sage_scale.nn.frame_encoder import FrameFeatures, check_frame_encoder, load_backbone, make_frame_encoder
from sage_scale.streaming import Batch
from sage_scale.untrusted.files import expanded
from sage_scale.vision.packed import PackedVideo, mix, uniform

_SALT = 60_000


class SpatialModel(FrameFeatures):
    """PackedVideo to Z* (F, width): class token (or ResNet's mean, or stored features), Linear, BatchNorm.

    Only real frames are there, so only they reach the statistics. BatchNorm stands behind the chunks, so chunks of a
    vision transformer leave `model.batchnorm=sync` as it is.
    """

    def __init__(self, recipe: Recipe, stage: Stage | None = None) -> None:
        settings = recipe.model.sign2gpt
        backbone = None
        if recipe.vision.kind == "frames":
            resnet = settings.spatial != "dinov2"
            backbone = make_frame_encoder(recipe) if resnet else VisionTransformer(settings)
            load_backbone(backbone, recipe.model.backbone.weights)
        super().__init__(recipe, stage, backbone)
        self.project = nn.Linear(backbone.width if backbone else recipe.model.feature_dim, settings.width)
        self.norm = BatchNorm(settings.width, recipe.model.batchnorm)

    def forward(self, video: PackedVideo) -> Tensor:
        """Returns Z* (F, width). Raises ValueError as `frame_features`."""
        return self.rows(self.frame_features(video))

    def rows(self, features_FC: Tensor) -> Tensor:
        """Returns Z* (F, width) of what `frame_features` gave."""
        return self.norm(self.project(features_FC))

    def encode_frames(
        self, pixels: Callable[[slice], Tensor], video: PackedVideo, count: int, centred: bool
    ) -> Tensor:
        if not isinstance(self.backbone, VisionTransformer):
            return super().encode_frames(pixels, video, count, centred)
        seeds_F = token_seeds(video.clip_seeds_B, video.clip_frames_B())
        return self.backbone(pixels, count, seeds_F, self.chunk_frames, centred)


def check_spatial(recipe: Recipe) -> None:
    """Raise CheckpointError where the folder of a trained frame encoder has no image model."""
    if recipe.model.sign2gpt.spatial == "resnet":
        check_frame_encoder(recipe)


def frozen_files(recipe: Recipe) -> list[Path]:
    """Returns the files that the frozen part of the spatial model comes from."""
    weights = recipe.model.sign2gpt.vit_weights
    frames = recipe.vision.kind == "frames" and recipe.model.sign2gpt.spatial == "dinov2"
    return [expanded(weights)] if weights and frames else []


def sizes(recipe: Recipe, batch: Batch) -> dict[str, float]:
    """Returns the numbers of frames and tokens (of the sign encoder) in a rank's part of a batch."""
    frames_B = batch.video.clip_frames_B()
    settings = recipe.model.sign2gpt
    halved = settings.spatial != "signs" and settings.downsample_after > 0
    tokens_B = (frames_B + 1) // 2 if halved else frames_B
    return {"frames": float(frames_B.sum()), "visual_tokens": float(tokens_B.sum())}


def drawn_frames(video: PackedVideo, max_frames: int, start_jitter: int, stride: int) -> PackedVideo:
    """Returns the same clips with fewer frames, each one segment, as `clip_seeds_B` decide (released code).

    The start moves by 0 to `start_jitter` frames of the video, of which every `stride`-th is stored; at least one frame
    stays. Of a clip with more than `max_frames` a random subset of as many is taken, in order; 0 takes all.
    """
    if video.clip_seeds_B is None or not video.clips or not (max_frames or start_jitter):
        return video
    frames_B, clip_seeds_B = video.clip_frames_B(), video.clip_seeds_B
    clip_F, position_F = packed_positions(frames_B)
    skipped_B = (uniform(clip_seeds_B, _SALT) * (start_jitter + 1)).long() // stride
    kept_F = position_F >= torch.minimum(skipped_B, frames_B - 1)[clip_F]
    if max_frames:
        key_F = uniform(mix(clip_seeds_B, _SALT + 1)[clip_F], position_F)
        key_F = torch.where(kept_F, key_F, 2.0)
        # Ordered by clip, then by key: the position in this order is the number of frames of the clip before.
        order_F = (clip_F + key_F.double() / 4).argsort()
        kept_F = kept_F.clone()
        kept_F[order_F[position_F >= max_frames]] = False
    lengths_B = torch.zeros_like(frames_B).index_add(0, clip_F, kept_F.long())
    return replace(
        video,
        segment_frames_N=lengths_B,
        clip_segments_B=torch.ones_like(lengths_B),
        frames_FCHW=None if video.frames_FCHW is None else video.frames_FCHW[kept_F],
        features_FC=None if video.features_FC is None else video.features_FC[kept_F],
    )
