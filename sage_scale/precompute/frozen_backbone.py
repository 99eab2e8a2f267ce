"""The frozen backbone of `vision.backbone`: a network by name, keypoints, a folder of a transformers model, or a run.

Of a run its own frame encoder is used: the tensors `visual.backbone.*` of a `visual.safetensors`, and the recipe beside
or above it, which tells the network's shape and whether the clip's background is subtracted first. Torch is imported
only where a backbone is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from sage_scale.config import Recipe, Vision, load_recipe
from sage_scale.config.data import feature_width
from sage_scale.config.learning import Model
from sage_scale.errors import CheckpointError, RecipeError, SageError, UsageError
from sage_scale.untrusted.files import expanded
from sage_scale.untrusted.hashes import check_hashes
from sage_scale.vision.backbone_choice import (
    BACKBONES,
    ENCODER,
    NETWORKS,
    check_weights,
    encoder_beside,
    encoder_width,
    model_folder,
    model_width,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sage_scale.vision.backbones import FrozenBackbone

FILES = ("visual.safetensors", "model/visual.safetensors", "pretrain/visual.safetensors")
"""The visual side's file in a run or an export, the later stage first."""
NETWORK_MB = 90.0
"""Most that the weights of a network with a name take, MB."""
_PREFIX = "visual.backbone."
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_SETTINGS = ("config.json", "preprocessor_config.json")


def check_backbone(recipe: Recipe) -> Recipe:
    """Returns the recipe with the width of its backbone's features, where `model.feature_dim` is at its default.

    Raises RecipeError for features of another width or crop than the recipe trains on, NoModel for missing weights.
    With a cluster's address a folder is not looked at, since a node has its own file system.
    """
    vision, here = recipe.vision, not recipe.precompute.address
    if vision.kind != "features":
        return recipe
    width = feature_width(vision)
    if here and vision.backbone in NETWORKS:
        check_weights(vision)
    elif here and vision.backbone not in BACKBONES:
        if folder := model_folder(vision.backbone):
            width = model_width(folder)
        else:
            made = _recipe(run_weights(vision.backbone))
            _check_crop(made, vision)
            width = encoder_width(made.model.backbone)
        if recipe.model.feature_dim == Model.feature_dim and "model.feature_dim" not in recipe.given:
            return with_width(recipe, width)
    if width not in (None, recipe.model.feature_dim):
        raise RecipeError(
            f"vision.backbone={vision.backbone} makes features of {width} numbers, model.feature_dim is "
            f"{recipe.model.feature_dim}: set model.feature_dim={width}"
        )
    return recipe


def with_width(recipe: Recipe, width: int) -> Recipe:
    """Returns the recipe with features of another width; what was given stays known."""
    changed = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, feature_dim=width))
    object.__setattr__(changed, "given", recipe.given)
    return changed


def read_backbone_weights(vision: Vision) -> None:
    """Raises CheckpointError where the backbone's weights are damaged, or not finite."""
    if vision.kind != "features" or vision.backbone == "keypoints":
        return
    if folder := model_folder(vision.backbone):
        from sage_scale.vision.image_models import ImageModel

        ImageModel.open(folder)
    elif vision.backbone not in BACKBONES:
        _read(run_weights(vision.backbone))
    elif (weights := check_weights(vision)) is not None:
        from sage_scale.vision.pretrained_weights import read_state_dict

        read_state_dict(weights)


def weights_mb(vision: Vision) -> float | None:
    """Returns the size of the backbone's weights, MB; None where they are not to be seen from this machine."""
    if vision.backbone in NETWORKS:
        return NETWORK_MB
    try:
        return sum(file.stat().st_size for file in _weight_files(vision)[0]) / 2**20
    except (SageError, OSError):
        return None


def weights_sha256(vision: Vision) -> str:
    """Returns the hash of the backbone's weights, file by file in order of names; empty for random ones.

    Of a transformers model, a run's too, its configuration counts: layers, activations, normalisation of pictures.
    """
    files, configured = _weight_files(vision)
    if not files:
        return ""
    settings = [configured / name for name in _SETTINGS] if configured else []
    sha = hashlib.sha256()
    for file in [*files, *(file for file in settings if file.is_file())]:
        with file.open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()


def _weight_files(vision: Vision) -> tuple[list[Path], Path | None]:
    """Returns the files of the weights and the folder of a model's configuration. Raises UsageError, NoModel."""
    configured: Path | None = None
    if folder := model_folder(vision.backbone):
        path = configured = folder
    elif vision.backbone not in BACKBONES:
        path = run_weights(vision.backbone)
        configured = path.parent / ENCODER
    elif not vision.backbone_weights:
        return [], None
    else:
        path = Path(vision.backbone_weights)
    files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise UsageError(f"vision.backbone_weights={path}: no weights there (safetensors or a state dict)")
    return files, configured


def open_backbone(vision: Vision, device: str | torch.device = "cpu") -> FrozenBackbone:
    """Returns the backbone on `device`.

    Raises RecipeError for a run that is not there or was trained on other pictures, CheckpointError for wrong weights.
    """
    from sage_scale.vision.backbones import FrozenBackbone
    from sage_scale.vision.image_models import ImageModel

    if vision.backbone in BACKBONES:
        return FrozenBackbone(vision, device)
    if folder := model_folder(vision.backbone):
        return FrozenBackbone(vision, device, ImageModel.open(folder))
    file = run_weights(vision.backbone)
    recipe = _recipe(file)
    _check_crop(recipe, vision)
    background = recipe.vision.background == "median"
    return FrozenBackbone(vision, device, _run_encoder(file, recipe), background)


def run_weights(backbone: str) -> Path:
    """Returns the weights file of the run that `vision.backbone` names. Raises RecipeError where there is none."""
    path = expanded(backbone)
    if path.suffix == ".safetensors" and path.is_file():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise RecipeError(
        f"vision.backbone={backbone}: neither a backbone's name (resnet34, dinov2-vits14, keypoints), nor a folder "
        f"of a transformers model (config.json), nor a trained run with {', '.join(FILES)}"
    )


def _run_encoder(file: Path, recipe: Recipe) -> nn.Module:
    """Returns a run's frame encoder. Raises CheckpointError where the file holds none."""
    from sage_scale.nn.frame_encoder import make_frame_encoder
    from sage_scale.vision.pretrained_weights import load_exactly

    state = {name.removeprefix(_PREFIX): v for name, v in _read(file).items() if name.startswith(_PREFIX)}
    if not state:
        raise CheckpointError(
            f"{file} holds no frame encoder: the run was trained on features, or is none of SAGE's"
        )
    model = dataclasses.replace(recipe.model, batchnorm="frozen")
    encoder = make_frame_encoder(dataclasses.replace(recipe, model=model))
    load_exactly(encoder, state, file)
    return encoder


def _read(file: Path) -> dict[str, Tensor]:
    from sage_scale.nn.weights import read_weights

    check_hashes(file.parent)
    return read_weights(file)


def _check_crop(made: Recipe, vision: Vision) -> None:
    if made.vision.crop != vision.crop:
        raise RecipeError(
            f"vision.backbone={vision.backbone} was trained on pictures of {made.vision.crop} pixels: set "
            f"vision.crop={made.vision.crop}"
        )


def _recipe(file: Path) -> Recipe:
    return load_recipe(run_recipe(file), encoder_beside(file.parent))


def run_recipe(file: Path) -> Path:
    """Returns the recipe of a run's weights file, beside it or above. Raises CheckpointError where there is none."""
    for folder in (file.parent, file.parent.parent):
        if (folder / "recipe.yaml").is_file():
            return folder / "recipe.yaml"
    raise CheckpointError(f"{file}: no recipe.yaml beside it or in the folder above says how it is built")
