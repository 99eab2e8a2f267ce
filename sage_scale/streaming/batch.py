"""A batch, one rank's part of one step, decoded and packed; and what is asked for to have it.

Shape letters: B clips, N segments of all clips, F stored frames of all segments, C feature width, H and W
sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sage_scale.config import Recipe
from sage_scale.vision.packed import PackedVideo


class Memory(Protocol):
    """Where arrays may be made."""

    def take(self, size: int) -> NDArray[np.uint8]:
        """uint8 (size,), uninitialised, held by nobody else."""
        ...


@dataclass(frozen=True, kw_only=True)
class SampleShape:
    """What every sample of a dataset looks like, so that a batch of no clips has the right shapes too."""

    size: int = 0
    """Side of a frame, pixels; 0 for features."""
    background: bool = False
    """Whether a clip comes with its median frame."""
    feature_dim: int = 0
    """C; 0 for frames."""
    stride: int = 1
    """Every how many frames one is stored."""
    stored_views: int = 1
    """Views of a clip's features that a sample holds."""
    views: int = 1
    """Of these the first so many are taken, another each epoch."""

    def view(self, key: str, epoch: int) -> int:
        """The view of a clip in an epoch: each in its turn, and at any time about as many clips in each."""
        return (int(key, 16) % self.views + epoch) % self.views

    @classmethod
    def of(cls, recipe: Recipe) -> SampleShape:
        """The shape that the recipe's vision section makes."""
        if recipe.vision.kind == "features":
            return cls(feature_dim=recipe.model.feature_dim, stride=recipe.vision.frame_stride)
        return cls(
            size=recipe.vision.size,
            background=recipe.vision.background == "median",
            stride=recipe.vision.frame_stride,
        )

    def new(self, rows: int, rooms: Memory | None = None) -> NDArray:
        """Uninitialised room for this many frames, uint8 (rows, 3, H, W), or features, float16 (rows, C), in memory of
        `rooms`."""
        shape = (rows, self.feature_dim) if self.feature_dim else (rows, 3, self.size, self.size)
        dtype = np.dtype(np.float16 if self.feature_dim else np.uint8)
        if rooms is None:
            return np.empty(shape, dtype)
        return rooms.take(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)

    def tensors(self, content: NDArray, backgrounds: NDArray | None) -> dict[str, Tensor | None]:
        """Content and background as the fields of PackedVideo that they belong to, sharing their memory."""
        return {
            "features_FC" if self.feature_dim else "frames_FCHW": torch.from_numpy(content),
            "background_BCHW": None if backgrounds is None else torch.from_numpy(backgrounds),
        }


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """One rank's part of one step."""

    epoch: int
    samples_B: NDArray[np.int64]
    """Numbers of the samples in the catalog."""
    positions_B: NDArray[np.int64]
    """Their places in the epoch."""
    global_batch: int
    """Clips of the step over all ranks."""
    position: int
    """Position in the epoch after the step."""
    prefetch_A: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Samples of blocks that this step or a later one needs first: to be prefetched."""


@dataclass(frozen=True, kw_only=True)
class ReadCounts:
    """What reading has cost; a batch carries its own, the stream adds them up."""

    samples: int = 0
    """Samples delivered."""
    bytes: int = 0
    """Bytes read from folder or store; decoded samples from the cache cost none."""
    cache_hits: int = 0
    """Samples that were in the cache of decoded ones."""
    retries: int = 0
    """Reads that were repeated: the bytes did not have their hash, or the store failed."""
    requests: int = 0
    """Requests to the object store, repeated ones among them."""
    hedges: int = 0
    """Second requests for what was late."""
    fetched: int = 0
    """Bytes that came over the network."""
    node_hits: int = 0
    """Blocks that a step found in the node-local cache."""
    node_misses: int = 0
    """Blocks that it waited for, or did without."""
    read_s: float = 0.0
    """Seconds in which bytes were fetched and checked, over all threads and workers of the rank."""
    decode_s: float = 0.0
    """Seconds in which samples were decoded and packed, counted in the same way."""
    skipped: tuple[str, ...] = ()
    """One line for each damaged sample that was left out (stream.on_corrupt=skip)."""

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __sub__(self, earlier: ReadCounts) -> ReadCounts:
        """What was added since `earlier`."""
        numbers = {n: v - getattr(earlier, n) for n, v in vars(self).items() if n != "skipped"}
        return ReadCounts(**numbers, skipped=self.skipped[len(earlier.skipped) :])


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The clips of one rank in one step, in the order of their positions; B may be 0."""

    keys: list[str]
    """B sample keys."""
    metas: list[dict[str, Any]]
    """B mappings: id, sentence, pseudo_glosses, language, fps, frame_stride, frames, source, signer, split.
    """
    segments: list[NDArray[np.int32]]
    """B arrays (N, 2): half-open intervals of frames at the recipe's rate."""
    video: PackedVideo
    """The frames or features of the clips' segments."""
    weights_B: Tensor
    """float32 (B,): 1 for a clip, 0 for one that only keeps a rank in step."""
    positions_B: NDArray[np.int64]
    """int64 (B,): place of each clip in the epoch's global order."""
    global_batch: int
    """Clips of the whole step, over all ranks."""
    epoch: int
    """Epoch, from 0."""
    position: int
    """Position in the epoch, in samples, after this step."""
    counts: ReadCounts = field(default_factory=ReadCounts)
    """What reading it has cost."""

    @classmethod
    def empty(cls, shape: SampleShape, *, global_batch: int = 0, epoch: int = 0, position: int = 0) -> Batch:
        """A batch of no clips, with every tensor of the right shape and type."""
        none = np.empty(0, np.int64)
        video = PackedVideo(
            segment_frames_N=torch.from_numpy(none),
            clip_segments_B=torch.from_numpy(none),
            clip_seeds_B=torch.from_numpy(none),
            **shape.tensors(shape.new(0), shape.new(0) if shape.background else None),
        )
        return cls(
            keys=[],
            metas=[],
            segments=[],
            video=video,
            weights_B=torch.ones(0),
            positions_B=none,
            global_batch=global_batch,
            epoch=epoch,
            position=position,
        )

    def select(self, rows: slice | Sequence[int]) -> Batch:
        """The clips of these rows, in this order, as a batch of the same step."""
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
        """The same clips, those of like length (in segments) side by side: micro-batches of them pad little.

        Only the order inside this part of the step changes, never which clips are in it.
        """
        return self.select(np.argsort(self.video.clip_segments_B.numpy(), kind="stable").tolist())

    def share_memory(self) -> None:
        """Move the tensors to memory that another process may map. Raises RuntimeError where /dev/shm is full."""
        for tensor in (*vars(self.video).values(), self.weights_B):
            if tensor is not None:
                tensor.share_memory_()

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (what a DataLoader calls for pin_memory=True)."""
        pinned = {n: value.pin_memory() for n, value in vars(self.video).items() if isinstance(value, Tensor)}
        return replace(self, video=replace(self.video, **pinned), weights_B=self.weights_B.pin_memory())


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
    """Places of the elements of the given rows, where row i is a run of lengths[i] elements."""
    chosen = lengths[rows]
    begins = torch.cumsum(lengths, 0)[rows] - chosen
    before = torch.cumsum(chosen, 0) - chosen
    return torch.repeat_interleave(begins - before, chosen) + torch.arange(int(chosen.sum()))
