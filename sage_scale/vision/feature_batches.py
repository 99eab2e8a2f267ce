"""Whole batches for a frozen backbone, filled with the frames of one clip after the other.

A batch has a fixed shape, so what is not filled is computed for nothing: with clips of 60 frames and batches of 256
three quarters of the work. Rows are bit for bit those of a clip by itself (`FrozenBackbone.rows`), so mixing changes no
byte. On a GPU this is tried out once with each backbone, and where it does not hold each clip has batches of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np
import torch

from sage_scale.vision.backbones import FrozenBackbone
from sage_scale.vision.median import median_frame

Tag = TypeVar("Tag")


class FeatureBatches(Generic[Tag]):
    """Takes the pictures of clips and gives their features, in the same order, as soon as their batches are full."""

    def __init__(self, backbone: FrozenBackbone) -> None:
        assert backbone.network is not None, "keypoints need no batches"
        self.backbone = backbone
        vision = backbone.vision
        shape = (vision.backbone_batch, vision.crop, vision.crop, 3)
        self._pixels = torch.zeros(shape, dtype=torch.uint8)
        self._background = torch.zeros(shape, dtype=torch.uint8) if backbone.network.background else None
        self._filled = 0
        self._rows: deque[np.ndarray] = deque()
        self._clips: deque[tuple[Tag, int]] = deque()
        self._mixes: bool | None = True if backbone.device.type == "cpu" else None

    def add(self, tag: Tag, frames_nHWC: np.ndarray) -> Iterator[tuple[Tag, np.ndarray]]:
        """Take a clip's uint8 pictures (n, S, S, 3), n >= 1; give (tag, float16 (n, C)) of the clips that are done."""
        vision = self.backbone.vision
        margin = (frames_nHWC.shape[1] - vision.crop) // 2
        middle = slice(margin, margin + vision.crop)
        background = median_frame(frames_nHWC)[middle, middle] if self._background is not None else None
        self._clips.append((tag, len(frames_nHWC)))
        for start in range(0, len(frames_nHWC)):
            self._pixels[self._filled] = torch.from_numpy(frames_nHWC[start, middle, middle])
            if self._background is not None and background is not None:
                self._background[self._filled] = torch.from_numpy(background)
            self._filled += 1
            if self._filled == vision.backbone_batch:
                self._compute()
        if self._filled and not self._may_mix():
            self._compute()
        yield from self._done()

    def flush(self) -> Iterator[tuple[Tag, np.ndarray]]:
        """Give what is left; the last batch is padded."""
        if self._filled:
            self._compute()
        yield from self._done()

    def _compute(self) -> None:
        self._pixels[self._filled :] = 0
        self._rows.extend(self.backbone.rows(self._pixels, self._background)[: self._filled])
        self._filled = 0

    def _done(self) -> Iterator[tuple[Tag, np.ndarray]]:
        while self._clips and self._clips[0][1] <= len(self._rows):
            tag, count = self._clips.popleft()
            yield tag, np.stack([self._rows.popleft() for _ in range(count)])

    def _may_mix(self) -> bool:
        """Whether rows stay the same in another place beside others; tried once, with these pictures."""
        if self._mixes is None:
            places = torch.arange(len(self._pixels)).roll(len(self._pixels) // 3 + 1)
            moved = None if self._background is None else self._background[places]
            rows = self.backbone.rows(self._pixels, self._background)
            self._mixes = np.array_equal(
                self.backbone.rows(self._pixels[places], moved), rows[places.numpy()]
            )
        return self._mixes
