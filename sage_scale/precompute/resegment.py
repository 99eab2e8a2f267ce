"""Another tagger or rule on stored clips: new segments, all other bytes of the samples as they are.

No video is read, so a tagger gets what the dataset stores: pictures of every frame for `motion`, the clip's length for
`uniform`, id and interval for `precomputed` and `hands-on`, which read files of their own. Labels of the first tagger
are not stored, so that another rule needs them once more. Segments are those that precompute gives with the same
recipe; for `motion` a few differ, since JPEG and the scaling to `vision.size` change its grey pictures. (From every
second frame it would find two thirds of the onsets, and is refused.)

Shards are made by `shards.merge.compose`: each is stored once, and the same command resumes a killed run.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sage_scale.config import Recipe, Vision
from sage_scale.config.reading import from_mapping, override
from sage_scale.config.recipe import digest, to_mapping
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.errors import ClipRejected, DatasetError, Reject, UsageError
from sage_scale.parallel import ProgressCallback
from sage_scale.precompute.schedule import RejectLimit
from sage_scale.segmentation.precomputed import check_labels
from sage_scale.segmentation.segmenter import segment_clip
from sage_scale.segmentation.tagger import has_model, segmenter_fingerprint, wants_keypoints
from sage_scale.shards import Dataset, Sample, read_metadata
from sage_scale.shards.layout import DatasetInfo, PlannedUnit
from sage_scale.shards.merge import NewShard, Selection, check_stores, compose, digest_of, notes_of
from sage_scale.shards.rejects import current_rejects
from sage_scale.shards.sample import read_sample
from sage_scale.shards.writer import sample_bytes
from sage_scale.storage import Store
from sage_scale.untrusted.display import shortened
from sage_scale.vision.decode import GREY_SIZE, DecodedClip

_MAY_CHANGE = ("segmentation.", "shards.max_reject_rate=")
_NO_PICTURES = np.zeros((0, 0, 0, 3), np.uint8)
_LARGEST = 4096
"""Longest side of a stored frame, pixels."""
_INTERVAL = re.compile(r"(.*)#t=([0-9.e+-]+)(?:,([0-9.e+-]+))?", re.DOTALL)


def resegment(
    source: Dataset, out: Store, overrides: Sequence[str], progress: ProgressCallback | None = None
) -> Dataset:
    """Makes in `out` the dataset `source` with segments by other keys of `segmentation`; returns it.

    A clip without labels becomes a reject. Raises UsageError where the stored data do not suffice, TooManyRejects where
    too few clips have labels, DatasetError for damaged samples or another dataset in `out`.
    """
    check_stores([out], [source])
    recipe = _recipe(source, overrides)
    _check_suffices(source, recipe)
    limit = RejectLimit(
        recipe.shards.max_reject_rate, len(source.records), 0, "repeat the command with another --out"
    )
    if recipe.segmentation.tagger == "precomputed":
        clips = [stored_clip(meta) for meta in read_metadata(source)]
        check_labels(recipe, Manifest(tuple(clips)), limit.exceeded)
    part = {**source.info.recipe_part, "segmentation": recipe.dataset_part()["segmentation"]}
    plain = digest(dict(source.info.recipe_part)) == source.info.recipe
    versions = {name: value for name, value in source.info.versions.items() if name != "segmenter_sha256"}
    if has_model(recipe.segmentation):
        import torch

        torch.set_num_threads(1)  # as precompute's actors: results must not depend on the machine's cores
        versions["segmenter_sha256"] = segmenter_fingerprint(recipe.segmentation)
    units = list(source.units)
    info = DatasetInfo(
        kind=source.info.kind,
        recipe=digest(part) if plain else digest_of(source.info.recipe, digest(part["segmentation"])),
        manifest=source.info.manifest,
        units=tuple(PlannedUnit(split=unit.split, clips=unit.samples + unit.rejects) for unit in units),
        recipe_part=part,
        versions=versions,
        device=source.info.device,
        notes=dict(source.info.notes) | notes_of("resegment", [source]),
    )

    def change(data: bytes) -> bytes | Reject:
        return _changed(data, recipe)

    shards = [
        NewShard(unit.split, [Selection(source, ordinal, records)], with_rejects=True, change=change)
        for ordinal, (unit, records) in enumerate(zip(units, source.records_by_unit()))
    ]
    made = compose(out, info, [source], shards, progress)
    _check_rejects(source, made, limit)
    return made


def _check_rejects(source: Dataset, made: Dataset, limit: RejectLimit) -> None:
    """Raises TooManyRejects where too many clips of the source have no segments now."""
    lost = len(source.records) - len(made.records)
    if not lost or (len(made.records) and not limit.exceeded(lost)):
        return
    reasons = Counter[str]()
    for dataset, sign in ((made, 1), (source, -1)):
        for unit in dataset.units:
            reasons.update({reason: sign * count for reason, count in unit.reasons.items()})
    before = {reject.id for _, reject in current_rejects(source)}
    new = (reject for _, reject in current_rejects(made) if reject.id not in before)
    first = next((f"clip '{reject.id}': {reject.reason} ({reject.detail})" for reject in new), "")
    raise limit.error(lost, +reasons, first)


def stored_clip(meta: Mapping[str, Any]) -> Clip:
    """Returns the clip of a sample's description: its video is a name, its interval that of the media fragment."""
    source = str(meta["source"])
    found = _INTERVAL.fullmatch(source)
    video, start, end = found.groups() if found else (source, "0", None)
    try:
        start_s, end_s = float(start), None if end is None else float(end)
    except ValueError:  # a file may have such a name
        video, start_s, end_s = source, 0.0, None
    return Clip(id=str(meta["id"]), video=video, start_s=start_s, end_s=end_s, split=str(meta["split"]))


def stored_segments(sample: Sample, recipe: Recipe) -> np.ndarray:
    """Returns segments int32 (N, 2) of a stored clip by the recipe's tagger and rule. Raises ClipRejected."""
    meta = sample.meta
    total, fps, stride = int(meta["frames"]), float(meta["fps"]), int(meta["frame_stride"])
    decoded = DecodedClip(
        clip=stored_clip(meta), frames=_NO_PICTURES, total_frames=total, fps=fps, stride=stride, source_fps=fps,
        grey_THW=_grey(sample) if recipe.segmentation.tagger == "motion" else None,
    )  # fmt: skip
    return segment_clip(decoded, recipe.segmentation)


def _changed(data: bytes, recipe: Recipe) -> bytes | Reject:
    sample = read_sample(data)
    try:
        segments_N2 = stored_segments(sample, recipe)
    except ClipRejected as error:
        return Reject(id=str(sample.meta["id"]), reason=error.reason, detail=error.detail)
    return sample_bytes(dataclasses.replace(sample, segments=segments_N2))


def _recipe(source: Dataset, overrides: Sequence[str]) -> Recipe:
    """Returns a recipe with the dataset's section `segmentation` and its changes."""
    if not overrides:
        raise UsageError("name what changes: segmentation.tagger=NAME, segmentation.rule=NAME or another key")
    for assignment in overrides:
        if not assignment.startswith(_MAY_CHANGE):
            raise UsageError(
                f"{shortened(assignment)}: only keys of the section segmentation change without the videos"
            )
    # Alone, since a merged dataset records the keys of its other sections in part.
    recorded = source.info.recipe_part.get("segmentation", {})
    known = to_mapping(Recipe().segmentation)
    values = {name: value for name, value in recorded.items() if name in known}
    return override(from_mapping({"segmentation": values}), overrides)


def _check_suffices(source: Dataset, recipe: Recipe) -> None:
    """Raises UsageError where the tagger looks at data that the dataset does not store."""
    tagger = recipe.segmentation.tagger
    stride = source.info.recipe_part.get("vision", {}).get("frame_stride", Vision.frame_stride)
    reason = ""
    if tagger == "auto":
        raise UsageError("segmentation.tagger=auto is decided when a dataset is begun: name a tagger here")
    if wants_keypoints(recipe.segmentation):
        reason = "looks at keypoint tracks, which shards do not store"
    elif tagger == "motion" and source.info.kind != "frames":
        reason = "looks at pictures, and this dataset stores features alone"
    elif tagger == "motion" and stride != 1:
        reason = f"looks at every frame, and this dataset stores one of {stride}"
    if reason:
        raise UsageError(
            f"{source.url}: segmentation.tagger={tagger} {reason}; run `sage-scale segment predict` on the videos and "
            "give segmentation.tagger=precomputed segmentation.labels=ITS_OUTPUT, or precompute again"
        )


def _grey(sample: Sample) -> np.ndarray:
    """Returns grey pictures uint8 (T, 48, 48) of the stored frames. Raises DatasetError for a damaged one."""
    greys = []
    for number, jpeg in sorted((sample.frames or {}).items()):
        try:
            with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
                if max(picture.size) > _LARGEST:  # before the pixels are decoded: a header may claim anything
                    raise OSError(f"{picture.width} x {picture.height} pixels")
                small = picture.convert("L").resize((GREY_SIZE, GREY_SIZE), Image.Resampling.BILINEAR)
        except OSError as error:
            raise DatasetError(
                f"sample {sample.key}, frame {number} is no readable JPEG ({error}): run `sage-scale "
                "shards verify` on the dataset"
            ) from None
        greys.append(np.asarray(small))
    return np.stack(greys)
