"""Which frozen backbone a recipe names, and whether it can be loaded: to be asked before anything heavy is started."""

from __future__ import annotations

from pathlib import Path

from sage_scale.config import Vision
from sage_scale.errors import CheckpointError, RecipeError

NETWORKS = ("resnet34", "dinov2-vits14")
"""Networks that want weights."""
BACKBONES = (*NETWORKS, "keypoints")


def check_weights(vision: Vision) -> Path | None:
    """The file or folder of the weights of a network; None where weights are random.

    Raises RecipeError where the recipe has neither weights nor the permission to do without, CheckpointError where they
    are not there.
    """
    if vision.backbone_weights:
        path = Path(vision.backbone_weights).expanduser()
        if not path.exists():
            raise CheckpointError(f"vision.backbone_weights: there is no {path}")
        return path
    if not vision.allow_random_backbone:
        raise RecipeError(
            f"vision.backbone={vision.backbone} needs vision.backbone_weights=FILE_OR_FOLDER "
            "(random features only with vision.allow_random_backbone=true)"
        )
    return None
