"""Image augmentation: one seed for each clip and epoch, equal for all its frames (SAGE, section 4.2; after GFSLT).

Rotation, shift, change of size, a resized crop and mirroring are one affine sampling that includes the centre crop;
hue, saturation, brightness and contrast follow. All are linear, so that they apply to any range of values, and to
frames minus a background.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sage_scale.config import Augment
from sage_scale.vision.packed import uniform

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_NAMES = (
    *("angle", "scale", "x", "y", "brightness", "contrast", "saturation"),
    *("area", "ratio", "left", "top", "flip", "hue", "rotates", "colour", "grey"),
)
"""Names of a clip's random numbers. New ones go to the end, so that the others keep their values."""
_COLUMN = {name: column for column, name in enumerate(_NAMES)}
_NUMBERS = len(_NAMES)


def centre_crop(frames_FCHW: Tensor, crop: int) -> Tensor:
    """Returns the middle (F, C, crop, crop), a view. Raises ValueError for smaller frames."""
    height, width = frames_FCHW.shape[-2:]
    if crop > min(height, width):
        raise ValueError(f"vision.crop={crop} is larger than the stored frames of {width}x{height}")
    top, left = (height - crop) // 2, (width - crop) // 2
    return frames_FCHW[..., top : top + crop, left : left + crop]


def augment(
    frames_FCHW: Tensor, frame_clip_F: Tensor, clip_seeds_B: Tensor, settings: Augment, crop: int
) -> Tensor:
    """Returns augmented frames, (F, 3, crop, crop), of float frames (F, 3, H, W).

    `frame_clip_F` is the clip of each frame; `clip_seeds_B` (int64) alone decide each clip's change: equal seeds give
    equal changes. Pixels from outside the picture are 0. Each change is uniform up to its largest value in `settings`:
    degrees, share of the side, factors 1 - value to 1 + value.
    """
    # Coordinates in a picture need more digits than bfloat16 has.
    with torch.autocast(frames_FCHW.device.type, enabled=False):
        uniform_BD = uniform(clip_seeds_B[:, None], torch.arange(_NUMBERS, device=clip_seeds_B.device))
        x = centre_crop(frames_FCHW, crop)
        moves = (settings.rotation, settings.translate, settings.scale, settings.crop, settings.flip)
        if x.shape[0] and any(moves):
            grid_BHW2 = _grid(uniform_BD, settings, crop, frames_FCHW.shape[-2:]).to(x.dtype)
            # The grid is made once a clip: gathering it is cheaper than making it for each frame.
            x = F.grid_sample(frames_FCHW, grid_BHW2[frame_clip_F], padding_mode="zeros", align_corners=False)
        return _colours(x, frame_clip_F, uniform_BD, settings)


def _colours(x: Tensor, frame_clip_F: Tensor, uniform_BD: Tensor, settings: Augment) -> Tensor:
    changed_B = _happens(uniform_BD, "colour", settings.colour_share)
    factor_B = {
        name: torch.where(changed_B, 1 + getattr(settings, name) * _signed(uniform_BD, name), 1.0).to(x.dtype)
        for name in ("brightness", "contrast", "saturation")
    }
    factor_B["saturation"] = factor_B["saturation"] * ~_happens(uniform_BD, "grey", settings.grey)
    factor = {name: values[frame_clip_F][:, None, None, None] for name, values in factor_B.items()}
    luma = x.new_tensor(_LUMA)[:, None, None]
    if settings.hue:
        turn_B = torch.where(changed_B, 2 * math.pi * settings.hue * _signed(uniform_BD, "hue"), 0.0)
        x = torch.einsum("fij,fjhw->fihw", _hue_turns(turn_B).to(x.dtype)[frame_clip_F], x)
    if settings.saturation or settings.grey:
        x = torch.lerp((x * luma).sum(dim=1, keepdim=True), x, factor["saturation"])
    if settings.brightness or settings.contrast:
        mean_F111 = (x.mean(dim=(-2, -1), keepdim=True) * luma).sum(dim=1, keepdim=True)
        grey = (1 - factor["contrast"]) * mean_F111
        x = torch.addcmul(grey * factor["brightness"], x, factor["contrast"] * factor["brightness"])
    return x


def _signed(uniform_BD: Tensor, name: str) -> Tensor:
    """Returns (B,) from -1 to 1."""
    return 2 * uniform_BD[:, _COLUMN[name]] - 1


def _happens(uniform_BD: Tensor, name: str, share: float) -> Tensor:
    """Returns bool (B,), true for this share of the clips."""
    return uniform_BD[:, _COLUMN[name]] < share


def _hue_turns(turn_B: Tensor) -> Tensor:
    """Returns (B, 3, 3), rotations of RGB about the axis of greys by so many radians, which keep the luma.

    Linear, unlike a turn in HSV, so that it applies to a difference of pictures too.
    """
    # YIQ, whose first row is the luma: a turn of the other two is a change of hue.
    to_yiq = turn_B.new_tensor([_LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])
    cos, sin, zero = turn_B.cos(), turn_B.sin(), torch.zeros_like(turn_B)
    rows = [zero + 1, zero, zero, zero, cos, -sin, zero, sin, cos]
    return torch.linalg.inv(to_yiq) @ torch.stack(rows, dim=1).view(-1, 3, 3) @ to_yiq


def _grid(uniform_BD: Tensor, settings: Augment, crop: int, size_HW: torch.Size) -> Tensor:
    """Returns (B, crop, crop, 2): the position in the frame, x and y from -1 to 1, that each pixel is taken from."""
    turned_B = _happens(uniform_BD, "rotates", settings.rotation_share)
    angle = torch.where(turned_B, _signed(uniform_BD, "angle") * math.radians(settings.rotation), 0.0)
    zoom = 1 / (1 + _signed(uniform_BD, "scale") * settings.scale)
    x, y = (_signed(uniform_BD, name) * 2 * settings.translate for name in ("x", "y"))
    width, height = crop / size_HW[1] * zoom, crop / size_HW[0] * zoom
    left, top = torch.zeros_like(width), torch.zeros_like(height)
    if settings.crop:
        area = 1 - settings.crop * uniform_BD[:, _COLUMN["area"]]
        ratio = 1 + settings.crop_ratio * _signed(uniform_BD, "ratio")
        width, height = (
            ((area * ratio).sqrt() * zoom).clamp(max=1),
            ((area / ratio).sqrt() * zoom).clamp(max=1),
        )
        left, top = (1 - width) * _signed(uniform_BD, "left"), (1 - height) * _signed(uniform_BD, "top")
    mirrored_B = _happens(uniform_BD, "flip", settings.flip)
    width = torch.where(mirrored_B, -width, width)
    cos, sin = angle.cos(), angle.sin()
    first = torch.stack([width * cos, -height * sin, left * cos - top * sin + x], dim=1)
    second = torch.stack([width * sin, height * cos, left * sin + top * cos + y], dim=1)
    theta_B23 = torch.stack([first, second], dim=1)
    return F.affine_grid(theta_B23, [len(theta_B23), 3, crop, crop], align_corners=False)
