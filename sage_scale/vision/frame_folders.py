"""Reading a folder of pictures (PHOENIX14T): one file a frame, in the natural order of their names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sage_scale.errors import ClipRejected
from sage_scale.vision.crop import check_picture, plan_square
from sage_scale.vision.sampling import check_length, nearest_frames

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder; `image10` comes after `image9`."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.name[0] != "."]
    return sorted(
        files, key=lambda path: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path.name)]
    )


def read_folder(
    folder: Path,
    *,
    source_fps: float,
    start_s: float,
    end_s: float | None,
    fps: float,
    stride: int,
    size: int,
    grey_size: int,
    stretch: bool,
    min_frames: int,
    max_frames: int,
    colour: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Stride-grid frames uint8 (n, size, size, 3) and grey frames (T, grey, grey) of a folder of pictures."""
    files = list_pictures(folder)
    if not files:
        raise ClipRejected("empty", "a folder without pictures")
    chosen_T = nearest_frames(len(files), source_fps, fps, start_s, end_s)
    check_length(len(chosen_T), min_frames, max_frames)
    frames: list[np.ndarray] = []
    greys: list[np.ndarray] = []
    for k, index in enumerate(chosen_T):
        picture = _open(files[index])
        if colour and k % stride == 0:
            frames.append(_square(picture, size, stretch))
        greys.append(_square(picture.convert("L"), grey_size, stretch))
    stacked = np.stack(frames) if frames else np.zeros((0, size, size, 3), np.uint8)
    return stacked, np.stack(greys)


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            check_picture(*picture.size)  # from the header, before the pixels are decoded
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the picture
        raise ClipRejected("unreadable", f"picture {path.name}: {type(error).__name__}") from None


def _square(picture: Image.Image, size: int, stretch: bool) -> np.ndarray:
    plan = plan_square(*picture.size, size, stretch=stretch)
    scaled = picture.resize((plan.width, plan.height), Image.Resampling.BILINEAR)
    return plan.cut(np.asarray(scaled))
