"""Sizes and operations of the ResNet of `model.backbone`, convolution by convolution (docs/clcl.md, "The encoder")."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sage_scale.config import Recipe


@dataclass(frozen=True, slots=True)
class Convolution:
    inputs: int
    outputs: int
    kernel: int
    side: int
    kept_maps: int = 2

    @property
    def map(self) -> int:
        return self.outputs * self.side**2

    @property
    def operations(self) -> int:
        return 2 * self.kernel**2 * self.inputs * self.map


def trained_resnet_operations(recipe: Recipe) -> float:
    """Of a frame's forward and backward pass through the ResNet of `model.backbone`; nobody asks for the gradient of
    pixels."""
    operations = [layer.operations for layer in resnet_convolutions(recipe)]
    return 3 * sum(operations) - operations[0]


def resnet_convolutions(recipe: Recipe) -> Iterator[Convolution]:
    """The ResNet's: the stem, and basic blocks of two, with a third where size or width change."""
    backbone = recipe.model.backbone
    side = halved(recipe.vision.crop)
    yield Convolution(3, backbone.widths[0], 7, side)
    side = halved(side)
    inputs = backbone.widths[0]
    for stage, (depth, width) in enumerate(zip(backbone.depths, backbone.widths, strict=True)):
        if stage:
            side = halved(side)
        for block in range(depth):
            yield Convolution(inputs, width, 3, side)
            yield Convolution(width, width, 3, side)
            if block == 0 and (stage or inputs != width):
                yield Convolution(inputs, width, 1, side, kept_maps=1)
            inputs = width


def halved(side: int) -> int:
    return (side + 1) // 2
