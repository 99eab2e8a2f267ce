"""`dataset.json`: written before an output's first shard, and compared with every later run and every actor.

It records all that decides the bytes: the recipe's dataset part, the manifest's digest, versions of the libraries that
decode, encode and tag, the kind of device. Another recipe is refused, naming the keys that differ, and so are other
keys that choose the clips (`notes.corpus`). Other versions or another device need `precompute.allow_mixed=true`: the
dataset is then complete but not byte-identical.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sage_scale.config import Recipe
from sage_scale.corpora.manifest import Manifest
from sage_scale.errors import UsageError
from sage_scale.keypoints.features import FEATURES_VERSION
from sage_scale.precompute.frozen_backbone import weights_sha256
from sage_scale.precompute.plan import Unit
from sage_scale.segmentation.tagger import has_model, segmenter_fingerprint
from sage_scale.shards.layout import DATASET_JSON, DatasetInfo, PlannedUnit, parse_info
from sage_scale.storage import Store, Unconditional
from sage_scale.vision.backbone_choice import bfloat16_units

NO_UNITS = "no bfloat16 units"
"""End of the kind of device of an actor whose processor computes in bfloat16 without units for it."""
_SIZE_KEYS = ("train_clips", "dev_clips", "test_clips", "heldout_clips")
"""Keys of the synthetic corpus by which it may grow in an extension."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Properties of an actor's process that can change a byte."""

    versions: dict[str, str]
    """Versions of the libraries that decode, encode and tag, of the numbers made of keypoints, and hashes of the
    weights of a frozen backbone and a tagger."""
    device: str
    """Kind of device."""
    tagger: str
    """Part-of-speech tagger and its version."""


class EnvironmentCheck:
    """Admits actors: the first one's environment goes into dataset.json, all others must agree with it."""

    def __init__(
        self,
        store: Store,
        recipe: Recipe,
        manifest: Manifest,
        units: Sequence[Unit],
        info: DatasetInfo | None,
    ) -> None:
        """`units` are those of the manifest; `info` is dataset.json, None where it is yet to be written."""
        self.store, self.recipe, self.manifest, self.units, self.info = store, recipe, manifest, units, info
        self.say: Callable[[str], None] = lambda line: None
        """Takes a line on each difference that is allowed."""
        self._said: set[str] = set()

    def __call__(self, here: Environment) -> str:
        """Returns the digest of dataset.json. Raises UsageError for an environment that may not add to the output, and
        Unconditional where a new output's store does not keep its first writer's object."""
        url, recipe = self.store.url, self.recipe
        if self.info is None:
            info = describe(recipe, self.manifest, self.units, here)
            if self.store.put_if_absent(DATASET_JSON, info.to_bytes()):
                if self.store.put_if_absent(
                    DATASET_JSON, info.to_bytes()
                ):  # each shard is stored once by this alone
                    self.store.delete(DATASET_JSON)
                    raise Unconditional(url)
                self.info = info
            else:  # another driver was faster; its output must be the same
                self.info = parse_info(self.store.get(DATASET_JSON), f"{url}/{DATASET_JSON}")
                check_same_recipe(url, self.info, recipe)
                check_same_manifest(url, self.info, recipe, self.manifest)
        lines = [check_same_environment(self.info, here, recipe.precompute.allow_mixed)]
        if here.device.endswith(NO_UNITS):
            lines.append(
                f"vision.backbone_dtype=bfloat16 on a processor with {NO_UNITS}: it is slower than float32 there, and "
                "the output's other actors must lack them too"
            )
        for line in lines:
            if line and line not in self._said:
                self._said.add(line)
                self.say(line)
        return self.info.digest


def describe(
    recipe: Recipe, manifest: Manifest, units: Sequence[Unit], environment: Environment
) -> DatasetInfo:
    """Returns dataset.json of a new output."""
    return DatasetInfo(
        kind=recipe.vision.kind,
        recipe=recipe.dataset_fingerprint(),
        manifest=manifest.digest(),
        units=tuple(PlannedUnit(split=unit.split, clips=len(unit.clips)) for unit in units),
        recipe_part=recipe.dataset_part(),
        versions=environment.versions,
        device=environment.device,
        notes={
            "tagger": environment.tagger,
            "rows_rejected": len(manifest.rejected),
            "corpus": recipe.corpus_part(),
            **({"notice": manifest.notice} if manifest.notice else {}),
            **({"feature_dim": recipe.model.feature_dim} if recipe.vision.kind == "features" else {}),
        },
    )


def environment_here(recipe: Recipe, tagger: str) -> Environment:
    """Returns the environment of this process. Raises UsageError for missing weights."""
    import av

    vision = recipe.vision
    names = ("libavcodec", "libswscale")
    libraries = (f"{name} {'.'.join(map(str, av.library_versions.get(name, ())))}" for name in names)
    versions = {"sage_scale": _own_version(), "av": f"{av.__version__} ({', '.join(libraries)})"}
    versions |= {name: importlib.metadata.version(name) for name in ("numpy", "pillow")}
    device = f"cpu {platform.machine()}"
    backbone = vision.kind == "features" and vision.backbone != "keypoints"
    if vision.kind == "features" and vision.backbone == "keypoints":
        versions["keypoint_features"] = FEATURES_VERSION
    if backbone:
        versions["backbone_sha256"] = weights_sha256(vision)
    if has_model(recipe.segmentation):
        versions["segmenter_sha256"] = segmenter_fingerprint(recipe.segmentation)
    if backbone or has_model(recipe.segmentation):
        import torch

        versions["torch"] = torch.__version__
        if backbone and recipe.precompute.gpus_per_actor > 0 and torch.cuda.is_available():
            device = torch.cuda.get_device_name()
        else:
            device += f" {torch.backends.cpu.get_cpu_capability().lower()}"
            if backbone and vision.backbone_dtype == "bfloat16":  # other units, other bytes
                device += f", {bfloat16_units() or NO_UNITS}"
    return Environment(versions=dict(sorted(versions.items())), device=device, tagger=tagger)


def check_same_recipe(url: str, stored: DatasetInfo, recipe: Recipe) -> None:
    """Raises UsageError where the output belongs to another recipe, naming the keys that differ."""
    if stored.recipe != recipe.dataset_fingerprint():
        changes = list(differences(stored.recipe_part, recipe.dataset_part(), ""))
        raise UsageError(
            f"{url} holds a dataset of another recipe: {shown_changes(changes)}. Use those values, another --out, or "
            "--overwrite to start again"
        )


def check_same_manifest(url: str, stored: DatasetInfo, recipe: Recipe, manifest: Manifest) -> None:
    """Raises UsageError where the output belongs to another manifest, by other keys or of another corpus."""
    if stored.manifest == manifest.digest():
        return
    if changes := _other_choice(stored, recipe):
        raise UsageError(
            f"{url} holds a dataset whose clips were chosen otherwise: {shown_changes(changes)}. Use those values, "
            "another --out, or --overwrite to start again"
        )
    there = sum(unit.clips for unit in stored.units)
    raise UsageError(
        f"{url} holds a dataset of another manifest ({there} clips there, {len(manifest.clips)} here; the digests "
        "differ). Add the clips that are new with --extend, use another --out, or --overwrite to start again"
    )


def check_same_choice(url: str, stored: DatasetInfo, recipe: Recipe) -> None:
    """Raises UsageError where an extension would choose clips by other keys than the output was begun with."""
    changes = [
        change for change in _other_choice(stored, recipe) if change[0].split(".")[-1] not in _SIZE_KEYS
    ]
    if changes:
        raise UsageError(
            f"{url} cannot be extended with clips that are chosen otherwise: {shown_changes(changes)}. Use those "
            "values, or another --out"
        )


def check_same_environment(stored: DatasetInfo, ours: Environment, allow_mixed: bool) -> str:
    """Returns a line on versions or devices that differ, else "". Raises UsageError unless they may be mixed."""
    changes = [
        *differences(dict(stored.versions), ours.versions, "versions"),
        *differences(stored.device, ours.device, "device"),
        *differences(stored.notes.get("tagger"), ours.tagger, "tagger"),
    ]
    if not changes:
        return ""
    shown = "; ".join(f"{key} was {_show(old)}, is {_show(new)}" for key, old, new in changes)
    if allow_mixed:
        return f"mixed dataset, not byte-identical to an undisturbed run's: {shown}"
    raise UsageError(
        f"the output was begun with other versions or on another kind of device: {shown}. Restore them, start again "
        "with --overwrite, or go on with precompute.allow_mixed=true"
    )


def _other_choice(stored: DatasetInfo, recipe: Recipe) -> list[tuple[str, Any, Any]]:
    there = stored.notes.get("corpus")  # absent where the dataset is older than this note
    return list(differences(there, recipe.corpus_part(), "corpus")) if there is not None else []


def differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, old, new


def shown_changes(changes: Sequence[tuple[str, Any, Any]]) -> str:
    shown = "; ".join(f"{key} is {_show(old)} there, {_show(new)} here" for key, old, new in changes[:6])
    return shown + (f"; and {len(changes) - 6} more" if len(changes) > 6 else "")


def _show(value: Any) -> str:
    return "unset" if value is None else "''" if value == "" else str(value)


def _own_version() -> str:
    try:
        return importlib.metadata.version("sage-scale")
    except importlib.metadata.PackageNotFoundError:
        return "source tree"  # `ray job submit --working-dir .` runs it without installing
