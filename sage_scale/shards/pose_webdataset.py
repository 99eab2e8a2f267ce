"""Tars of keypoints as `sldl.SignLanguageDataset` of `sign-language-data-loading` 1.0 reads them.

Members of a clip, by https://github.com/ppoitier/sign-language-data-loading, `sldl/dataset.py`, its mode for sentences:
`pose.<part>.npy` (T', K, 2 or 3), `signer.txt`, and `annotations.both_hands.json`, a list of segments with
`start_frame`, `end_frame` (half-open, rows of the pose), `start_ms` and `end_ms`. `json` and `txt`, description and
sentence, are for other readers. The key is the clip's of 16 hex digits: an id may have dots, at which WebDataset cuts
a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sage_scale.errors import DatasetError, UsageError
from sage_scale.keypoints.features import RowLayout
from sage_scale.shards.dataset import Dataset
from sage_scale.shards.export import first_sample
from sage_scale.shards.layout import canonical_json
from sage_scale.shards.sample import Sample
from sage_scale.shards.tar import END, header, padding
from sage_scale.shards.writer import npy_bytes

_PARTS = {"body": "upper_pose", "left_hand": "left_hand", "right_hand": "right_hand"}
"""Part of our names of points -> body part of the package."""
BODY_PARTS = tuple(_PARTS.values())
_SEGMENTS = "annotations.both_hands.json"
"""The annotation that the package reads unless told otherwise."""


class PoseWebDataset:
    """Tars of keypoints by body part."""

    name, ending = "pose-webdataset", "tar"

    def __init__(self, dataset: Dataset) -> None:
        """Raises UsageError for a dataset without keypoints, DatasetError as `first_sample`."""
        features = first_sample(dataset).features
        vision = dataset.info.recipe_part.get("vision", {})
        layout = None if features is None else RowLayout.recorded(vision, features.shape[1])
        if layout is None:
            kind = (
                "frames" if features is None else f"features of {vision.get('backbone', 'another backbone')}"
            )
            raise UsageError(
                f"{dataset.url} stores {kind}, no keypoints: --format pose-webdataset needs a dataset of "
                "vision.kind=features vision.backbone=keypoints; --format hf exports any"
            )
        self._layout = layout
        self._columns = {
            body_part: [n for n, point in enumerate(layout.names) if point.startswith(f"{part}.")]
            for part, body_part in _PARTS.items()
        }
        axes = "xyz"[: layout.axes]
        self.members = [
            *(
                (f"pose.{part}.npy", f"float32 (rows, {len(columns)}, {len(axes)}): {axes} of "
                 f"{', '.join(layout.names[n].partition('.')[2] for n in columns)}; in shoulder widths from the middle "
                 "of the shoulders, 0 where not seen")
                for part, columns in self._columns.items()
            ),
            (_SEGMENTS, "segments: start_frame and end_frame count rows of the pose, end exclusive; start_ms, end_ms"),
            ("signer.txt", "signer"),
            ("txt", "sentence"),
            ("json", "description: id, sentence, pseudo-glosses, language, frame rate, source"),
        ]  # fmt: skip

    def write(self, path: Path, samples: Iterable[Sample]) -> None:
        """Write a tar with the members of each sample. Raises DatasetError for a sample of another width."""
        with open(path, "wb") as file:
            for sample in samples:
                for name, data in self._members(sample):
                    file.write(header(f"{sample.key}.{name}", len(data)) + data + padding(len(data)))
            file.write(END)

    def _members(self, sample: Sample) -> Iterator[tuple[str, bytes]]:
        try:
            points_TKC = self._layout.parts(np.asarray(sample.features, np.float32))[0]
        except ValueError:
            raise DatasetError(
                f"sample {sample.key} ({sample.meta['id']!r}): its rows are no keypoints of the dataset's layout"
            ) from None
        yield "json", canonical_json(sample.meta)
        yield "txt", str(sample.meta["sentence"]).encode()
        yield "signer.txt", str(sample.meta["signer"]).encode()
        for part, columns in self._columns.items():
            yield f"pose.{part}.npy", npy_bytes(points_TKC[:, columns])
        yield _SEGMENTS, canonical_json(segment_rows(sample))


def segment_rows(sample: Sample) -> list[dict[str, Any]]:
    """Returns the segments with their rows of the stride grid; a segment between two grid points has the one before."""
    stride, fps = int(sample.meta["frame_stride"]), float(sample.meta["fps"])
    found = []
    for start, end in sample.segments.tolist():
        first, last = -(-start // stride), -(-end // stride)
        found.append(
            {
                "start_frame": min(first, last - 1),
                "end_frame": last,
                "start_ms": round(1000 * start / fps),
                "end_ms": round(1000 * end / fps),
            }
        )
    return found
