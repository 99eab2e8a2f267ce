"""How much pictures are changed in training, and in the stored views of features."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Drawn once per clip and epoch, equal for all its frames (section 4.2 of SAGE and of Sign2GPT)."""

    rotation: float = 0.0
    """Largest rotation, degrees."""
    rotation_share: float = 1.0
    """Share of the clips that are rotated."""
    crop: float = 0.0
    """Most of the stored frame's area that a random part of it leaves out, which is then resized; 0 is the centre crop
    of `vision.crop`."""
    crop_ratio: float = 0.0
    """Largest change of that part's ratio of width to height, share."""
    flip: float = 0.0
    """Share of the clips that are mirrored."""
    translate: float = 0.0
    """Largest shift, share of the side."""
    scale: float = 0.0
    """Largest change of size, share."""
    brightness: float = 0.0
    """Largest change of brightness, share."""
    contrast: float = 0.0
    """Largest change of contrast, share."""
    saturation: float = 0.0
    """Largest change of colour saturation, share."""
    hue: float = 0.0
    """Largest turn of the colours, share of the circle."""
    colour_share: float = 1.0
    """Share of the clips whose brightness, contrast, saturation and hue change."""
    grey: float = 0.0
    """Share of the clips that lose their colours."""

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return any(value > 0 for name, value in vars(self).items() if not name.endswith("_share"))
