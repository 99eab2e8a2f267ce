"""Reading a folder of pictures (PHOENIX14T): one file a frame, in the natural order of their names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sage_scale.errors import ClipRejected
from sage_scale.vision.crop import Region, check_picture, plan_cut, plan_square
from sage_scale.vision.sampling import check_length, nearest_frames
from sage_scale.vision.video_clips import ClipPictures, Interval, Pictures

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def list_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder; `image10` comes after `image9`."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.name[0] != "."]
    return sorted(
        files, key=lambda path: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path.name)]
    )


def read_folder(folder: Path, interval: Interval, pictures: Pictures, *, source_fps: float) -> ClipPictures:
    """The pictures of a stretch of a folder, whose files are `source_fps` a second."""
    files = list_pictures(folder)
    if not files:
        raise ClipRejected("empty", "a folder without pictures")
    chosen_T = nearest_frames(len(files), source_fps, pictures.fps, interval.start_s, interval.end_s)
    check_length(len(chosen_T), pictures.min_frames, pictures.max_frames)
    frames: list[np.ndarray] = []
    greys: list[np.ndarray] = []
    for k, index in enumerate(chosen_T):
        picture = _open(files[index])
        if k % pictures.stride == 0:
            frames.append(_square(picture, pictures.size, pictures.stretch, interval.region))
        if pictures.grey_size:
            greys.append(_square(picture.convert("L"), pictures.grey_size, pictures.stretch, interval.region))
    grey_THW = np.stack(greys) if greys else np.zeros((len(chosen_T), 0, 0), np.uint8)
    return ClipPictures(np.stack(frames), grey_THW, source_fps)


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            check_picture(*picture.size)  # from the header, before the pixels are decoded
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the picture
        raise ClipRejected("unreadable", f"picture {path.name}: {type(error).__name__}") from None


def _square(picture: Image.Image, size: int, stretch: bool, region: Region | None) -> np.ndarray:
    if region is not None:
        box = plan_cut(*picture.size, region, turns=0)
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=corners))
    plan = plan_square(*picture.size, size, stretch=stretch)
    scaled = picture.resize((plan.width, plan.height), Image.Resampling.BILINEAR)
    return plan.cut(np.asarray(scaled))
