"""Frozen backbones for `vision.kind=features`: a decoded clip in, one float16 row a frame of the stride grid
out, for each view.

Batches have a fixed, padded shape, because float results depend on it: a clip's features are the same bytes
whatever stands beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sage_scale.config import Vision
from sage_scale.config.data import NETWORK_WIDTHS, feature_width
from sage_scale.errors import ClipRejected, RecipeError
from sage_scale.keypoints.cleaning import interpolated
from sage_scale.keypoints.features import keypoint_features
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.vision.augment import augment, centre_crop
from sage_scale.vision.backbone_choice import BACKBONES, check_weights
from sage_scale.vision.image_models import ImageModel
from sage_scale.vision.pretrained_weights import load_exactly, read_dinov2_weights, read_resnet_weights
from sage_scale.vision.sampling import median_frame

if TYPE_CHECKING:
    from sage_scale.vision.decode import DecodedClip  # it imports PyAV, which a machine with a GPU may lack

_RANDOM_SEED = 34
Tag = TypeVar("Tag")


class FrozenBackbone:
    """Features of a frozen image backbone or of keypoints."""

    def __init__(
        self,
        vision: Vision,
        device: str | torch.device = "cpu",
        network: Any = None,
        background: bool = False,
    ) -> None:
        """`network` (a frame encoder: `width`, and (F, width) of frames from 0 to 255) is used in place of the one that
        `vision.backbone` names; `background` says whether each clip's median frame is subtracted first.

        Raises RecipeError for an unknown backbone or missing weights, CheckpointError for unfit ones.
        """
        self.vision, self.device, self.background = vision, torch.device(device), background
        self.network = network
        if network is None and vision.backbone != "keypoints":
            self.network = _load(vision)
        if self.network is not None:
            self.network.eval().requires_grad_(False).to(self.device)

    @property
    def dim(self) -> int:
        """Returns C, the width of a row; `model.feature_dim` of the recipe must say the same."""
        return (feature_width(self.vision) or 0) if self.network is None else self.network.width

    def __call__(self, decoded: DecodedClip, seeds: Sequence[int] = ()) -> np.ndarray:
        """Returns float16 (V, n, C) for the n frames of the clip's stride grid; row r belongs to frame r * stride.

        The first view is the plain one, and each of `seeds` decides another; keypoints have the plain one alone.
        """
        if self.network is None:
            if decoded.keypoints is None:
                raise ClipRejected("no-keypoints", "the source is not a keypoint file (.npz, .pose)")
            return _keypoint_rows(decoded.keypoints, decoded.stride, self.vision)[None]
        if not len(decoded.frames):
            raise ClipRejected("no-pictures", "the source has no pictures for an image backbone")
        return self.pictures(decoded.frames, seeds)

    def pictures(self, frames_nHWC: np.ndarray, seeds: Sequence[int] = ()) -> np.ndarray:
        """Returns float16 (V, n, C) of the uint8 pictures (n, S, S, 3) of one clip; `vision.crop` pixels of them are
        seen, in the plain view the middle ones."""
        if not len(frames_nHWC):
            return np.zeros((1 + len(seeds), 0, self.dim), np.float16)
        alone: FeatureBatches[int] = FeatureBatches(self)
        ((_, rows),) = (*alone.add(0, frames_nHWC, seeds), *alone.flush())
        return rows

    @torch.inference_mode()
    def rows(
        self, pixels_BHWC: Tensor, background_BHWC: Tensor | None, clip_seeds_B: Tensor | None = None
    ) -> np.ndarray:
        """Returns float16 (B, C) of one full batch of uint8 pictures (B, S, S, 3), S at least `vision.crop`.

        A picture whose seed is -1 is seen as it is, its middle `vision.crop` pixels; the others are changed as
        `vision.view_augment` says. Row b depends on picture b alone, bit for bit: the batch always has the same shape,
        so a kernel does the same sums in the same order for it, wherever it stands and whatever stands beside it (a
        test asserts it).
        """
        assert self.network is not None, "a keypoint backbone sees no pictures"
        dtype = torch.bfloat16 if self.vision.backbone_dtype == "bfloat16" else torch.float32
        full = self._floats(pixels_BHWC)
        if background_BHWC is not None:
            full = full - self._floats(background_BHWC)
        x = centre_crop(full, self.vision.crop)
        if clip_seeds_B is not None:
            clip_seeds_B = clip_seeds_B.to(self.device)
            clip_B = torch.arange(len(clip_seeds_B), device=self.device)
            changed = augment(full, clip_B, clip_seeds_B, self.vision.view_augment, self.vision.crop)
            x = torch.where((clip_seeds_B < 0)[:, None, None, None], x, changed)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return self.network(x, centred=background_BHWC is not None).half().cpu().numpy()

    def _floats(self, pixels_BHWC: Tensor) -> Tensor:
        return pixels_BHWC.to(self.device).permute(0, 3, 1, 2).float()


class FeatureBatches(Generic[Tag]):
    """Takes the pictures of clips and yields their features, in the same order, as soon as their batches are full.

    A batch has a fixed shape, so unfilled rows are computed for nothing: with clips of 60 frames and batches of 256
    three quarters of the work. Rows are bit for bit those of a clip by itself (`FrozenBackbone.rows`), so mixing clips
    changes no byte. On a GPU this is tested once with each backbone; where it does not hold, each clip has batches of
    its own. V views, n frames of a clip, B rows of a batch, S side of a stored picture, C feature width.
    """

    def __init__(self, backbone: FrozenBackbone) -> None:
        assert backbone.network is not None, "keypoints need no batches"
        self.backbone = backbone
        vision = backbone.vision
        # An augmented view takes its pixels from all of the picture, the plain one from its middle.
        self._side = vision.size if vision.feature_views > 1 else vision.crop
        shape = (vision.backbone_batch, self._side, self._side, 3)
        self._pixels = torch.zeros(shape, dtype=torch.uint8)
        self._background = torch.zeros(shape, dtype=torch.uint8) if backbone.background else None
        self._seeds = torch.full(shape[:1], -1, dtype=torch.int64)
        self._filled = 0
        self._rows: deque[np.ndarray] = deque()
        self._clips: deque[tuple[Tag, int, int]] = deque()
        self._mixes: bool | None = True if backbone.device.type == "cpu" else None

    def add(
        self, tag: Tag, frames_nHWC: np.ndarray, seeds: Sequence[int] = ()
    ) -> Iterator[tuple[Tag, np.ndarray]]:
        """Take a clip's uint8 pictures (n, S, S, 3), n >= 1; yields (tag, float16 (V, n, C)) of finished clips.

        The first view is the plain one, and each of `seeds` decides another.
        """
        margin = (frames_nHWC.shape[1] - self._side) // 2
        middle = slice(margin, margin + self._side)
        background = None
        if self._background is not None:
            background = torch.from_numpy(median_frame(frames_nHWC)[middle, middle])
        pictures_nHWC = frames_nHWC[:, middle, middle]
        self._clips.append((tag, 1 + len(seeds), len(frames_nHWC)))
        for seed in (-1, *seeds):
            for picture_HWC in pictures_nHWC:
                self._pixels[self._filled] = torch.from_numpy(picture_HWC)
                if self._background is not None and background is not None:
                    self._background[self._filled] = background
                self._seeds[self._filled] = seed
                self._filled += 1
                if self._filled == len(self._pixels):
                    self._compute()
        if self._filled and not self._may_mix():
            self._compute()
        yield from self._done()

    def flush(self) -> Iterator[tuple[Tag, np.ndarray]]:
        """Yields the remaining clips; the last batch is padded."""
        if self._filled:
            self._compute()
        yield from self._done()

    def _compute(self) -> None:
        self._pixels[self._filled :] = 0
        self._seeds[self._filled :] = -1
        self._rows.extend(self._rows_of(self._pixels, self._background, self._seeds)[: self._filled])
        self._filled = 0

    def _rows_of(self, pixels: Tensor, background: Tensor | None, clip_seeds_B: Tensor) -> np.ndarray:
        return self.backbone.rows(pixels, background, clip_seeds_B if int(clip_seeds_B.max()) >= 0 else None)

    def _done(self) -> Iterator[tuple[Tag, np.ndarray]]:
        while self._clips and self._clips[0][1] * self._clips[0][2] <= len(self._rows):
            tag, views, count = self._clips.popleft()
            rows = np.stack([self._rows.popleft() for _ in range(views * count)])
            yield tag, rows.reshape(views, count, -1)

    def _may_mix(self) -> bool:
        """Returns whether rows are the same at another position of a batch; tested once, with these pictures."""
        if self._mixes is None:
            order = torch.arange(len(self._pixels)).roll(len(self._pixels) // 3 + 1)
            moved = None if self._background is None else self._background[order]
            rows = self._rows_of(self._pixels, self._background, self._seeds)
            again = self._rows_of(self._pixels[order], moved, self._seeds[order])
            self._mixes = np.array_equal(again, rows[order.numpy()])
        return self._mixes


def _keypoint_rows(track_T: KeypointTrack, stride: int, vision: Vision) -> np.ndarray:
    """Returns float16 (n, C), a row for every `stride`-th frame."""
    track_T = interpolated(track_T, vision.keypoint_gap_s)
    grid = track_T.replace(
        points_TKC=track_T.points_TKC[::stride],
        confidence_TK=track_T.confidence_TK[::stride],
        fps=track_T.fps / stride,
    )
    return keypoint_features(
        grid, layout=vision.keypoint_layout, velocities=vision.keypoint_velocities, z=vision.keypoint_z
    )


def _load(vision: Vision) -> ImageModel:
    """Returns the network of a name, on pictures normalised as those of ImageNet."""
    from transformers import Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel

    if vision.backbone not in BACKBONES:
        raise RecipeError(
            f"vision.backbone {vision.backbone!r}; known: {', '.join(BACKBONES)}, or a run's folder"
        )
    if vision.crop > vision.size:
        raise RecipeError(f"vision.crop {vision.crop} is larger than vision.size {vision.size}")
    path = check_weights(vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)  # so that random backbones (tests) agree between actors
        model: nn.Module
        if vision.backbone == "resnet34":
            config = ResNetConfig(
                embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[3, 4, 6, 3], layer_type="basic"
            )
            model, read = ResNetModel(config), read_resnet_weights
        elif vision.crop % 14:
            raise RecipeError(f"vision.crop {vision.crop} is no multiple of 14, the patch of dinov2-vits14")
        else:
            vit = Dinov2Config(
                hidden_size=384, num_hidden_layers=12, num_attention_heads=6, mlp_ratio=4, patch_size=14, image_size=518
            )  # fmt: skip
            model, read = Dinov2Model(vit), read_dinov2_weights
    if path is not None:
        load_exactly(model, read(path), path)
    return ImageModel(model, NETWORK_WIDTHS[vision.backbone])
