"""Thumbnails of frames for the report."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image


def thumbnail(frame_CHW: torch.Tensor, width: int) -> str:
    """Returns a uint8 frame as a base64 JPEG at most `width` pixels wide."""
    image = Image.fromarray(frame_CHW.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((width, width))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
