"""Which frozen backbone a recipe names, and whether it can be loaded: to be asked before anything heavy is started."""

from __future__ import annotations

from pathlib import Path

from sage_scale.config import Recipe, Vision
from sage_scale.errors import NoModel, RecipeError
from sage_scale.untrusted.files import expanded
from sage_scale.vision.keypoints import POINTS

WIDTHS = {"resnet34": 512, "dinov2-vits14": 384}
"""Numbers in a row of features, by network."""
NETWORKS = tuple(WIDTHS)
"""Networks that want weights."""
BACKBONES = (*NETWORKS, "keypoints")


def row_width(vision: Vision) -> int:
    """Numbers in a row of features of one of BACKBONES."""
    if vision.backbone == "keypoints":
        return 2 * POINTS * (2 if vision.keypoint_velocities else 1)
    return WIDTHS[vision.backbone]


def check_width(recipe: Recipe) -> None:
    """Raise RecipeError where one of BACKBONES makes rows of another width than the model is to read."""
    vision, width = recipe.vision, row_width(recipe.vision)
    if width != recipe.model.feature_dim:
        raise RecipeError(
            f"vision.backbone={vision.backbone} makes features of {width} numbers, model.feature_dim is "
            f"{recipe.model.feature_dim}: set model.feature_dim={width}"
        )


def check_weights(vision: Vision) -> Path | None:
    """The file or folder of the weights of a network; None where weights are random.

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
