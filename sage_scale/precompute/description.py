"""`dataset.json`: what an output holds, written before its first shard and compared by every later run.

It names everything that decides the bytes: the recipe's dataset part, the manifest's digest, versions of what decodes,
encodes and tags, the kind of device. Another recipe or manifest is refused by naming what differs; other versions or
another device need `precompute.allow_mixed=true`, since the dataset is then complete but not byte-identical.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sage_scale.config import Recipe, Vision
from sage_scale.corpora.clip import Manifest
from sage_scale.errors import UsageError
from sage_scale.precompute.plan import Unit

ENVIRONMENT_KEYS = ("versions", "device", "tagger")
"""Keys of dataset.json that come from an actor's machine rather than from recipe and manifest."""


def plan_part(recipe: Recipe, manifest: Manifest, units: Sequence[Unit]) -> dict[str, Any]:
    """The keys of dataset.json that recipe and manifest decide."""
    clips: Counter[str] = Counter(clip.split for clip in manifest.clips)
    shards: Counter[str] = Counter(unit.split for unit in units)
    return {
        "recipe_fingerprint": recipe.dataset_fingerprint(),
        "recipe": recipe.dataset_part(),
        "manifest_digest": manifest.digest(),
        "clips": len(manifest.clips),
        "rows_rejected": len(manifest.rejected),
        "units": len(units),
        "splits": {name: {"clips": clips[name], "units": shards[name]} for name in clips},
    }


def environment(recipe: Recipe, tagger: str) -> dict[str, Any]:
    """Versions and kind of device of this process, as far as they can change a byte. Raises UsageError for missing weights."""
    vision = recipe.vision
    packages = ["av", "numpy", "pillow"]
    device = f"cpu-{platform.machine()}"
    extra: dict[str, Any] = {}
    if vision.kind == "features" and vision.backbone != "keypoints":
        import torch

        packages.append("torch")
        if recipe.precompute.gpus_per_actor > 0 and torch.cuda.is_available():
            device = torch.cuda.get_device_name()
        else:
            device += f"-{torch.backends.cpu.get_cpu_capability().lower()}"
        extra["backbone_sha256"] = weights_sha256(vision)
    package = tagger.partition(" ")[0]
    packages += [name for name in ("spacy", "HanTa", "jieba") if name.lower() == package.lower()]
    versions = {"sage_scale": _own_version(), "libav": _libraries()}
    versions |= {name.lower(): importlib.metadata.version(name) for name in packages}
    return {"versions": dict(sorted(versions.items())) | extra, "device": device, "tagger": tagger}


def weights_sha256(vision: Vision) -> str:
    """Hash of the frozen backbone's weights, file by file in the order of names; empty for random ones."""
    if not vision.backbone_weights:
        return ""
    path = Path(vision.backbone_weights)
    kinds = (".safetensors", ".bin", ".pt", ".pth")
    files = sorted(file for file in path.iterdir() if file.suffix in kinds) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise UsageError(f"vision.backbone_weights={path}: no weights there (safetensors or a state dict)")
    sha = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()


def check_same_plan(url: str, stored: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise UsageError where the output belongs to another recipe or manifest, naming what differs."""
    if stored.get("recipe") != ours["recipe"]:
        changes = list(_differences(stored.get("recipe", {}), ours["recipe"], ""))
        shown = "; ".join(f"{key} is {_show(old)} there, {_show(new)} here" for key, old, new in changes[:6])
        more = f"; and {len(changes) - 6} more" if len(changes) > 6 else ""
        raise UsageError(
            f"{url} holds a dataset of another recipe: {shown}{more}. Use those values, another --out, or "
            "--overwrite to start again"
        )
    if stored.get("manifest_digest") != ours["manifest_digest"]:
        raise UsageError(
            f"{url} holds a dataset of another manifest ({stored.get('clips', '?')} clips there, {ours['clips']} here; "
            "digests differ): an output cannot be extended by new clips. Use another --out, or --overwrite to "
            "start again with all of them"
        )


def check_same_environment(stored: Mapping[str, Any], ours: Mapping[str, Any], allow_mixed: bool) -> str:
    """One line on versions or devices that differ, empty where none do. Raises UsageError unless they may be mixed."""
    changes = [
        difference
        for key in ENVIRONMENT_KEYS
        for difference in _differences(stored.get(key), ours.get(key), key)
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


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, old, new


def _show(value: Any) -> str:
    return "unset" if value is None else "''" if value == "" else str(value)


def _own_version() -> str:
    try:
        return importlib.metadata.version("sage-scale")
    except importlib.metadata.PackageNotFoundError:
        return "source tree"  # `ray job submit --working-dir .` runs it without installing


def _libraries() -> str:
    import av

    names = ("libavcodec", "libswscale")
    return " ".join(f"{name}-{'.'.join(map(str, av.library_versions.get(name, ())))}" for name in names)
