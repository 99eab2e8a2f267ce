"""From samples to a batch: rows of features or decoded frames go straight to their place in the packed array.

One copy a sample: the array is made once for the whole batch, as large as the index says, and a sample's bytes
may be dropped as soon as it is packed, so that the next one is read into memory that is still in the cache.
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
from sage_scale.shards import Sample
from sage_scale.streaming.batch import Batch, Memory, ReadCounts, SampleShape
from sage_scale.streaming.frames import grid_runs
from sage_scale.vision.packed import PackedVideo


@dataclass(frozen=True, kw_only=True)
class DecodedSample:
    """One clip, decoded: what a cache keeps. F stored frames of its N segments."""

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

    def __init__(self, shape: SampleShape, rows: int, rooms: Memory | None = None) -> None:
        """`rows` is how many frames are expected; more are taken all the same. They are packed in memory of `rooms`."""
        self.shape = shape
        self._rooms = rooms
        self._content = shape.new(rows, rooms)
        self._filled = 0
        self._keys: list[str] = []
        self._metas: list[dict[str, Any]] = []
        self._segments: list[NDArray[np.int32]] = []
        self._segment_frames: list[int] = []
        self._backgrounds: list[NDArray] = []

    def add(self, sample: Sample, view: int = 0) -> None:
        """Decode the frames of the sample's segments, and no others, into their place; of features, those of a view.

        Raises DatasetError where the sample is of another shape than the recipe's.
        """
        stride = int(sample.meta["frame_stride"])
        features = sample.view(view)
        rows = self._stored_rows(sample, features, stride)
        counts, runs = grid_runs(sample.segments, stride, rows)
        room = self._room(sum(counts))
        at = 0
        if features is not None:
            for begin, end in runs:
                room[at : at + end - begin] = features[begin:end]
                at += end - begin
        else:
            for begin, end in runs:
                for row in range(begin, end):
                    room[at] = self._frame(sample, row * stride)
                    at += 1
            if self.shape.background:
                self._backgrounds.append(self._background(sample))
        # A copy: the view would keep all of the sample's bytes alive for as long as the batch.
        self._note(sample.key, sample.meta, sample.segments.copy(), counts)

    def add_decoded(self, sample: DecodedSample) -> None:
        """Add a clip that was decoded before."""
        self._room(len(sample.content_F))[:] = sample.content_F
        if sample.background_CHW is not None:
            self._backgrounds.append(sample.background_CHW)
        self._note(sample.key, sample.meta, sample.segments_N2, sample.segment_frames_N)

    def last(self) -> DecodedSample:
        """A copy of the clip added last, to be kept."""
        counts = self._segment_frames[-len(self._segments[-1]) :]
        return DecodedSample(
            key=self._keys[-1],
            meta=self._metas[-1],
            segments_N2=self._segments[-1],
            segment_frames_N=counts,
            content_F=self._content[self._filled - sum(counts) : self._filled].copy(),
            background_CHW=self._backgrounds[-1] if self.shape.background else None,
        )

    def batch(
        self,
        *,
        seed: int,
        positions_B: NDArray[np.int64],
        global_batch: int,
        epoch: int,
        position: int,
        counts: ReadCounts | None = None,
    ) -> Batch:
        """The packed batch; the packer's memory becomes its own."""
        backgrounds = None
        if self.shape.background:
            backgrounds = np.stack(self._backgrounds) if self._backgrounds else self.shape.new(0)
        video = PackedVideo(
            segment_frames_N=torch.tensor(self._segment_frames, dtype=torch.int64),
            clip_segments_B=torch.tensor([len(segments) for segments in self._segments], dtype=torch.int64),
            clip_seeds_B=torch.tensor(clip_seeds(seed, epoch, self._keys), dtype=torch.int64),
            **self.shape.tensors(self._content[: self._filled], backgrounds),
        )
        return Batch(
            keys=self._keys,
            metas=self._metas,
            segments=self._segments,
            video=video,
            weights_B=torch.ones(len(self._keys)),
            positions_B=positions_B,
            global_batch=global_batch,
            epoch=epoch,
            position=position,
            counts=counts or ReadCounts(),
        )

    def _note(
        self, key: str, meta: dict[str, Any], segments_N2: NDArray[np.int32], counts: Sequence[int]
    ) -> None:
        self._keys.append(key)
        self._metas.append(meta)
        self._segments.append(segments_N2)
        self._segment_frames.extend(counts)

    def _room(self, rows: int) -> NDArray:
        """The next `rows` places."""
        begin, self._filled = self._filled, self._filled + rows
        if self._filled > len(self._content):
            larger = self.shape.new(max(self._filled, 2 * len(self._content)), self._rooms)
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


def decode_sample(sample: Sample, shape: SampleShape) -> DecodedSample:
    """One sample, decoded. Raises DatasetError where it has another shape."""
    packer = Packer(shape, 0)
    packer.add(sample)
    return packer.last()


def collate(
    samples: Sequence[DecodedSample],
    shape: SampleShape,
    *,
    seed: int = 0,
    positions_B: NDArray[np.int64] | None = None,
    global_batch: int | None = None,
    epoch: int = 0,
    position: int = 0,
) -> Batch:
    """Decoded samples as one batch."""
    packer = Packer(shape, sum(len(sample.content_F) for sample in samples))
    for sample in samples:
        packer.add_decoded(sample)
    return packer.batch(
        seed=seed,
        positions_B=np.arange(len(samples)) if positions_B is None else positions_B,
        global_batch=len(samples) if global_batch is None else global_batch,
        epoch=epoch,
        position=position,
    )


def clip_seeds(seed: int, epoch: int, keys: Sequence[str]) -> list[int]:
    """A number below 2^63 for each clip in an epoch: xxh3-64 of "seed epoch key", whatever the layout."""
    begin, digest = f"{seed} {epoch} ", xxhash.xxh3_64_intdigest
    return [digest((begin + key).encode()) >> 1 for key in keys]


def _decode_jpeg(jpeg: bytes, size: int, what: str) -> NDArray:
    """uint8 (3, H, W), a view of another memory order."""
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
