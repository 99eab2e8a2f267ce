"""Packed video: the frames (or features) of the segments of several clips, without padding.

Shape letters here and in every package above: B clips, N segments of all clips, F stored frames of all segments,
C feature width, H and W image sides, T frames of one clip at the recipe's rate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PackedVideo:
    """B clips as one run of F frames, clip after clip, segment after segment, frame after frame."""

    segment_frames_N: Tensor
    """int64 (N,): stored frames of each segment, at least 1; they sum to F."""
    clip_segments_B: Tensor
    """int64 (B,): segments of each clip, at least 1; they sum to N."""
    frames_FCHW: Tensor | None = None
    """uint8 (F, 3, H, W) RGB, or None where features are given."""
    background_BCHW: Tensor | None = None
    """uint8 (B, 3, H, W): the median frame of each clip, or None."""
    features_FC: Tensor | None = None
    """float16 (F, C), or None where frames are given."""
    draws_B: Tensor | None = None
    """int64 (B,): a number for each clip, made of (seed, epoch, sample), that decides augmentation and dropout."""

    @property
    def clips(self) -> int:
        """B."""
        return int(self.clip_segments_B.numel())

    def frame_clip_F(self) -> Tensor:
        """int64 (F,): the clip that each frame belongs to."""
        segment_clip_N = torch.repeat_interleave(self.clip_segments_B)
        return torch.repeat_interleave(segment_clip_N, self.segment_frames_N)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> PackedVideo:
        """The same video on another device."""
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)
