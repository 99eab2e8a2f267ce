"""Recipe keys that a run inherits from its datasets: keys that describe shards, not training.

`dataset.json` holds the part of the recipe that made a dataset. Another value in the run's recipe
would report wrong segments ("by motion" for uniform ones) and segment new videos differently than in training. The
run's recipe therefore gets the dataset's values; a contradicting key of the command line is refused, except the keys
of `OVERRIDABLE`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sage_scale.config import Recipe, from_mapping, load_recipe
from sage_scale.config.recipe import flat, nested, to_mapping, values_of
from sage_scale.errors import OtherDataset, RecipeError
from sage_scale.shards import Dataset
from sage_scale.untrusted.display import shortened

Rule = Callable[[Any, bool], bool]
"""Whether training may set a key otherwise, by the dataset's value and whether the dataset holds features."""


def _always(made: Any, features: bool) -> bool:
    return True


OVERRIDABLE: dict[str, Rule] = {
    "text.target": _always,  # shards hold both, pseudo-glosses and sentence
    "corpus.language": _always,  # each clip has its own
    # A stored median frame can be left alone.
    "vision.background": lambda made, features: features or made == "median",
    # Fewer than are stored: of more, `check_datasets` says how many there are.
    "vision.feature_views": lambda made, features: features,
    "vision.crop": lambda made, features: not features,  # the part of a stored frame that the model sees
    "vision.backbone_weights": _always,  # files may have moved
    "vision.allow_random_backbone": _always,
    "vision.keypoints": _always,
    "segmentation.labels": _always,
    "segmentation.weights": _always,
    "segmentation.features": _always,
}
"""Keys that the command line may set otherwise than the dataset has them; the dataset's value is the default."""
UNREPORTED = ("shards.", "corpus.", "vision.jpeg_quality", "vision.view_augment.")
"""Beginnings of keys whose change is not reported, except those of `REPORTED`."""
REPORTED = ("corpus.name", "corpus.language")
SHARED = ("vision.kind", "vision.fps", "vision.frame_stride", "vision.size")
"""Keys in which several datasets of one run must agree (of features all but the size)."""
UNRECORDED = "not recorded"
"""Stands for the values of a key in which the parts of a dataset differ that version 0.1.0 merged."""


@dataclass(frozen=True)
class Inheritance:
    """The recipe of a run over its datasets."""

    recipe: Recipe
    differing: dict[str, list[Any]] = field(default_factory=dict)
    """Values of keys in which the datasets, or the parts of a merged one, differ."""
    lines: list[str] = field(default_factory=list)
    """Lines for the user."""


def inherit(recipe: Recipe, datasets: Sequence[Dataset], run: Path) -> Inheritance:
    """Returns `recipe` with the datasets' values; keys of `OVERRIDABLE` keep the value that the run `run` has stored.

    Raises OtherDataset where `recipe.given` contradicts a dataset or the datasets cannot be trained on together.
    """
    made = [recorded_keys(dataset) for dataset in datasets]
    _check_alike(datasets, made)
    ours, begun, url = flat(to_mapping(recipe)), _begun(run), datasets[0].url
    features = made[0].get("vision.kind") == "features"
    recorded = values_of(made, [dataset.info.notes.get("differing") for dataset in datasets])
    recorded = {key: values for key, values in recorded.items() if key in ours}
    if isinstance(width := datasets[0].info.notes.get("feature_dim"), int):
        recorded["model.feature_dim"] = [width]
    changed: dict[str, Any] = {}
    told: dict[str, list[str]] = {}
    for key, values in recorded.items():
        mine, theirs = ours[key], values[0]
        undecided = key == "segmentation.tagger" and mine == "auto"  # which stands for the datasets' own
        if key in recipe.given and not undecided:
            if mine in values:
                continue
            if not _overridable(key, theirs, features):
                raise OtherDataset(
                    f"{key}={_shown(mine)} is given, and {url} was made with {key}={_shown(theirs)}: leave the key "
                    "out, or precompute a dataset with it"
                )
            told.setdefault("as given", []).append(f"{key}={_shown(mine)} (the dataset: {_shown(theirs)})")
            continue
        taken, source = (mine if mine in values else theirs), f"taken from {url}"
        if key in begun and (begun[key] in values or _overridable(key, theirs, features)):
            taken, source = begun[key], "as this run was begun"
        if taken != mine:
            changed[key] = taken
            if is_reported(key):
                told.setdefault(source, []).append(f"{key}={_shown(taken)} (the recipe: {_shown(mine)})")
    differing = {key: values for key, values in recorded.items() if len(values) > 1}
    # A dataset records these keys unless its parts, before they were merged, differed in them.
    always = flat(Recipe().dataset_part())
    lost = [key for part in made if "vision.kind" in part for key in always if key not in part]
    differing |= {key: [UNRECORDED] for key in lost if key not in recorded}
    lines = [f"{source}: {_some(parts)}" for source, parts in told.items()]
    lines += [
        f"{dataset.url} was made from keypoints by 0.1.0, which read .pose files without the aspect of their picture: "
        "a translated .pose file has other features now, an .npz file the same"
        for dataset in datasets
        if dataset.info.recipe_part.get("vision", {}).get("backbone") == "keypoints"
        and features
        and "keypoint_features" not in dataset.info.versions
    ]
    apart = [
        f"{key} ({', '.join(map(_shown, values))})" for key, values in differing.items() if is_reported(key)
    ]
    if apart:
        what = "the datasets differ" if len(datasets) > 1 else f"the parts of {url} differ"
        lines.append(f"{what} in {_some(apart)}; the run's recipe can hold one value")
    if not changed:
        return Inheritance(recipe, differing, lines)
    try:
        return Inheritance(from_mapping(nested(changed), recipe), differing, lines)
    except RecipeError as error:
        raise RecipeError(f"{error} (with the values of {url})") from None


def contradictions(recipe: Recipe, datasets: Sequence[Dataset]) -> list[str]:
    """Returns a line for each dataset whose clips were segmented or stored differently than the training data."""
    ours = flat(to_mapping(recipe))
    lines = []
    for dataset in datasets:
        theirs = recorded_keys(dataset)
        apart = [
            f"{key}={_shown(theirs[key])} (the run: {_shown(ours[key])})"
            for key in ours.keys() & theirs.keys()
            if changes_samples(key) and theirs[key] != ours[key]
        ]
        if apart:
            lines.append(f"{dataset.url} was made otherwise than the run was trained: {_some(sorted(apart))}")
    return lines


def recorded_keys(dataset: Dataset) -> dict[str, Any]:
    """Returns the recipe keys that a dataset records, `section.key`, as plain values."""
    known = flat(to_mapping(Recipe()))
    part = dict(dataset.info.recipe_part)
    found = {key: value for key, value in flat(part).items() if key in known}
    chosen_by = dataset.info.notes.get("corpus")
    if isinstance(chosen_by, Mapping):
        found |= {f"corpus.{k}": v for k, v in flat(chosen_by).items() if f"corpus.{k}" in known}
    if "vision.kind" in found:  # a whole section: of keys younger than the dataset the default was in force
        old = flat(Recipe().dataset_part()).keys()
        younger = (key for key in known if key.startswith(("vision.", "segmentation.")) and key not in old)
        found = {key: known[key] for key in younger if not key.startswith(UNREPORTED)} | found
    spoken = [language for language in dataset.languages if language]
    if len(spoken) == 1 and "" not in dataset.languages:
        found["corpus.language"] = spoken[0]
    return found


def is_reported(key: str) -> bool:
    """Returns whether a change of the key is reported."""
    return key in REPORTED or not key.startswith(UNREPORTED)


def changes_samples(key: str) -> bool:
    """Returns whether the key changes how a video is segmented or stored."""
    limits = ("vision.min_frames", "vision.max_frames")
    cut = key.startswith(("vision.", "segmentation."))
    return cut and is_reported(key) and key not in limits and (key not in OVERRIDABLE or key == "vision.crop")


def _overridable(key: str, made: Any, features: bool) -> bool:
    return key in OVERRIDABLE and OVERRIDABLE[key](made, features)


def _check_alike(datasets: Sequence[Dataset], made: Sequence[Mapping[str, Any]]) -> None:
    for dataset, values in zip(datasets[1:], made[1:]):
        features = values.get("vision.kind") == "features"
        for key in SHARED[:-1] if features else SHARED:
            if key in made[0] and key in values and values[key] != made[0][key]:
                raise OtherDataset(
                    f"{datasets[0].url} was made with {key}={_shown(made[0][key])}, {dataset.url} with "
                    f"{_shown(values[key])}: precompute one of them with the other's value"
                )
        weights = [one.info.versions.get("backbone_sha256", "") for one in (datasets[0], dataset)]
        if features and weights[0] != weights[1]:
            raise OtherDataset(
                f"the features of {datasets[0].url} and {dataset.url} come from other backbone weights: precompute one "
                "of them with the other's vision.backbone and vision.backbone_weights"
            )


def _begun(run: Path) -> dict[str, Any]:
    """Returns the keys of `OVERRIDABLE` as a run that has trained already has them; empty for a new one."""
    if not any((run / stage / "log.jsonl").is_file() for stage in ("pretrain", "finetune")):
        return {}
    try:
        recipe = flat(to_mapping(load_recipe(run / "recipe.yaml")))
    except RecipeError:
        return {}
    return {key: recipe[key] for key in OVERRIDABLE}


def _some(parts: Sequence[str], most: int = 6) -> str:
    return ", ".join(parts[:most]) + (f", and {len(parts) - most} more" if len(parts) > most else "")


def _shown(value: Any) -> str:
    return shortened(value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False))
