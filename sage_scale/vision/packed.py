"""Packed video: the frames (or features) of the segments of several clips, without padding, and clip seeds.

Shape letters here and in every package above: B clips, N segments of all clips, F stored frames of all segments,
C feature width, H and W image sides, T frames of one clip at the recipe's rate.

A clip seed decides a clip's augmentation and dropout. Random numbers are a counter-based hash of it (the finaliser of
SplitMix64, Steele et al. 2014): no layout of ranks, batches or workers changes them, nor does recomputing a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


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
    clip_seeds_B: Tensor | None = None
    """int64 (B,): a hash of (seed, epoch, sample) that decides the clip's augmentation and dropout."""

    @property
    def clips(self) -> int:
        """Returns B."""
        return int(self.clip_segments_B.numel())

    def frame_clip_F(self) -> Tensor:
        """Returns int64 (F,): the clip that each frame belongs to."""
        segment_clip_N = torch.repeat_interleave(self.clip_segments_B)
        return torch.repeat_interleave(segment_clip_N, self.segment_frames_N)

    def clip_frames_B(self) -> Tensor:
        """Returns int64 (B,): the stored frames of each clip, all segments together."""
        segment_clip_N = torch.repeat_interleave(self.clip_segments_B)
        return torch.zeros_like(self.clip_segments_B).index_add(0, segment_clip_N, self.segment_frames_N)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> PackedVideo:
        """Returns the same video on another device."""
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def joined(videos: Sequence[PackedVideo]) -> PackedVideo:
    """Returns the clips of all `videos`, which hold the same kind of content, as one; clip after clip."""
    names = [name for name, value in vars(videos[0]).items() if value is not None]
    return PackedVideo(**{name: torch.cat([getattr(video, name) for video in videos]) for name in names})


def mix(key: Tensor, counter: Tensor | int) -> Tensor:
    """Returns int64 hash of two int64 tensors (or a tensor and a number), elementwise with broadcasting."""
    if isinstance(counter, Tensor):
        z = key + counter * _GOLDEN + _GOLDEN
    else:
        z = key + _wrap(counter * _GOLDEN + _GOLDEN)
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def uniform(key: Tensor, counter: Tensor | int) -> Tensor:
    """Returns float32 in [0, 1), of 24 bits, with the shape of `mix(key, counter)`."""
    return _shift(mix(key, counter), 40).to(torch.float32) / 2**24


def view_seed(key: str, view: int) -> int:
    """Returns the seed of one augmented view of a clip, a function of the clip's key (16 hex digits) and the view."""
    return (int(key, 16) ^ (view * 0x9E3779B97F4A7C15)) & ((1 << 62) - 1)


def _shift(z: Tensor, bits: int) -> Tensor:
    # torch shifts signed integers arithmetically; the mask makes the shift a logical one.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _wrap(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value
