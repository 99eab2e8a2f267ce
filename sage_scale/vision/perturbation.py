"""Other recording conditions of the same signing: wall, light, colour, resolution, place in the picture, frame rate.

Familiarity (training/familiarity.py) must not mistake these for unfamiliar signing. Every change is drawn by the clip's
key, so that ranks and batches do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sage_scale.vision.packed import PackedVideo, view_seed

MOVED = 24.0
"""A pixel that differs from the background by more, of 255, belongs to the signer."""


def perturbed(video: PackedVideo, keys: Sequence[str], view: int) -> PackedVideo:
    """Returns the clips of other recording conditions; features as they are. `keys` are 16 hex digits a clip."""
    if video.frames_FCHW is None:
        return video
    frames, backgrounds = [], []
    for number, clip_FCHW in enumerate(video.frames_FCHW.split(video.clip_frames_B().tolist())):
        given = video.background_BCHW[[number]] if video.background_BCHW is not None else None
        generator = torch.Generator().manual_seed(view_seed(keys[number], view))
        changed_FCHW, background_1CHW = _perturbed_clip(clip_FCHW, given, generator)
        frames.append(changed_FCHW)
        backgrounds.append(background_1CHW)
    return replace(
        video,
        frames_FCHW=torch.cat(frames),
        background_BCHW=None if video.background_BCHW is None else torch.cat(backgrounds),
    )


def _perturbed_clip(
    frames_FCHW: Tensor, background_1CHW: Tensor | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    def draw(low: float, high: float) -> float:
        return float(torch.empty(()).uniform_(low, high, generator=generator))

    side, device = frames_FCHW.shape[-2:], frames_FCHW.device
    x = frames_FCHW.float()
    still = x.median(0, keepdim=True).values if background_1CHW is None else background_1CHW.float()
    if draw(0, 1) < 0.6:  # another wall, plain to cluttered, behind all that moves
        cells = int(2 ** draw(0, 4))
        colours = torch.randn(1, 3, cells, cells, generator=generator).to(device) * draw(10, 60)
        wall = F.interpolate(colours, size=side, mode="bilinear", align_corners=False)
        moved = ((x - still).abs().amax(1, keepdim=True) > MOVED).float()
        x, still = x + wall * (1 - F.max_pool2d(moved, 3, 1, 1)), still + wall
    tint = torch.empty(1, 3, 1, 1).uniform_(0.85, 1.15, generator=generator).to(device) * draw(0.7, 1.3)
    light = draw(-25, 25)
    x, still = x * tint + light, still * tint + light
    if draw(0, 1) < 0.5:
        share = draw(0.4, 1)
        small = [max(8, int(length * share)) for length in side]
        x, still = (_resized(_resized(part, small), side) for part in (x, still))
    if draw(0, 1) < 0.5:
        zoom = draw(0.9, 1.12)
        affine_123 = torch.tensor([[[1 / zoom, 0, draw(-0.08, 0.08)], [0, 1 / zoom, draw(-0.08, 0.08)]]])
        grid_1HW2 = F.affine_grid(affine_123.to(device), [1, 3, *side], align_corners=False)
        x, still = (
            F.grid_sample(
                part, grid_1HW2.expand(len(part), -1, -1, -1), padding_mode="border", align_corners=False
            )
            for part in (x, still)
        )
    if draw(0, 1) < 0.3:  # half the frame rate
        frame_F = torch.arange(len(x), device=device)
        x = x[frame_F - frame_F % 2]
    return tuple(part.clamp(0, 255).round().to(torch.uint8) for part in (x, still))  # type: ignore[return-value]


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", antialias=True, align_corners=False)
