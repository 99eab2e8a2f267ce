"""From samples to a batch: rows of features or decoded frames are written straight into the packed array.

One copy a sample: the array is made once for the whole batch, as large as the index says, and a sample's bytes may be
dropped as soon as it is packed, so that the next one is read into memory that is still in the processor's cache.

Shards hold a clip on its stride grid (frames 0, s, 2s, ...). A segment [start, end) is made of the grid frames inside
it; a segment between two grid points is made of the nearest one, so that no segment is empty.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from PIL import Image

from sage_scale.errors import DatasetError
from sage_scale.shards import Sample, read_sample
from sage_scale.streaming.batch import Allocate, Batch, SampleShape, StepRequest
from sage_scale.streaming.read_counts import ReadCounts
from sage_scale.vision.packed import PackedVideo


@dataclass(frozen=True, kw_only=True)
class DecodedSample:
    """One decoded clip, as a cache keeps it. F stored frames of its N segments."""

    key: str
    meta: dict[str, Any]
    segments_N2: NDArray[np.int32]
    """Half-open intervals of frames."""
    segment_frames_N: list[int]
    """Stored frames of each segment."""
    content_F: NDArray
    """uint8 (F, 3, H, W) or float16 (F, C)."""
    background_CHW: NDArray | None = None
    """uint8 (3, H, W)."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        background = 0 if self.background_CHW is None else self.background_CHW.nbytes
        return self.content_F.nbytes + self.segments_N2.nbytes + background


class Packer:
    """Packs samples clip after clip, segment after segment, frame after frame, without padding."""

    def __init__(self, shape: SampleShape, rows: int, allocate: Allocate | None = None) -> None:
        """`rows` frames are expected; more are taken all the same. `allocate` makes the array."""
        self.shape = shape
        self._allocate = allocate
        self._content = shape.new(rows, allocate)
        self._filled = 0
        self._keys: list[str] = []
        self._metas: list[dict[str, Any]] = []
        self._segments: list[NDArray[np.int32]] = []
        self._segment_frames: list[int] = []
        self._backgrounds: list[NDArray] = []

    def add_bytes(self, data: bytes, key: str, where: str, view: int) -> None:
        """Adds the sample in `data`, by its members in the tar `where`. Raises DatasetError."""
        self.add(read_sample(data, key=key, where=where), view)

    def add(self, sample: Sample, view: int = 0) -> None:
        """Decodes the frames of the sample's segments, and no others, into the batch; of features, those of a view.

        Raises DatasetError where the sample is of another shape than the recipe's.
        """
        stride = int(sample.meta["frame_stride"])
        features = sample.view(view)
        stored = np.array([self._stored_rows(sample, features, stride)])
        begin_N, counts_N = grid_rows(sample.segments, np.array([len(sample.segments)]), stride, stored)
        rows_F = run_indices(begin_N, counts_N)
        target = self._next_rows(len(rows_F))
        if features is not None:
            np.take(features, rows_F, axis=0, out=target, mode="clip")  # "raise" makes one more copy
        else:
            for number, row in enumerate(rows_F.tolist()):
                target[number] = self._frame(sample, row * stride)
            if self.shape.background:
                self._backgrounds.append(self._background(sample))
        # A copy: the view would keep all of the sample's bytes alive for as long as the batch.
        self._append(sample.key, sample.meta, sample.segments.copy(), counts_N.tolist())

    def add_decoded(self, sample: DecodedSample) -> None:
        """Adds a clip that was decoded before."""
        self._next_rows(len(sample.content_F))[:] = sample.content_F
        if sample.background_CHW is not None:
            self._backgrounds.append(sample.background_CHW)
        self._append(sample.key, sample.meta, sample.segments_N2, sample.segment_frames_N)

    def last(self) -> DecodedSample:
        """Returns a copy of the clip added last."""
        counts = self._segment_frames[-len(self._segments[-1]) :]
        return DecodedSample(
            key=self._keys[-1],
            meta=self._metas[-1],
            segments_N2=self._segments[-1],
            segment_frames_N=counts,
            content_F=self._content[self._filled - sum(counts) : self._filled].copy(),
            background_CHW=self._backgrounds[-1] if self.shape.background else None,
        )

    def batch(self, seed: int, request: StepRequest, rows: list[int] | slice, counts: ReadCounts) -> Batch:
        """Returns the batch of these rows of the request; the packer's memory becomes its own."""
        content, backgrounds = torch.from_numpy(self._content[: self._filled]), None
        if self.shape.background:
            stacked = np.stack(self._backgrounds) if self._backgrounds else self.shape.new(0)
            backgrounds = torch.from_numpy(stacked)
        video = PackedVideo(
            segment_frames_N=torch.tensor(self._segment_frames, dtype=torch.int64),
            clip_segments_B=torch.tensor([len(segments) for segments in self._segments], dtype=torch.int64),
            clip_seeds_B=torch.tensor(clip_seeds(seed, request.epoch, self._keys), dtype=torch.int64),
            features_FC=content if self.shape.feature_dim else None,
            frames_FCHW=None if self.shape.feature_dim else content,
            background_BCHW=backgrounds,
        )
        return Batch(
            keys=self._keys,
            metas=self._metas,
            segments=self._segments,
            video=video,
            weights_B=torch.ones(len(self._keys)),
            counts=counts,
            **request.batch_fields(rows),
        )

    def _append(
        self, key: str, meta: dict[str, Any], segments_N2: NDArray[np.int32], counts: Sequence[int]
    ) -> None:
        self._keys.append(key)
        self._metas.append(meta)
        self._segments.append(segments_N2)
        self._segment_frames.extend(counts)

    def _next_rows(self, rows: int) -> NDArray:
        begin, self._filled = self._filled, self._filled + rows
        if self._filled > len(self._content):
            larger = self.shape.new(max(self._filled, 2 * len(self._content)), self._allocate)
            larger[:begin] = self._content[:begin]
            self._content = larger
        return self._content[begin : self._filled]

    def _stored_rows(self, sample: Sample, features: NDArray | None, stride: int) -> int:
        width = self.shape.feature_dim
        if width:
            if features is None or features.ndim != 2 or features.shape[1] != width:
                have = "no features" if features is None else f"features of shape {features.shape}"
                raise DatasetError(
                    f"sample {sample.key} has {have} where the recipe expects width {width}: "
                    "use the recipe the dataset was made with (vision.kind, model.feature_dim)"
                )
            return len(features)
        if not sample.frames:
            raise DatasetError(
                f"sample {sample.key} has no frames: set vision.kind=features, or use another dataset"
            )
        return max(sample.frames) // stride + 1

    def _frame(self, sample: Sample, number: int) -> NDArray:
        jpeg = (sample.frames or {}).get(number)
        if jpeg is None:
            raise DatasetError(f"sample {sample.key} lacks frame {number}: run `sage-scale shards verify`")
        return _decode_jpeg(jpeg, self.shape.size, f"frame {number} of sample {sample.key}")

    def _background(self, sample: Sample) -> NDArray:
        if sample.background is None:
            raise DatasetError(
                f"sample {sample.key} has no background: set vision.background=none, or precompute with it"
            )
        return _decode_jpeg(sample.background, self.shape.size, f"background of sample {sample.key}")


def pack_sample(sample: Sample, shape: SampleShape) -> Batch:
    """Returns one sample as a batch. Raises DatasetError where it has another shape."""
    packer, first = Packer(shape, 0), np.zeros(1, np.int64)
    packer.add(sample)
    request = StepRequest(epoch=0, samples_B=first, positions_B=first, global_batch=1, position=0)
    return packer.batch(0, request, slice(None), ReadCounts())


def clip_seeds(seed: int, epoch: int, keys: Sequence[str]) -> list[int]:
    """Returns a number below 2^63 for each clip in an epoch: xxh3-64 of "seed epoch key", whatever the layout."""
    begin, digest = f"{seed} {epoch} ", xxhash.xxh3_64_intdigest
    return [digest((begin + key).encode()) >> 1 for key in keys]


def grid_rows(
    segments_N2: NDArray[np.int32], segments_B: NDArray[np.int64], stride: int, rows_B: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the first grid row of each segment (N,), and its number of rows (N,), at least 1.

    Row r of a clip is frame r * stride. Clip b has `segments_B[b]` segments and `rows_B[b]` stored rows; no segment
    reaches beyond them. Rows are numbered through all clips.
    """
    start_N, end_N = segments_N2[:, 0].astype(np.int64), segments_N2[:, 1].astype(np.int64)
    rows_N = np.repeat(rows_B, segments_B)
    first_N = (start_N + stride - 1) // stride
    after_N = np.minimum((end_N + stride - 1) // stride, rows_N)
    between_N = after_N <= first_N
    if (
        between_N.any()
    ):  # segments between two grid points: before is start - before away, first is first - last away
        before_N = start_N // stride
        nearer_N = np.where(start_N - before_N * stride <= first_N * stride - (end_N - 1), before_N, first_N)
        first_N = np.where(between_N, np.minimum(nearer_N, rows_N - 1), first_N)
        after_N = np.where(between_N, first_N + 1, after_N)
    return first_N + np.repeat(np.cumsum(rows_B) - rows_B, segments_B), after_N - first_N


def run_indices(begin_N: NDArray[np.int64], counts_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the indices of runs of `counts_N` elements from `begin_N`, one run after another."""
    return np.repeat(begin_N - np.cumsum(counts_N) + counts_N, counts_N) + np.arange(counts_N.sum())


def _decode_jpeg(jpeg: bytes, size: int, what: str) -> NDArray:
    """Returns uint8 (3, H, W), a view of another memory order."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            if image.size != (size, size):  # before the pixels are decoded: a header may claim anything
                raise DatasetError(
                    f"{what} is {image.size[0]} x {image.size[1]} pixels, the recipe says vision.size={size}"
                )
            pixels_HWC = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except OSError as error:
        raise DatasetError(f"{what} is no readable JPEG ({error}): run `sage-scale shards verify`") from None
    return pixels_HWC.transpose(2, 0, 1)
