"""A ResNet of basic blocks written out with torchvision's names: random weights, and the published forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def torchvision_state(depths: Sequence[int], widths: Sequence[int]) -> dict[str, torch.Tensor]:
    """Random weights under the names that `torchvision.models.resnet` gives a ResNet of basic blocks."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        state[f"{name}.weight"] = (
            torch.randn(out, into, kernel, kernel, generator=generator) * (2 / into) ** 0.5 / kernel
        )

    def norm(name: str, width: int) -> None:
        for leaf, low, high in (
            ("weight", 0.5, 1.5),
            ("bias", -1, 1),
            ("running_mean", -1, 1),
            ("running_var", 0.5, 2),
        ):
            state[f"{name}.{leaf}"] = torch.rand(width, generator=generator) * (high - low) + low
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", widths[0], 3, 7)
    norm("bn1", widths[0])
    into = widths[0]
    for stage, (depth, width) in enumerate(zip(depths, widths), start=1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            conv(f"{name}.conv1", width, into, 3)
            norm(f"{name}.bn1", width)
            conv(f"{name}.conv2", width, width, 3)
            norm(f"{name}.bn2", width)
            if block == 0 and stage > 1:
                conv(f"{name}.downsample.0", width, into, 1)
                norm(f"{name}.downsample.1", width)
            into = width
    state["fc.weight"], state["fc.bias"] = torch.randn(10, into, generator=generator), torch.zeros(10)
    return state


def torchvision_forward(
    state: dict[str, torch.Tensor], depths: Sequence[int], x: torch.Tensor
) -> torch.Tensor:
    """The last map of that ResNet in eval mode, as torchvision's `_forward_impl` has it."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        s = {
            leaf: state[f"{name}.{leaf}"].to(x) for leaf in ("running_mean", "running_var", "weight", "bias")
        }
        return F.batch_norm(x, **s)

    def conv(name: str, x: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"].to(x), stride=stride, padding=padding)

    x = F.max_pool2d(F.relu(norm("bn1", conv("conv1", x, 2, 3))), 3, 2, 1)
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if block == 0 and stage > 1 else 1
            out = F.relu(norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride, 1)))
            out = norm(f"{name}.bn2", conv(f"{name}.conv2", out, 1, 1))
            if f"{name}.downsample.0.weight" in state:
                x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", x, stride, 0))
            x = F.relu(out + x)
    return x
