"""A batch: one rank's part of one step, decoded and packed; and the request for it.

Shape letters: B clips, N segments of all clips, F stored frames of all segments, C feature width, H and W sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from sage_scale.config import Recipe
from sage_scale.errors import UsageError
from sage_scale.streaming.read_counts import ReadCounts
from sage_scale.vision.packed import PackedVideo

Allocate = Callable[[int], NDArray[np.uint8]]
"""Returns uint8 (size,), uninitialised, not held elsewhere."""


@dataclass(frozen=True, kw_only=True)
class SampleShape:
    """The shape of every sample of a dataset, so that a batch of no clips has the right shapes too."""

    size: int = 0
    """Side of a frame, pixels; 0 for features."""
    background: bool = False
    """Whether a clip comes with its median frame."""
    feature_dim: int = 0
    """C; 0 for frames."""
    stride: int = 1
    """Every stride-th frame is stored."""
    stored_views: int = 1
    """Views of a clip's features in a sample."""
    views: int = 1
    """Number of these, from the first, that epochs take in turn."""

    @classmethod
    def of(cls, recipe: Recipe) -> SampleShape:
        """Returns the shape that the recipe's vision section makes."""
        stride = recipe.vision.frame_stride
        if recipe.vision.kind == "features":
            return cls(feature_dim=recipe.model.feature_dim, stride=stride)
        background = recipe.vision.background == "median"
        return cls(size=recipe.vision.size, background=background, stride=stride)

    def view(self, key: str, epoch: int) -> int:
        """Returns a clip's view in an epoch: each in turn, and in any epoch about as many clips in each."""
        return (int(key, 16) % self.views + epoch) % self.views

    def new(self, rows: int, allocate: Allocate | None = None) -> NDArray:
        """Returns an uninitialised array of so many frames, uint8 (rows, 3, H, W), or features, float16 (rows, C)."""
        shape = (rows, self.feature_dim) if self.feature_dim else (rows, 3, self.size, self.size)
        dtype = np.dtype(np.float16 if self.feature_dim else np.uint8)
        if allocate is None:
            return np.empty(shape, dtype)
        return allocate(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """The samples of one rank's part of one step."""

    epoch: int
    samples_B: NDArray[np.int64]
    """Numbers of the samples in the catalog."""
    positions_B: NDArray[np.int64]
    """Their positions in the epoch."""
    global_batch: int
    """Samples of the step over all ranks."""
    position: int
    """Position in the epoch after the step."""
    prefetch_A: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Samples of blocks that this step or a later one needs first: to be prefetched."""

    def batch_fields(self, rows: list[int] | slice) -> dict[str, Any]:
        """Returns the fields of a batch of these rows that come from the request."""
        return {
            "positions_B": self.positions_B[rows],
            "global_batch": self.global_batch,
            "epoch": self.epoch,
            "position": self.position,
        }


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One rank's part of one step, samples in the order of their positions; may be of any size, also empty."""

    keys: list[str]
    """B sample keys."""
    positions_B: NDArray[np.int64]
    """int64 (B,): position of each sample in the epoch's global order."""
    global_batch: int
    """Samples of the whole step, over all ranks."""
    epoch: int
    """Epoch, from 0."""
    position: int
    """Position in the epoch, in samples, after this step."""
    counts: ReadCounts = field(default_factory=ReadCounts)
    """Cost of reading it."""

    def __getitem__(self, name: object) -> Any:
        """Raises TypeError, naming the attributes: a batch is no mapping."""
        own = [field.name for field in fields(self)]
        own += [name for name, value in vars(type(self)).items() if isinstance(value, property)]
        raise TypeError(f"a {type(self).__name__} has attributes, as in batch.keys: {', '.join(own)}")


@dataclass(frozen=True, kw_only=True)
class Batch(StepBatch):
    """The clips of one rank in one step."""

    metas: list[dict[str, Any]]
    """B mappings: id, sentence, pseudo_glosses, language, fps, frame_stride, frames, source, signer, split."""
    segments: list[NDArray[np.int32]]
    """B arrays (N, 2): half-open intervals of frames at the recipe's rate."""
    video: PackedVideo
    """The frames or features of the clips' segments."""
    weights_B: Tensor
    """float32 (B,): 1 for a clip, 0 for one that only keeps a rank in step."""

    @property
    def sentences(self) -> list[str]:
        """Returns the B sentences; "" where a clip has none."""
        return [meta["sentence"] for meta in self.metas]

    @property
    def languages(self) -> list[str]:
        """Returns the BCP 47 tags of the B sentences."""
        return [meta["language"] for meta in self.metas]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """Returns the batch with its tensors on another device; Lightning and accelerate call it."""
        moved = self.weights_B.to(device, non_blocking=non_blocking)
        return replace(self, video=self.video.to(device, non_blocking), weights_B=moved)

    def select(self, rows: slice | Sequence[int]) -> Batch:
        """Returns the clips of these rows, in this order, as a batch of the same step."""
        chosen = list(range(len(self.keys))[rows]) if isinstance(rows, slice) else list(rows)
        rows_B = torch.tensor(chosen, dtype=torch.int64)
        return replace(
            self,
            keys=[self.keys[row] for row in chosen],
            metas=[self.metas[row] for row in chosen],
            segments=[self.segments[row] for row in chosen],
            video=_select_clips(self.video, rows_B),
            weights_B=self.weights_B[rows_B],
            positions_B=self.positions_B[chosen],
        )

    def by_length(self) -> Batch:
        """Returns the same clips sorted by their number of segments: micro-batches of them pad little."""
        return self.select(np.argsort(self.video.clip_segments_B.numpy(), kind="stable").tolist())

    def share_memory(self) -> None:
        """Moves the tensors to memory that another process may map. Raises RuntimeError where /dev/shm is full."""
        for tensor in (*vars(self.video).values(), self.weights_B):
            if tensor is not None:
                tensor.share_memory_()

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory (DataLoader calls this for pin_memory=True)."""
        pinned = {n: value.pin_memory() for n, value in vars(self.video).items() if isinstance(value, Tensor)}
        return replace(self, video=replace(self.video, **pinned), weights_B=self.weights_B.pin_memory())


def _refuse_to_collate(batches: Sequence[StepBatch], *, collate_fn_map: Any = None) -> Any:
    raise UsageError(
        "the stream makes whole batches, which a DataLoader cannot collate again: give it "
        "DataLoader(stream, batch_size=None), and the stream the batch size (open_stream(..., batch_size=...))"
    )


# DataLoader looks an item's type up here before it fails with a bare TypeError.
default_collate_fn_map[StepBatch] = _refuse_to_collate


def _select_clips(video: PackedVideo, rows_B: Tensor) -> PackedVideo:
    segment_N = _runs(video.clip_segments_B, rows_B)
    frame_F = _runs(video.segment_frames_N, segment_N)
    along = {
        "clip_segments_B": rows_B,
        "background_BCHW": rows_B,
        "clip_seeds_B": rows_B,
        "segment_frames_N": segment_N,
        "frames_FCHW": frame_F,
        "features_FC": frame_F,
    }
    picked = {name: value[along[name]] for name, value in vars(video).items() if isinstance(value, Tensor)}
    return replace(video, **picked)


def _runs(lengths: Tensor, rows: Tensor) -> Tensor:
    """Returns the indices of the elements of the given rows, where row i is a run of lengths[i] elements."""
    chosen = lengths[rows]
    begins = torch.cumsum(lengths, 0)[rows] - chosen
    before = torch.cumsum(chosen, 0) - chosen
    return torch.repeat_interleave(begins - before, chosen) + torch.arange(int(chosen.sum()))
