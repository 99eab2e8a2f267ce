"""Which frozen backbone a recipe names, and whether it can be loaded: to be asked before anything heavy is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sage_scale.config import Backbone, Vision
from sage_scale.config.data import NETWORK_WIDTHS
from sage_scale.errors import CheckpointError, NoModel, RecipeError
from sage_scale.untrusted.files import expanded, read_bytes
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object

NETWORKS = tuple(NETWORK_WIDTHS)
"""Networks that want weights."""
BACKBONES = (*NETWORKS, "keypoints")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PREPROCESSOR = "preprocessor_config.json"
"""File of a model's folder with mean and deviation of its pictures."""
ENCODER = "backbone"
"""Folder beside a run's weights with the configuration of a trained image model."""


def bfloat16_units() -> str:
    """Returns the flag of this processor's units that multiply bfloat16 matrices or vectors; empty for none."""
    listing = Path("/proc/cpuinfo")
    flags = listing.read_text(errors="replace").split() if listing.exists() else []
    return next((name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in flags), "")


def check_weights(vision: Vision) -> Path | None:
    """Returns the file or folder of the weights of a network; None where weights are random.

    Raises RecipeError where the recipe has neither weights nor the permission to do without, NoModel where they
    are not there.
    """
    if vision.backbone_weights:
        path = expanded(vision.backbone_weights)
        if not path.exists():
            raise NoModel(f"vision.backbone_weights: there is no {path}")
        return path
    if not vision.allow_random_backbone:
        raise RecipeError(
            f"vision.backbone={vision.backbone} needs vision.backbone_weights=FILE_OR_FOLDER "
            "(random features only with vision.allow_random_backbone=true)"
        )
    return None


def encoder_width(backbone: Backbone) -> int:
    """Returns the width of the trained frame encoder of `model.backbone`. Raises CheckpointError for a wrong folder."""
    return model_width(expanded(backbone.folder)) if backbone.folder else backbone.widths[-1]


def encoder_beside(folder: Path) -> list[str]:
    """Returns overrides for a recipe that was moved with its weights: the configuration of its own image model."""
    here = folder / ENCODER
    return [f"model.backbone.folder={here}"] if (here / "config.json").is_file() else []


def model_folder(backbone: str) -> Path | None:
    """Returns the folder of a transformers model that `vision.backbone` names, or None where it names none."""
    folder = expanded(backbone)
    return folder if backbone not in BACKBONES and (folder / "config.json").is_file() else None


def model_width(folder: Path) -> int:
    """Returns the numbers in a row of features, from a model's configuration. Raises CheckpointError without them."""
    config = _json(folder / "config.json")
    if isinstance(config.get("vision_config"), dict):
        config = config["vision_config"]
    sizes = config.get("hidden_sizes")
    width = config.get("hidden_size") or (sizes[-1] if isinstance(sizes, list) and sizes else None)
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise CheckpointError(
            f"{folder / 'config.json'} tells no width of its features (hidden_size, hidden_sizes)"
        )
    return width


def picture_statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and deviation by which a model's pictures are normalised, for values from 0 to 1."""
    path = folder / PREPROCESSOR
    said = _json(path) if path.is_file() else {}
    mean, std = said.get("image_mean", IMAGENET_MEAN), said.get("image_std", IMAGENET_STD)
    for values in (mean, std):
        if len(values) != 3 or not all(isinstance(value, int | float) for value in values):
            raise CheckpointError(f"{path}: image_mean and image_std must be three numbers each")
    return tuple(map(float, mean)), tuple(map(float, std))


def _json(path: Path) -> dict[str, Any]:
    try:
        return parse_json_object(read_bytes(path))
    except (OSError, InvalidJSON) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
