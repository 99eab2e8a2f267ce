"""Image augmentation: one draw for each clip and epoch, equal for all its frames (SAGE, section 4.2; after GFSLT).

Rotation, shift and change of size are one affine sampling that also takes the centre crop; brightness, contrast and
saturation follow. All are linear, so that frames minus a background may be given as well as plain frames.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sage_scale.config import Augment
from sage_scale.vision.draws import uniform

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def is_active(augment: Augment) -> bool:
    """Whether anything is changed at all."""
    return any(value > 0 for value in vars(augment).values())


def centre_crop(frames_FCHW: Tensor, crop: int) -> Tensor:
    """The middle (F, C, crop, crop); a view."""
    height, width = frames_FCHW.shape[-2:]
    if crop > min(height, width):
        raise ValueError(f"vision.crop={crop} is larger than the stored frames of {width}x{height}")
    top, left = (height - crop) // 2, (width - crop) // 2
    return frames_FCHW[..., top : top + crop, left : left + crop]


def augment(
    frames_FCHW: Tensor, frame_clip_F: Tensor, draws_B: Tensor, settings: Augment, crop: int
) -> Tensor:
    """Changed frames, (F, 3, crop, crop), from float frames (F, 3, H, W).

    `frame_clip_F` says which clip a frame belongs to and `draws_B` (int64) decides each clip's change, and alone does:
    equal draws give equal changes. What comes in from outside the picture is 0.
    """
    draws_B8 = 2 * uniform(draws_B[:, None], torch.arange(8, device=draws_B.device)) - 1
    frames = centre_crop(frames_FCHW, crop)
    if frames_FCHW.shape[0] and (settings.rotation or settings.translate or settings.scale):
        theta_B23 = _affine(draws_B8, settings, crop, tuple(frames_FCHW.shape[-2:]))
        theta_F23 = theta_B23[frame_clip_F].to(frames_FCHW.dtype)
        grid = F.affine_grid(theta_F23, [len(theta_F23), 3, crop, crop], align_corners=False)
        frames = F.grid_sample(frames_FCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    factors_B3 = 1 + draws_B8[:, 4:7] * draws_B8.new_tensor(
        [settings.brightness, settings.contrast, settings.saturation]
    )
    brightness, contrast, saturation = (
        factors_B3[frame_clip_F].to(frames.dtype)[..., None, None, None].unbind(1)
    )
    if settings.brightness:
        frames = frames * brightness
    if settings.contrast or settings.saturation:
        weights = frames.new_tensor(_LUMA)[None, :, None, None]
        grey_F1HW = (frames * weights).sum(dim=1, keepdim=True)
        if settings.saturation:
            frames = grey_F1HW + (frames - grey_F1HW) * saturation
        if settings.contrast:
            mean = grey_F1HW.mean(dim=(-2, -1), keepdim=True)
            frames = mean + (frames - mean) * contrast
    return frames


def _affine(draws_B8: Tensor, settings: Augment, crop: int, size_HW: tuple[int, int]) -> Tensor:
    """(B, 2, 3): from places in the crop to places in the frame, both from -1 to 1."""
    angle = draws_B8[:, 0] * math.radians(settings.rotation)
    zoom = 1 / (1 + draws_B8[:, 1] * settings.scale)
    x, y = draws_B8[:, 2] * 2 * settings.translate, draws_B8[:, 3] * 2 * settings.translate
    part_y, part_x = crop / size_HW[0], crop / size_HW[1]
    top = torch.stack([part_x * zoom * angle.cos(), -part_x * zoom * angle.sin(), x], dim=1)
    bottom = torch.stack([part_y * zoom * angle.sin(), part_y * zoom * angle.cos(), y], dim=1)
    return torch.stack([top, bottom], dim=1)
