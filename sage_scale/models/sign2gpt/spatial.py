"""The spatial model of Sign2GPT: one row of 512 a frame (section 3.1, "Spatial Backbone")."""

from __future__ import annotations

from torch import Tensor, nn

from sage_scale.config import Recipe, Stage
from sage_scale.models.sign2gpt.frames import clip_frames
from sage_scale.models.sign2gpt.vit import VisionTransformer
from sage_scale.nn.batchnorm import BatchNorm
from sage_scale.nn.chunked import in_chunks
from sage_scale.nn.dropout import token_seeds
from sage_scale.nn.frame_encoder import FrameEncoder, frame_pixels, load_backbone
from sage_scale.vision.packed import PackedVideo


class SpatialModel(nn.Module):
    """PackedVideo to Z* (F, width): class token (or ResNet's mean, or stored features), Linear, BatchNorm.

    Only real frames are there, so only they reach the statistics. BatchNorm stands behind the chunks, so chunks of a
    vision transformer leave `model.batchnorm=sync` as it is.
    """

    def __init__(self, recipe: Recipe, stage: Stage | None = None) -> None:
        """`stage` is the one that is trained: its augmentation and chunks; none by default."""
        super().__init__()
        stage = stage or Stage()
        settings = recipe.model.sign2gpt
        self.settings, self.chunk_frames, self.crop = stage.augment, stage.chunk_frames, recipe.vision.crop
        self.backbone: VisionTransformer | FrameEncoder | None = None
        width = recipe.model.feature_dim
        if recipe.vision.kind == "frames":
            if settings.spatial == "dinov2":
                self.backbone = VisionTransformer(settings)
            else:
                self.backbone = FrameEncoder(recipe.model.backbone, self.crop, recipe.model.batchnorm)
                if recipe.model.backbone.weights:
                    load_backbone(self.backbone, recipe.model.backbone.weights)
            width = self.backbone.width
        self.project = nn.Linear(width, settings.width)
        self.norm = BatchNorm(settings.width, recipe.model.batchnorm)

    def forward(self, video: PackedVideo) -> Tensor:
        """Z* (F, width). Raises ValueError where the recipe has stored features and the video none."""
        return self.rows(self.frame_features(video))

    def rows(self, features_FC: Tensor) -> Tensor:
        """Z* (F, width) of what `frame_features` gave."""
        return self.norm(self.project(features_FC))

    def frame_features(self, video: PackedVideo, augmented: bool | None = None) -> Tensor:
        """(F, C): stored features where the video has them, else the backbone's of its frames.

        Frames are augmented in training (or where `augmented` says so) where the video has seeds.
        """
        if video.features_FC is not None:
            return video.features_FC.to(self.norm.weight.dtype)
        if self.backbone is None or video.frames_FCHW is None:
            raise ValueError("the recipe has vision.kind=features, but the video holds frames")
        wanted = self.training if augmented is None else augmented
        active = wanted and video.clip_seeds_B is not None and self.settings.active
        clip_F = video.frame_clip_F()
        count, centred = len(video.frames_FCHW), video.background_BCHW is not None

        def pixels(rows: slice) -> Tensor:
            kind = self.norm.weight.dtype
            return frame_pixels(video, rows, clip_F[rows], self.settings, self.crop, active, kind)

        if isinstance(self.backbone, VisionTransformer):
            seeds_F = (
                None if video.clip_seeds_B is None else token_seeds(video.clip_seeds_B, clip_frames(video))
            )
            return self.backbone(pixels, count, seeds_F, self.chunk_frames, centred)
        backbone = self.backbone

        def some(rows: slice) -> Tensor:
            return backbone(pixels(rows), centred=centred)

        if not self.chunk_frames:
            return some(slice(0, count))
        return in_chunks(backbone, some, count, self.chunk_frames)
