"""Whole batches for a frozen backbone, filled with the frames of one clip after the other.

A batch has a fixed shape, so unfilled rows are computed for nothing: with clips of 60 frames and batches of 256 three
quarters of the work. Rows are bit for bit those of a clip by itself (`FrozenBackbone.rows`), so mixing changes no byte.
On a GPU this is tested once with each backbone; where it does not hold, each clip has batches of its own.

Shape letters: V views, n frames of a clip, B rows of a batch, S side of a stored picture, C feature width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from sage_scale.vision.backbones import FrozenBackbone
from sage_scale.vision.sampling import median_frame

Tag = TypeVar("Tag")


class FeatureBatches(Generic[Tag]):
    """Takes the pictures of clips and yields their features, in the same order, as soon as their batches are full."""

    def __init__(self, backbone: FrozenBackbone) -> None:
        assert backbone.network is not None, "keypoints need no batches"
        self.backbone = backbone
        vision = backbone.vision
        # An augmented view takes its pixels from all of the picture, the plain one from its middle.
        self._side = vision.size if vision.feature_views > 1 else vision.crop
        shape = (vision.backbone_batch, self._side, self._side, 3)
        self._pixels = torch.zeros(shape, dtype=torch.uint8)
        self._background = torch.zeros(shape, dtype=torch.uint8) if backbone.network.background else None
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
            places = torch.arange(len(self._pixels)).roll(len(self._pixels) // 3 + 1)
            moved = None if self._background is None else self._background[places]
            rows = self._rows_of(self._pixels, self._background, self._seeds)
            again = self._rows_of(self._pixels[places], moved, self._seeds[places])
            self._mixes = np.array_equal(again, rows[places.numpy()])
        return self._mixes
