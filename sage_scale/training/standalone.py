"""A trained model as one folder that needs no other file: `sage-scale models export`.

The export of a run (training/export.py), and besides:

tagger/             the segmenter (`segmentation.weights`, or the one of an installed package)
frozen_backbone/    the backbone of stored features (`vision.backbone`, `vision.backbone_weights`)
extractor/          the ONNX models of rtmlib (`vision.extractor_weights`)
backbone/           the configuration of a frame encoder of transformers (`model.backbone.folder`)
vit/                the frozen vision transformer of Sign2GPT (`model.sign2gpt.vit_weights`)
language_model/     the frozen language model of Sign2GPT
README.md           the model card (training/model_readme.py)

`recipe.yaml` names these parts relative to the folder (`./vit`), and no path of the machine that it came from.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sage_scale.config import Recipe, load_recipe, override, to_yaml
from sage_scale.config.recipe import flat, to_mapping
from sage_scale.errors import CheckpointError, UsageError
from sage_scale.extraction.rtmlib_wholebody import rtmlib_files
from sage_scale.nn.weights import read_weights, write_weights
from sage_scale.precompute.frozen_backbone import run_recipe, run_weights
from sage_scale.registry import model_spec
from sage_scale.segmentation.models.hands_on import read_checkpoint
from sage_scale.segmentation.tagger import CONFIG, HANDS_ON, WEIGHTS, has_model, package_folder
from sage_scale.text.hub import LARGEST_FILE, loading, model_source
from sage_scale.training.export import PARTS, export_folder, load_translator, replace_folder
from sage_scale.training.familiarity import FILE as FAMILIARITY
from sage_scale.untrusted.files import expanded
from sage_scale.untrusted.hashes import HASHES, check_hashes, write_hashes
from sage_scale.vision.backbone_choice import BACKBONES, ENCODER, model_folder
from sage_scale.vision.pretrained_weights import read_state_dict

PRIVATE = (
    "corpus.root", "segmentation.labels", "segmentation.features", "vision.keypoints", "stream.cache_dir",
    "pretrain.checkpoints", "finetune.checkpoints", "pretrain.offload_dir", "finetune.offload_dir",
    "finetune.glosses", "model.backbone.weights", "model.language_model", "prototypes.fasttext", "precompute.address",
    "pretrain.wandb", "finetune.wandb",
)  # fmt: skip
"""Keys that name places of one machine; a translation reads none of them."""
LANGUAGE = "language_model"


def write_standalone(
    run: str | Path, out: Path, half: bool = False, finish: Callable[[Path], None] = lambda folder: None
) -> Recipe:
    """Write the model of a run to the new folder `out`, which appears only when it is whole and was opened once.

    `half` stores 16 bits a number. `finish` adds to the finished folder. Returns its recipe.
    Raises UsageError where `out` is there, CheckpointError where a part is missing or damaged.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is there already: give another folder")
    source = export_folder(run)
    check_hashes(source)
    recipe = load_recipe(source / "recipe.yaml")
    out.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=shutil.copyfile, ignore=_ignored)
        changes = [
            *_frozen_backbone(recipe, source, folder), *_weights(recipe, source, folder),
            *_tagger(recipe, source, folder), *_extractor(recipe, source, folder),
        ]  # fmt: skip
        frozen = not (folder / LANGUAGE).is_dir() and model_spec(recipe.model.kind).language is not None
        if frozen:
            _language_model(recipe.model.language_model, folder / LANGUAGE)
        if (folder / ENCODER).is_dir():
            changes.append(f"model.backbone.folder=./{ENCODER}")
        unused = [
            key for key in PARTS if key != "vision.backbone" and all(f"{key}=" not in c for c in changes)
        ]
        known = flat(to_mapping(recipe))
        recipe = override(recipe, [*(f"{key}=" for key in (*PRIVATE, *unused) if known.get(key)), *changes])
        (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
        if half:
            _halve(folder, torch.bfloat16 if frozen else torch.float16)
        load_translator(folder)
        write_hashes(folder)
        finish(folder)
    return recipe


def number_of_parameters(folder: Path) -> int:
    """Returns the number of weights of an export, without its segmenter and the backbone of stored features."""
    from safetensors import safe_open

    total = 0
    for path in folder.rglob("*.safetensors"):
        if path.relative_to(folder).parts[0] not in (FAMILIARITY, "tagger", "frozen_backbone"):
            with safe_open(path, "pt") as file:
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _ignored(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name == HASHES or name.endswith(".partial")}


def _named(value: str, source: Path) -> Path:
    """The file or folder that a recipe's value names; one relative to the export lies in it."""
    return source / value if value.startswith("./") and (source / value).exists() else expanded(value)


def _frozen_backbone(recipe: Recipe, source: Path, folder: Path) -> list[str]:
    """Copy the image model, or the run, that `vision.backbone` names; one with a name needs its weights alone."""
    vision, part = recipe.vision, folder / PARTS["vision.backbone"]
    if vision.kind != "features":
        return []
    named = _named(vision.backbone, source)
    if model_folder(str(named)) is not None:
        _safetensors(named, part)
    elif vision.backbone not in BACKBONES:
        weights = run_weights(str(named))
        part.mkdir()
        shutil.copyfile(weights, part / weights.name)
        shutil.copyfile(run_recipe(weights), part / "recipe.yaml")
        if (weights.parent / ENCODER).is_dir():
            shutil.copytree(weights.parent / ENCODER, part / ENCODER, copy_function=shutil.copyfile)
    else:
        return []
    return [f"vision.backbone=./{part.name}"]


def _weights(recipe: Recipe, source: Path, folder: Path) -> list[str]:
    """Write files of weights as safetensors, under the names that they have."""
    changes = []
    known = flat(to_mapping(recipe))
    for key in ("vision.backbone_weights", "model.sign2gpt.vit_weights"):
        value = str(known.get(key) or "")
        read = (
            recipe.vision.kind == "features"
            if key.startswith("vision.")
            else key.startswith(f"model.{recipe.model.kind}.")
        )
        if not value or not read:
            continue
        _safetensors(_named(value, source), folder / PARTS[key])
        changes.append(f"{key}=./{PARTS[key]}")
    return changes


def _safetensors(source: Path, part: Path) -> None:
    part.mkdir(exist_ok=True)
    write_weights(
        {n: value.contiguous() for n, value in read_state_dict(source).items()}, part / "model.safetensors"
    )
    for name in ("config.json", "preprocessor_config.json"):
        if source.is_dir() and (source / name).is_file():
            shutil.copyfile(source / name, part / name)


def _tagger(recipe: Recipe, source: Path, folder: Path) -> list[str]:
    """Write the segmenter's tensors as safetensors, beside its configuration; the one of an installed package, too."""
    tagger, weights = recipe.segmentation.tagger, recipe.segmentation.weights
    if not has_model(recipe.segmentation) or (
        tagger == "trained" and not weights
    ):  # that comes with sage-scale
        return []
    named = _named(weights, source) if weights else package_folder()
    if not named.exists():
        raise CheckpointError(f"segmentation.weights={weights} is missing: the model's videos are cut by it")
    part = folder / PARTS["segmentation.weights"]
    if tagger not in (HANDS_ON, "published", "trained"):  # registered by a plugin, which knows its files
        shutil.copytree(named, part, copy_function=shutil.copyfile)
        return [f"segmentation.weights=./{part.name}"]
    part.mkdir(exist_ok=True)
    inside = named if named.is_dir() else named.parent
    if tagger == HANDS_ON:
        tensors = read_checkpoint(named)
    else:
        old = sorted(inside.glob("*.pth")) if named.is_dir() and not (named / WEIGHTS).is_file() else []
        tensors = read_state_dict(old[0] if old else named)
    write_weights({name: value.contiguous() for name, value in tensors.items()}, part / WEIGHTS)
    if (inside / CONFIG).is_file():
        shutil.copyfile(inside / CONFIG, part / CONFIG)
    return [f"segmentation.weights=./{part.name}"]


def _extractor(recipe: Recipe, source: Path, folder: Path) -> list[str]:
    """Copy the two models of rtmlib; MediaPipe's come with its set-up."""
    if recipe.vision.extractor != "rtmlib":
        return []
    part = folder / PARTS["vision.extractor_weights"]
    part.mkdir(exist_ok=True)
    for path in rtmlib_files(str(_named(recipe.vision.extractor_weights, source))):
        shutil.copyfile(path, part / path.name)
    return [f"vision.extractor_weights=./{part.name}"]


def _language_model(name: str, folder: Path) -> None:
    """Write a frozen language model, as it is stored, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = model_source(name)
    with loading(source):
        AutoModelForCausalLM.from_pretrained(source, dtype="auto").save_pretrained(
            folder, max_shard_size=LARGEST_FILE
        )
        AutoTokenizer.from_pretrained(str(source)).save_pretrained(folder)


def _halve(folder: Path, frozen: torch.dtype) -> None:
    """Store float32 in 16 bits; models below adapters in bfloat16, in which they are hashed."""
    for path in sorted(folder.rglob("*.safetensors")):
        part = path.relative_to(folder).parts[0]
        dtype = frozen if part in (LANGUAGE, PARTS["model.sign2gpt.vit_weights"]) else torch.float16
        if part in (FAMILIARITY, *PARTS.values()) and part != PARTS["model.sign2gpt.vit_weights"]:
            continue  # small, or the same bytes as in precompute
        if part == LANGUAGE:
            _halve_foreign(path, dtype)
        else:
            write_weights(_halved(read_weights(path), dtype), path)


def _halve_foreign(path: Path, dtype: torch.dtype) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(_halved(load_file(path), dtype), path, metadata)


def _halved(tensors: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {n: value.to(dtype) if value.dtype == torch.float32 else value for n, value in tensors.items()}
