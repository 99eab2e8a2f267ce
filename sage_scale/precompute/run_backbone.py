"""A trained run's own frame encoder as frozen backbone: `vision.backbone=runs/NAME`.

What training leaves is read by name: the ResNet's tensors `visual.backbone.*` of a `visual.safetensors`, and the recipe
beside or above it, which says how the network is built and whether the clip's background is taken off first.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sage_scale.config import Recipe, Vision, load_recipe
from sage_scale.errors import CheckpointError, RecipeError
from sage_scale.nn.frame_encoder import FrameEncoder
from sage_scale.nn.weights import read_weights
from sage_scale.untrusted.files import expanded
from sage_scale.untrusted.hashes import check_hashes
from sage_scale.vision.backbones import FrozenBackbone
from sage_scale.vision.pretrained_weights import load_exactly

FILES = ("visual.safetensors", "model/visual.safetensors", "pretrain/visual.safetensors")
"""Where a run or an export has its visual side, the later stage first."""
_OURS = "visual.backbone."


def run_weights(backbone: str) -> Path:
    """The weights file that `vision.backbone` names. Raises RecipeError where there is none."""
    place = expanded(backbone)
    if place.suffix == ".safetensors" and place.is_file():
        return place
    for name in FILES:
        if (place / name).is_file():
            return place / name
    raise RecipeError(
        f"vision.backbone={backbone}: neither a backbone's name (resnet34, dinov2-vits14, keypoints) nor a trained run "
        f"with {', '.join(FILES)}"
    )


def check_run(recipe: Recipe) -> None:
    """Raise RecipeError where the run that `vision.backbone` names makes other features than the recipe trains on."""
    file = run_weights(recipe.vision.backbone)
    made = _recipe(file)
    _check_crop(made, recipe.vision)
    width = made.model.backbone.widths[-1]
    if width != recipe.model.feature_dim:
        raise RecipeError(
            f"vision.backbone={recipe.vision.backbone} makes features of {width} numbers, model.feature_dim is "
            f"{recipe.model.feature_dim}: set model.feature_dim={width}"
        )


def read_run(backbone: str) -> None:
    """Raise CheckpointError where the weights that `vision.backbone` names are damaged, or not finite."""
    _read(run_weights(backbone))


def _read(file: Path) -> dict[str, Tensor]:
    check_hashes(file.parent)
    return read_weights(file)


def run_backbone(vision: Vision, device: str | torch.device = "cpu") -> FrozenBackbone:
    """The frame encoder of the run that `vision.backbone` names, as a frozen backbone.

    Raises RecipeError where there is none or its pictures are others, CheckpointError for weights that do not fit.
    """
    file = run_weights(vision.backbone)
    return FrozenBackbone(vision, device, _RunNetwork(file, _recipe(file), vision))


class _RunNetwork:
    """The frame encoder, in evaluation mode as the run's own evaluation has it."""

    def __init__(self, file: Path, recipe: Recipe, vision: Vision) -> None:
        _check_crop(recipe, vision)
        self.background = recipe.vision.background == "median"
        values = _read(file)
        state = {name.removeprefix(_OURS): v for name, v in values.items() if name.startswith(_OURS)}
        if not state:
            raise CheckpointError(
                f"{file} holds no frame encoder: the run was trained on features, or is none of SAGE's"
            )
        self._encoder = FrameEncoder(recipe.model.backbone, recipe.vision.crop, "frozen")
        load_exactly(self._encoder, state, file)
        self.width = self._encoder.width

    @property
    def module(self) -> nn.Module:
        return self._encoder

    def __call__(self, x_BCHW: Tensor, centred: bool) -> Tensor:
        return self._encoder(x_BCHW, centred=centred)


def _check_crop(made: Recipe, vision: Vision) -> None:
    if made.vision.crop != vision.crop:
        raise RecipeError(
            f"vision.backbone={vision.backbone} was trained on pictures of {made.vision.crop} pixels: set "
            f"vision.crop={made.vision.crop}"
        )


def _recipe(file: Path) -> Recipe:
    for folder in (file.parent, file.parent.parent):
        if (folder / "recipe.yaml").is_file():
            return load_recipe(folder / "recipe.yaml")
    raise CheckpointError(f"{file}: no recipe.yaml beside it or in the folder above says how it is built")
