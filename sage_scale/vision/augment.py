"""Image augmentation: one draw for each clip and epoch, equal for all its frames (SAGE, section 4.2; after GFSLT).

Rotation, shift and change of size are one affine sampling that also takes the centre crop; saturation, brightness and
contrast follow. All are linear, so that any range of values will do, and frames minus a background as well.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sage_scale.config import Augment
from sage_scale.vision.draws import uniform

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def is_active(settings: Augment) -> bool:
    """Whether anything is changed at all."""
    return any(value > 0 for value in vars(settings).values())


def centre_crop(frames_FCHW: Tensor, crop: int) -> Tensor:
    """The middle (F, C, crop, crop); a view. Raises ValueError where the frames are smaller."""
    height, width = frames_FCHW.shape[-2:]
    if crop > min(height, width):
        raise ValueError(f"vision.crop={crop} is larger than the stored frames of {width}x{height}")
    top, left = (height - crop) // 2, (width - crop) // 2
    return frames_FCHW[..., top : top + crop, left : left + crop]


def augment(
    frames_FCHW: Tensor, frame_clip_F: Tensor, draws_B: Tensor, settings: Augment, crop: int
) -> Tensor:
    """Changed frames, (F, 3, crop, crop), from float frames (F, 3, H, W).

    `frame_clip_F` says which clip a frame belongs to and `draws_B` (int64) decides each clip's change, and alone
    does: equal draws give equal changes. What comes in from outside the picture is 0. Each change is uniform up to
    its largest value in `settings`: degrees, share of the side, factors 1 - value to 1 + value.
    """
    draws_B7 = 2 * uniform(draws_B[:, None], torch.arange(7, device=draws_B.device)) - 1
    x = centre_crop(frames_FCHW, crop)
    if x.shape[0] and (settings.rotation or settings.translate or settings.scale):
        grid_BHW2 = _grid(draws_B7, settings, crop, frames_FCHW.shape[-2:]).to(x.dtype)
        # One frame's grid is a clip's: gathering it is cheaper than making it for each frame.
        x = F.grid_sample(frames_FCHW, grid_BHW2[frame_clip_F], padding_mode="zeros", align_corners=False)
    factor_B = {
        name: (1 + getattr(settings, name) * draws_B7[:, 4 + place]).to(x.dtype)
        for place, name in enumerate(("brightness", "contrast", "saturation"))
    }
    factor = {name: values[frame_clip_F][:, None, None, None] for name, values in factor_B.items()}
    luma = x.new_tensor(_LUMA)[:, None, None]
    if settings.saturation:
        x = torch.lerp((x * luma).sum(dim=1, keepdim=True), x, factor["saturation"])
    if settings.brightness or settings.contrast:
        mean_F111 = (x.mean(dim=(-2, -1), keepdim=True) * luma).sum(dim=1, keepdim=True)
        grey = (1 - factor["contrast"]) * mean_F111
        x = torch.addcmul(grey * factor["brightness"], x, factor["contrast"] * factor["brightness"])
    return x


def _grid(draws_B7: Tensor, settings: Augment, crop: int, size_HW: torch.Size) -> Tensor:
    """(B, crop, crop, 2): the place in the frame, x and y from -1 to 1, that each pixel is taken from."""
    angle = draws_B7[:, 0] * math.radians(settings.rotation)
    zoom = 1 / (1 + draws_B7[:, 1] * settings.scale)
    x, y = draws_B7[:, 2] * 2 * settings.translate, draws_B7[:, 3] * 2 * settings.translate
    part_y, part_x = crop / size_HW[0], crop / size_HW[1]
    top = torch.stack([part_x * zoom * angle.cos(), -part_x * zoom * angle.sin(), x], dim=1)
    bottom = torch.stack([part_y * zoom * angle.sin(), part_y * zoom * angle.cos(), y], dim=1)
    theta_B23 = torch.stack([top, bottom], dim=1)
    return F.affine_grid(theta_B23, [len(theta_B23), 3, crop, crop], align_corners=False)
