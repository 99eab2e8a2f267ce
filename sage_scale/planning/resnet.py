"""Operations of the ResNet of `model.backbone`, convolution by convolution."""

from __future__ import annotations

from collections.abc import Iterator

from sage_scale.config import Recipe


def resnet_operations(recipe: Recipe) -> tuple[float, float]:
    """Returns the operations of one frame's forward pass, and those of the first convolution alone."""
    convolutions = list(_convolutions(recipe))
    total = float(sum(convolutions))
    if recipe.model.backbone.pool == "flatten":
        side = recipe.vision.crop
        for _ in range(
            len(recipe.model.backbone.widths) + 1
        ):  # the stem halves twice, each further stage once
            side = _halved(side)
        total += 2 * recipe.model.backbone.widths[-1] ** 2 * side**2
    return total, float(convolutions[0])


def _convolutions(recipe: Recipe) -> Iterator[int]:
    """The stem, and basic blocks of two convolutions, with a third where size or width change."""
    backbone = recipe.model.backbone
    inputs, side = backbone.widths[0], _halved(recipe.vision.crop)
    yield 2 * 7**2 * 3 * inputs * side**2
    side = _halved(side)
    for stage, (depth, width) in enumerate(zip(backbone.depths, backbone.widths, strict=True)):
        side = _halved(side) if stage else side
        for block in range(depth):
            shortcut = inputs if block == 0 and (stage or inputs != width) else 0
            yield 2 * (9 * inputs + 9 * width + shortcut) * width * side**2
            inputs = width


def _halved(side: int) -> int:
    return (side + 1) // 2
