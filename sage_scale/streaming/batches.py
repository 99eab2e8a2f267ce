"""A batch: one rank's part of one step, decoded and packed; and how samples become one.

Shape letters: B clips, N segments of all clips, F stored frames of all segments, C feature width, H and W
sides.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sage_scale.config import Recipe
from sage_scale.errors import DatasetError
from sage_scale.shards import Sample
from sage_scale.streaming.frames import grid_rows
from sage_scale.vision.packed import PackedVideo


@dataclass(frozen=True, kw_only=True)
class SampleShape:
    """What every sample of a dataset looks like, so that a batch of no clips has the right shapes too."""

    size: int = 0
    """Side of a frame, pixels; 0 for features."""
    background: bool = False
    """Whether a clip comes with its median frame."""
    feature_dim: int = 0
    """C; 0 for frames."""

    @classmethod
    def of(cls, recipe: Recipe) -> SampleShape:
        """The shape that the recipe's vision section makes."""
        if recipe.vision.kind == "features":
            return cls(feature_dim=recipe.model.feature_dim)
        return cls(size=recipe.vision.size, background=recipe.vision.background == "median")


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
    """Reads that were repeated because the bytes did not have their hash."""
    skipped: tuple[str, ...] = ()
    """One line for each damaged sample that was left out (stream.on_corrupt=skip)."""

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(**{name: value + getattr(other, name) for name, value in vars(self).items()})


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
        return collate(
            [], shape, seed=0, positions_B=np.empty(0, np.int64), global_batch=global_batch, epoch=epoch,
            position=position,
        )  # fmt: skip

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

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (what a DataLoader calls for pin_memory=True)."""
        pinned = {n: value.pin_memory() for n, value in vars(self.video).items() if isinstance(value, Tensor)}
        return replace(self, video=replace(self.video, **pinned), weights_B=self.weights_B.pin_memory())


@dataclass(frozen=True, kw_only=True)
class DecodedSample:
    """One clip, ready to be packed."""

    key: str
    meta: dict[str, Any]
    segments_N2: NDArray[np.int32]
    """Half-open intervals of frames."""
    segment_frames_N: Tensor
    """int64 (N,): stored frames of each segment."""
    frames_FCHW: Tensor | None = None
    background_CHW: Tensor | None = None
    features_FC: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))


def decode_sample(sample: Sample, shape: SampleShape) -> DecodedSample:
    """Decode the frames of a sample's segments, and no others. Raises DatasetError where it has another
    shape.
    """
    stride = int(sample.meta["frame_stride"])
    if shape.feature_dim:
        if (
            sample.features is None
            or sample.features.ndim != 2
            or sample.features.shape[1] != shape.feature_dim
        ):
            have = "no features" if sample.features is None else f"features of shape {sample.features.shape}"
            raise DatasetError(
                f"sample {sample.key} has {have} where the recipe expects width {shape.feature_dim}: "
                "use the recipe the dataset was made with (vision.kind, model.feature_dim)"
            )
        rows_F, segment_frames = grid_rows(sample.segments, stride, len(sample.features))
        features_FC = torch.from_numpy(sample.features[rows_F])
        return DecodedSample(
            key=sample.key, meta=sample.meta, segments_N2=sample.segments,
            segment_frames_N=torch.from_numpy(segment_frames),
            features_FC=features_FC,
        )  # fmt: skip
    if not sample.frames:
        raise DatasetError(
            f"sample {sample.key} has no frames: set vision.kind=features, or use another dataset"
        )
    rows_F, segment_frames = grid_rows(sample.segments, stride, max(sample.frames) // stride + 1)
    return DecodedSample(
        key=sample.key,
        meta=sample.meta,
        segments_N2=sample.segments,
        segment_frames_N=torch.from_numpy(segment_frames),
        frames_FCHW=_decode_frames(sample, (rows_F * stride).tolist(), shape.size),
        background_CHW=_decode_background(sample, shape) if shape.background else None,
    )


def _decode_frames(sample: Sample, numbers: Sequence[int], size: int) -> Tensor:
    frames_FCHW = torch.empty((len(numbers), 3, size, size), dtype=torch.uint8)
    place: dict[int, int] = {}
    for row, number in enumerate(numbers):
        if number in place:  # two segments between the same grid points share a frame
            frames_FCHW[row] = frames_FCHW[place[number]]
            continue
        jpeg = (sample.frames or {}).get(number)
        if jpeg is None:
            raise DatasetError(f"sample {sample.key} lacks frame {number}: run `sage-scale shards verify`")
        frames_FCHW[row] = _decode_jpeg(jpeg, size, f"frame {number} of sample {sample.key}")
        place[number] = row
    return frames_FCHW


def _decode_background(sample: Sample, shape: SampleShape) -> Tensor:
    if sample.background is None:
        raise DatasetError(
            f"sample {sample.key} has no background: set vision.background=none, or precompute with it"
        )
    return _decode_jpeg(sample.background, shape.size, f"background of sample {sample.key}")


def _decode_jpeg(jpeg: bytes, size: int, what: str) -> Tensor:
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            if image.size != (size, size):  # before the pixels are decoded: a header may claim anything
                raise DatasetError(
                    f"{what} is {image.size[0]} x {image.size[1]} pixels, the recipe says vision.size={size}"
                )
            pixels_HWC = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except OSError as error:
        raise DatasetError(f"{what} is no readable JPEG ({error}): run `sage-scale shards verify`") from None
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def draw(seed: int, epoch: int, key: str) -> int:
    """A number below 2^63 for a clip in an epoch: xxh3-64 of (seed, epoch, key), whatever the layout of the
    job.
    """
    return xxhash.xxh3_64_intdigest(f"{seed} {epoch} {key}".encode()) >> 1


def collate(
    samples: Sequence[DecodedSample],
    shape: SampleShape,
    *,
    seed: int,
    positions_B: NDArray[np.int64],
    global_batch: int,
    epoch: int,
    position: int,
    counts: ReadCounts | None = None,
) -> Batch:
    """Pack decoded samples, clip after clip, without padding."""
    no_segments = torch.empty(0, dtype=torch.int64)
    frames = background = features = None
    if shape.feature_dim:
        nothing = torch.empty((0, shape.feature_dim), dtype=torch.float16)
        features = torch.cat([nothing, *_given(sample.features_FC for sample in samples)])
    else:
        nothing = torch.empty((0, 3, shape.size, shape.size), dtype=torch.uint8)
        frames = torch.cat([nothing, *_given(sample.frames_FCHW for sample in samples)])
        if shape.background:
            backgrounds = [value[None] for value in _given(sample.background_CHW for sample in samples)]
            background = torch.cat([nothing, *backgrounds])
    video = PackedVideo(
        segment_frames_N=torch.cat([no_segments, *(sample.segment_frames_N for sample in samples)]),
        clip_segments_B=torch.tensor([len(sample.segment_frames_N) for sample in samples], dtype=torch.int64),
        frames_FCHW=frames,
        background_BCHW=background,
        features_FC=features,
        draws_B=torch.tensor([draw(seed, epoch, sample.key) for sample in samples], dtype=torch.int64),
    )
    return Batch(
        keys=[sample.key for sample in samples],
        metas=[sample.meta for sample in samples],
        segments=[sample.segments_N2 for sample in samples],
        video=video,
        weights_B=torch.ones(len(samples)),
        positions_B=positions_B,
        global_batch=global_batch,
        epoch=epoch,
        position=position,
        counts=counts or ReadCounts(),
    )


def _given(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _select_clips(video: PackedVideo, rows_B: Tensor) -> PackedVideo:
    segment_N = _runs(video.clip_segments_B, rows_B)
    frame_F = _runs(video.segment_frames_N, segment_N)
    along = {
        "clip_segments_B": rows_B,
        "background_BCHW": rows_B,
        "draws_B": rows_B,
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
