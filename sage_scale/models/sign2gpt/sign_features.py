"""Sign features Z of a dataset, written once into shards by stage 1 (Sign(Z)2GPT, Table 2).

The result is a dataset of features, which `model.sign2gpt.spatial=signs` translates with the decoder's adapters alone.

A clip's Z has a row for every second of its stored frames, so the new dataset's stride is twice the old one's. Z is of
the frames inside the segments, as the model sees them; where those are not all, rows of zeros fill the clip up behind
the one segment that Z is. The result follows from dataset and weights; running it again resumes an interrupted one.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sage_scale.config import Recipe, Stage, load_recipe
from sage_scale.errors import UsageError
from sage_scale.models.sign2gpt.model import SignFeatures, load_signs
from sage_scale.shards import (
    Dataset,
    DatasetInfo,
    PlannedUnit,
    Sample,
    finish_dataset,
    list_units,
    notice_note,
    open_dataset,
    publish_shard,
    read_rejects,
    restore_marker,
    start_dataset,
    write_shard,
)
from sage_scale.storage import open_store
from sage_scale.streaming import SampleShape, pack_sample
from sage_scale.training.export import load_tensors
from sage_scale.training.inherited import contradictions
from sage_scale.training.stage import STAGE1
from sage_scale.untrusted.printer import tell

Progress = Callable[[int, int, int], None]

VIEWS = ("feature_views", "view_augment")
"""Settings of `vision` that do not hold for what is written here: sign features have the plain view alone."""


class SignWriter:
    """A run's stage 1, frozen, on one device."""

    def __init__(self, run: str | Path, device: str | torch.device = "cpu") -> None:
        """Raises CheckpointError where the run has no stage 1, UsageError where it has no sign encoder."""
        file = Path(run) / STAGE1
        state = load_tensors(file)
        self.recipe: Recipe = load_recipe(Path(run) / "recipe.yaml")
        settings = self.recipe.model.sign2gpt
        if self.recipe.model.kind != "sign2gpt" or settings.spatial == "signs":
            raise UsageError(f"{run} has no sign encoder: sign features are those of stage 1 of a Sign2GPT")
        self.model = SignFeatures(self.recipe, Stage()).eval().requires_grad_(False)
        load_signs(self.model, state)
        self.model.to(device)
        self.device = torch.device(device)
        self.digest = hashlib.sha256(file.read_bytes()).hexdigest()
        self.factor = 2 if settings.downsample_after else 1
        self._shape = SampleShape.of(self.recipe)

    @torch.no_grad()
    def sample(self, sample: Sample) -> Sample:
        """Returns the clip with Z in place of its frames or features. One clip at a time: results depend on a batch's
        shape."""
        batch = pack_sample(sample, self._shape)
        z_NC, _ = self.model.encode(replace(batch.video, clip_seeds_B=None).to(self.device))
        frames, stride = int(sample.meta["frames"]), int(sample.meta["frame_stride"]) * self.factor
        rows = -(-frames // stride)
        features_TC = np.zeros((rows, z_NC.shape[1]), np.float16)
        features_TC[: len(z_NC)] = z_NC.cpu().numpy()
        segments = np.array([[0, min(len(z_NC) * stride, frames)]], np.int32)
        meta = {**sample.meta, "frame_stride": stride}
        return Sample(key=sample.key, meta=meta, segments=segments, features=features_TC)


def write_sign_features(
    run: str | Path, data: str, out: str, device: str = "cpu", progress: Progress | None = None
) -> Dataset:
    """Write the sign features of all clips of `data` to `out`, shard for shard; gives the new dataset.

    Raises UsageError where `out` is `data`, DatasetError where clips are not of the run's recipe.
    """
    writer, source, store = SignWriter(run, device), open_dataset(data), open_store(out)
    if store.url.rstrip("/") == source.url.rstrip("/"):
        raise UsageError(f"{out} is the dataset itself: write to another folder or URL")
    tell(*contradictions(writer.recipe, [source]))
    part = dict(source.info.recipe_part)
    stride = writer.recipe.vision.frame_stride * writer.factor
    vision = {name: value for name, value in part.get("vision", {}).items() if name not in VIEWS}
    part["vision"] = {**vision, "kind": "features", "frame_stride": stride}
    info = DatasetInfo(
        kind="features",
        recipe=hashlib.sha256(f"{source.digest} {writer.digest}".encode()).hexdigest()[:16],
        manifest=source.info.manifest,
        units=tuple(
            PlannedUnit(split=unit.split, clips=unit.samples + unit.rejects) for unit in source.units
        ),
        recipe_part=part,
        versions={**source.info.versions, "backbone_sha256": writer.digest},
        device=writer.device.type,
        notes={"made_by": "models signs", "made_from": [source.digest], **notice_note([source])},
    )
    start_dataset(store, info)
    listing = list_units(store)
    table = source.samples()

    def samples(rows: np.ndarray) -> Iterator[Sample]:
        for row in rows.tolist():
            yield writer.sample(source.read(table, row))

    for number, unit in enumerate(source.units):
        if number in listing.unmarked:
            restore_marker(store, number)
        elif number not in listing.done:
            with tempfile.TemporaryDirectory(prefix="sage-scale-") as folder:
                rows = np.flatnonzero(table.unit == number)
                tar = Path(folder) / "new.tar"
                index = write_shard(
                    tar, samples(rows), read_rejects(source.store, unit),
                    unit=number, split=unit.split, dataset=info.digest,
                )  # fmt: skip
                publish_shard(store, tar, index)
        if progress:
            progress(number + 1, len(source.units), 0)
    return finish_dataset(store)


def overrides_of(writer_recipe: Recipe) -> list[str]:
    """Returns the overrides of a recipe that trains stage 2 on the sign features."""
    settings = writer_recipe.model.sign2gpt
    factor = 2 if settings.downsample_after else 1
    return [
        "model.sign2gpt.spatial=signs",
        "vision.kind=features",
        f"vision.frame_stride={writer_recipe.vision.frame_stride * factor}",
        "vision.background=none",
        f"model.feature_dim={settings.width}",
        "finetune.init=none",
        "finetune.freeze=none",
    ]


def write_features(
    run: str | Path, data: str, out: str, device: str = "cpu", progress: Progress | None = None
) -> tuple[Dataset, list[str]]:
    """Returns the dataset of `write_sign_features`, and the overrides that stage 2 is trained on it with."""
    made = write_sign_features(run, data, out, device, progress)
    return made, overrides_of(load_recipe(Path(run) / "recipe.yaml"))
