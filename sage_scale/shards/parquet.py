"""Parquet files that `datasets.load_dataset` opens and streams (https://huggingface.co/docs/datasets).

One row a clip. Columns are those of `<key>.json`, and either `frames`, a list of JPEGs that `datasets` decodes, or
`features`, a row of C numbers for each stored frame, or `keypoints` (T', K, 2 or 3). The schema's metadata
`huggingface` says which columns are images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sage_scale.errors import DatasetError
from sage_scale.keypoints.features import RowLayout
from sage_scale.shards.dataset import Dataset
from sage_scale.shards.export import first_sample
from sage_scale.shards.sample import Sample

GROUP_BYTES, GROUP_ROWS = 8 << 20, 1000
"""Most bytes and clips of a row group, which a reader that streams holds at once."""
_REPEATED = ["sentence", "language", "signer", "source", "pseudo_glosses.list.element"]
"""Columns worth a dictionary; one of features would be as large as they are."""
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


class Column(NamedTuple):
    """A column: its name, type, feature of `datasets`, and the arrow array of some samples."""

    name: str
    type: pa.DataType
    feature: Any
    values: Callable[[list[Sample]], Any]
    meaning: str


class HuggingFace:
    """Parquet files for Hugging Face `datasets`."""

    name, ending = "hf", "parquet"

    def __init__(self, dataset: Dataset) -> None:
        """Raises DatasetError as `first_sample`."""
        self.columns = (*_DESCRIPTION, *_content(dataset, first_sample(dataset)))
        self.members = [(column.name, column.meaning) for column in self.columns]
        features = {column.name: column.feature for column in self.columns}
        self.schema = pa.schema(
            [(column.name, column.type) for column in self.columns],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )

    def write(self, path: Path, samples: Iterable[Sample]) -> None:
        """Write a Parquet file with a row a sample. Raises DatasetError naming a sample of another shape."""
        with (
            open(path, "wb") as file,
            pq.ParquetWriter(file, self.schema, use_dictionary=_REPEATED) as writer,
        ):
            for group in _groups(samples):
                arrays = [_array(column, group) for column in self.columns]
                writer.write_table(pa.Table.from_arrays(arrays, schema=self.schema), len(group))


def _array(column: Column, group: list[Sample]) -> Any:
    """Returns the column of these samples; where they do not fit, names the first that does not."""
    try:
        values = column.values(group)
        return values if isinstance(values, pa.Array) else pa.array(values, column.type)
    except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
        if len(group) > 1:
            for sample in group:
                _array(column, [sample])
        raise DatasetError(
            f"sample {group[0].key} ({group[0].meta['id']!r}): its {column.name} does not fit the column "
            f"{column.type}: {str(error) or type(error).__name__}"
        ) from None


def _groups(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    group: list[Sample] = []
    size = 0
    for sample in samples:
        held = sum(map(len, (sample.frames or {}).values())) + len(sample.background or b"")
        held += sum(view.nbytes for view in (sample.features, *sample.views) if view is not None)
        if group and (size + held > GROUP_BYTES or len(group) >= GROUP_ROWS):
            yield group
            group, size = [], 0
        group.append(sample)
        size += held
    if group:
        yield group


def _plain(name: str, meaning: str, kind: str = "string", key: str = "") -> Column:
    """A column of a key of the description."""
    types = {"string": pa.string(), "float64": pa.float64(), "int32": pa.int32()}
    feature = {"dtype": kind, "_type": "Value"}
    return Column(name, types[kind], feature, lambda some: [s.meta[key or name] for s in some], meaning)


def _list(feature: Any, length: int = -1) -> dict[str, Any]:
    return {"feature": feature, "length": length, "_type": "List"}


def _segments(some: list[Sample]) -> Any:
    return _nested([sample.segments for sample in some], pa.int32())


_DESCRIPTION = (
    _plain("id", "id of the clip in its corpus"),
    Column("key", pa.string(), {"dtype": "string", "_type": "Value"}, lambda some: [s.key for s in some],
           "16 hex digits of sha256 of the id"),
    _plain("sentence", "spoken-language sentence, empty if there is none"),
    _plain("language", "language of the sentence, BCP 47"),
    _plain("signer", "signer, as the corpus names them"),
    _plain("source", "file of the video, with the clip's interval in seconds"),
    _plain("fps", "frame rate of the clip, frames per second", "float64"),
    _plain("num_frames", "frames of the clip at that rate", "int32", "frames"),
    _plain("frame_stride", "row r of the last columns belongs to frame r * frame_stride", "int32"),
    Column("pseudo_glosses", pa.list_(pa.string()), _list({"dtype": "string", "_type": "Value"}),
           lambda some: [s.meta["pseudo_glosses"] for s in some], "content words of the sentence"),
    Column("segments", pa.list_(pa.list_(pa.int32(), 2)), _list(_list({"dtype": "int32", "_type": "Value"}, 2)),
           _segments, "half-open frame intervals, one visual token each"),
)  # fmt: skip


def _content(dataset: Dataset, first: Sample) -> list[Column]:
    if first.features is None:
        image = {"_type": "Image"}
        return [
            Column("frames", pa.list_(_IMAGE), _list(image), lambda some: [_pictures(s) for s in some],
                   "JPEGs of the stored frames, decoded as PIL images"),
            Column("background", _IMAGE, image,
                   lambda some: [s.background and {"bytes": s.background, "path": "background.jpg"} for s in some],
                   "the clip's median frame, where stored"),
        ]  # fmt: skip
    layout = RowLayout.recorded(dataset.info.recipe_part.get("vision", {}), first.features.shape[1])
    if layout is None:
        views = range(dataset.info.feature_views)
        return [_rows(f"features_{n}" if n else "features", n, first.features.shape[1]) for n in views]
    points, axes = len(layout.names), layout.axes
    meaning = (
        f"{points} points, {'xyz'[:axes]}, in shoulder widths from the middle of the shoulders; 0: not seen"
    )
    found = [_points("keypoints", layout, 0, meaning)]
    if layout.velocities:
        found.append(_points("velocities", layout, 1, "their displacement from the row before"))
    return found


def _pictures(sample: Sample) -> list[dict[str, Any]]:
    assert sample.frames is not None
    return [{"bytes": data, "path": f"{number:06d}.jpg"} for number, data in sample.frames.items()]


def _rows(name: str, view: int, width: int) -> Column:
    def values(some: list[Sample]) -> Any:
        return _nested([sample.view(view) for sample in some], pa.float16(), width)

    feature = _list(_list({"dtype": "float16", "_type": "Value"}, width))
    meaning = f"augmented view {view} of them" if view else f"{width} numbers for each stored frame"
    return Column(name, pa.list_(pa.list_(pa.float16(), width)), feature, values, meaning)


def _points(name: str, layout: RowLayout, part: int, meaning: str) -> Column:
    points, axes = len(layout.names), layout.axes
    kind = pa.list_(pa.list_(pa.list_(pa.float16(), axes), points))
    feature = _list(_list(_list({"dtype": "float16", "_type": "Value"}, axes), points))

    def values(some: list[Sample]) -> Any:
        return _nested([layout.parts(s.features)[part] for s in some], pa.float16(), points, axes)  # type: ignore[arg-type]

    return Column(name, kind, feature, values, meaning)


def _nested(arrays: list[np.ndarray | None], kind: pa.DataType, *inner: int) -> Any:
    """Returns a list array of arrays (rows, *inner), without a Python object a number."""
    inner = inner or (2,)
    for array in arrays:
        if array is None or array.shape[1:] != inner:
            raise ValueError(f"its shape is {array.shape if array is not None else None}")
    offsets = np.cumsum([0, *(len(array) for array in arrays if array is not None)], dtype=np.int32)
    flat = pa.array(np.concatenate(arrays).ravel(), kind)  # type: ignore[arg-type]
    for length in reversed(inner):
        flat = pa.FixedSizeListArray.from_arrays(flat, length)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)
