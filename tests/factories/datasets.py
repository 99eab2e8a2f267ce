"""Samples whose content follows from their names, and datasets of them, written by the package's own writer."""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sage_scale.config import Recipe, Stream, Vision
from sage_scale.shards import (
    Dataset,
    DatasetInfo,
    Marker,
    PlannedUnit,
    Reject,
    Sample,
    finish_dataset,
    open_dataset,
    publish_shard,
    sample_key,
    start_dataset,
    write_shard,
)
from sage_scale.shards.dataset import index_json
from sage_scale.shards.layout import INDEX_JSON, tar_name
from sage_scale.storage import Store, open_store
from sage_scale.storage.folder import FolderStore

SIZE, STRIDE, WIDTH = 16, 2, 24
"""Pixels, frame stride and feature width of the datasets that streams read."""
PLAN = [("train", 13), ("dev", 5), ("train", 1), ("train", 20), ("train", 7)]
MUTE = (2, 30)
"""Numbers of clips without a sentence."""


def jpeg(rng: np.random.Generator, size: int = 8) -> bytes:
    """Returns a JPEG of noise."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def make_sample(
    clip: str,
    kind: str = "features",
    split: str = "train",
    total: int = 20,
    stride: int = 2,
    background: bool = False,
    sentence: str = "morgen regnet es",
    size: int = 8,
    width: int = 16,
    views: int = 1,
    language: str = "de",
) -> Sample:
    """Returns a sample whose content follows from its arguments; `total` of 0 draws 20 to 59 frames."""
    rng = np.random.default_rng(list(clip.encode()))
    total = total or int(rng.integers(20, 60))
    cuts = np.unique(rng.integers(0, total + 1, 6))
    edges = cuts if len(cuts) >= 2 else np.array([0, total])
    edges = edges[: len(edges) // 2 * 2]
    rows = -(-total // stride)
    frames = {n: jpeg(rng, size) for n in range(0, total, stride)} if kind == "frames" else None
    median = jpeg(rng, size) if background else None
    first, *others = rng.standard_normal((views, rows, width)).astype(np.float16)
    return Sample(
        key=sample_key(clip),
        meta={
            "id": clip,
            "sentence": sentence,
            "pseudo_glosses": sentence.split(),
            "language": language,
            "fps": 25.0,
            "frame_stride": stride,
            "frames": total,
            "source": f"{clip}.mp4",
            "signer": "s1",
            "split": split,
        },
        segments=edges.reshape(-1, 2).astype(np.int32),
        frames=frames,
        background=median,
        features=first if kind == "features" else None,
        views=tuple(others) if kind == "features" else (),
    )


def write_dataset(
    place: Store | str | Path,
    units: Sequence[tuple[str, Sequence[Sample]]],
    recipe: Recipe | str = "0" * 16,
    *,
    rejects: Mapping[int, list[Reject]] | None = None,
    finish: bool = True,
    **info: Any,
) -> Dataset | None:
    """Write units of (split, samples); `finish=False` leaves out the last one. `info` are fields of DatasetInfo."""
    store = place if isinstance(place, Store) else open_store(place)
    rejected = rejects or {}
    described: dict[str, Any] = {"recipe": recipe, "manifest": "0" * 16}
    if isinstance(recipe, Recipe):
        described |= {"recipe": recipe.dataset_fingerprint(), "recipe_part": recipe.dataset_part()}
    described["kind"] = "features" if units[0][1][0].features is not None else "frames"
    planned = (
        PlannedUnit(split=split, clips=len(samples) + len(rejected.get(unit, ())))
        for unit, (split, samples) in enumerate(units)
    )
    started = start_dataset(store, DatasetInfo(**described | {"units": tuple(planned)} | info))
    for unit, (split, samples) in enumerate(units if finish else units[:-1]):
        publish(store, samples, rejected.get(unit, []), unit=unit, split=split, dataset=started.digest)
    return finish_dataset(store) if finish else None


def publish(store: Store, samples: Sequence[Sample], rejects: Sequence[Reject] = (), **named: Any) -> Marker:
    """Write a shard of these samples and commit it; `named` are unit, split and dataset."""
    with tempfile.TemporaryDirectory() as scratch:
        tar = Path(scratch) / "new.tar"
        write_shard(tar, samples, rejects, **named)
        return publish_shard(store, tar)


def make_dataset(store: Store, kind: str = "features", finish: bool = True, clips: int = 6) -> Dataset:
    """Write two shards of train and one of dev with a reject; without the last one where not to be finished."""
    plan = [("train", clips), ("train", clips), ("dev", 2)]
    units = [
        (split, [make_sample(f"{split}-{unit}-{n}", kind, split) for n in range(count)])
        for unit, (split, count) in enumerate(plan)
    ]
    return write_dataset(  # type: ignore[return-value]
        store, units, rejects={2: [Reject(id="dev-x", reason="too-short", detail="3 frames")]}, finish=finish,
        recipe="0123456789abcdef", manifest="fedcba9876543210", recipe_part={"vision": {"size": 64}},
    )  # fmt: skip


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


def snapshot(store: Store) -> dict[str, bytes]:
    """Returns every object of a store."""
    return {entry.name: store.get(entry.name) for entry in store.list()}


def fill(store: Store, objects: dict[str, bytes]) -> Store:
    """Store these objects."""
    for name, data in objects.items():
        store.put(name, data)
    return store


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


class DyingStore(FolderStore):
    """Dies before its n-th change."""

    def __init__(self, root: Path, at: int) -> None:
        super().__init__(root)
        self.left = at

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def put(self, name, data):
        self._count()
        return super().put(name, data)

    def put_if_absent(self, name, data):
        self._count()
        return super().put_if_absent(name, data)

    def delete(self, name):
        self._count()
        return super().delete(name)


def stream_recipe(kind: str, views: int = 1, **stream: Any) -> Recipe:
    """Returns the recipe of `make_stream_dataset`."""
    recipe = Recipe(
        vision=Vision(
            kind=kind, size=SIZE, crop=SIZE, frame_stride=STRIDE, background="median", feature_views=views
        ),  # type: ignore[arg-type]
        stream=Stream(**{"lanes": 8, "window": 16, "seed": 5, **stream}),
    )
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, feature_dim=WIDTH))


def stream_sample(number: int, split: str, kind: str, prefix: str = "", **changes: Any) -> Sample:
    """Returns clip `number` of `make_stream_dataset`."""
    changes = {"sentence": f"satz {number}", "background": kind == "frames", "total": 0} | changes
    return make_sample(
        f"{prefix}{split}-{number}", kind, split, stride=STRIDE, size=SIZE, width=WIDTH, **changes
    )


def make_stream_dataset(
    url: str | Path,
    kind: str,
    plan: Sequence[tuple[str, int]],
    mute: Sequence[int] = (),
    prefix: str = "",
    languages: Sequence[str] = ("de",),
    views: int = 1,
) -> dict[str, Sample]:
    """Write units of (split, clips); clips numbered in `mute` have no sentence. Returns samples by key.

    `prefix` begins every clip's id; the languages take turns.
    """
    units: list[tuple[str, list[Sample]]] = []
    number = 0
    for split, clips in plan:
        units.append((split, []))
        for _ in range(clips):
            said = {"sentence": ""} if number in mute else {}
            language = languages[number % len(languages)]
            units[-1][1].append(
                stream_sample(number, split, kind, prefix, language=language, views=views, **said)
            )
            number += 1
    write_dataset(url, units, stream_recipe(kind, views))
    return {sample.key: sample for _, samples in units for sample in samples}


def make_wide_dataset(folder: Path, shards: int, clips: int) -> Path:
    """`shards` shards of `clips` clips, each the same file under another name, opened by one read of index.json."""
    one = folder / "one"
    make_stream_dataset(one, "features", [("train", clips)])
    opened = open_dataset(one)
    wide = folder / "wide"
    wide.mkdir()
    for unit in range(shards):
        os.link(one / tar_name(0), wide / tar_name(unit))
    units = [dataclasses.replace(opened.units[0], unit=unit) for unit in range(shards)]
    plan = tuple(PlannedUnit(split="train", clips=clips) for _ in range(shards))
    info = dataclasses.replace(opened.info, units=plan)
    (wide / INDEX_JSON).write_bytes(index_json(info, units, np.tile(opened.records, shards)))
    return wide
