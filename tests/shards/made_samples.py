"""Small samples of both kinds, and a dataset of them, for the tests of this package."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from sage_scale.shards import (
    Dataset,
    DatasetInfo,
    PlannedUnit,
    Reject,
    Sample,
    finish_dataset,
    publish_shard,
    sample_key,
    start_dataset,
    write_shard,
)
from sage_scale.storage import Store


def jpeg(rng: np.random.Generator) -> bytes:
    """A real JPEG of 8 x 8 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def make_sample(
    clip: str,
    kind: str = "features",
    split: str = "train",
    total: int = 20,
    stride: int = 2,
    background: bool = False,
    sentence: str = "morgen regnet es",
) -> Sample:
    """A sample whose content follows from its arguments."""
    rng = np.random.default_rng(list(clip.encode()))
    cuts = np.unique(rng.integers(0, total + 1, 6))
    edges = cuts if len(cuts) >= 2 else np.array([0, total])
    edges = edges[: len(edges) // 2 * 2]
    rows = -(-total // stride)
    return Sample(
        key=sample_key(clip),
        meta={
            "id": clip,
            "sentence": sentence,
            "pseudo_glosses": sentence.split(),
            "language": "de",
            "fps": 25.0,
            "frame_stride": stride,
            "frames": total,
            "source": f"{clip}.mp4",
            "signer": "s1",
            "split": split,
        },
        segments=edges.reshape(-1, 2).astype(np.int32),
        frames={n: jpeg(rng) for n in range(0, total, stride)} if kind == "frames" else None,
        background=jpeg(rng) if background else None,
        features=rng.standard_normal((rows, 16)).astype(np.float16) if kind == "features" else None,
    )


def make_dataset(
    store: Store, scratch: Path, kind: str = "features", finish: bool = True, clips: int = 6
) -> Dataset:
    """Two shards of train and one of dev (with a reject) in `store`; without the last one where not to be finished."""
    plan = [("train", clips), ("train", clips), ("dev", 3)]
    info = start_dataset(
        store,
        DatasetInfo(
            kind=kind,
            recipe="0123456789abcdef",
            manifest="fedcba9876543210",
            units=tuple(PlannedUnit(split=split, clips=count) for split, count in plan),
            recipe_part={"vision": {"size": 64}},
        ),
    )
    for unit, (split, count) in enumerate(plan if finish else plan[:-1]):
        samples = [make_sample(f"{split}-{unit}-{n}", kind, split) for n in range(count - (split == "dev"))]
        rejects = [Reject(id="dev-x", reason="too-short", detail="3 frames")] if split == "dev" else []
        tar = write_shard(
            scratch / f"{unit}.tar", samples, rejects, unit=unit, split=split, dataset=info.digest
        )
        publish_shard(store, tar)
        tar.unlink()
    return finish_dataset(store) if finish else None  # type: ignore[return-value]


def equal(one: Sample, other: Sample) -> bool:
    """Whether two samples hold the same."""
    arrays = [(one.segments, other.segments)]
    if one.features is not None and other.features is not None:
        arrays.append((one.features, other.features))
    return (
        (one.key, one.meta, one.frames, one.background)
        == (other.key, other.meta, other.frames, other.background)
        and (one.features is None) == (other.features is None)
        and all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in arrays)
    )
