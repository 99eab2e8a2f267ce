"""Reading a folder of pictures (PHOENIX14T): one file a frame, in the natural order of their names."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from sage_scale.errors import ClipRejected
from sage_scale.untrusted.damage import no_memory
from sage_scale.untrusted.files import NotRegularFile, mode_of, open_regular
from sage_scale.vision.crop import Region, check_picture, plan_cut, plan_square
from sage_scale.vision.sampling import check_length, nearest_frames
from sage_scale.vision.video_clips import ClipPictures, Interval, PictureSettings

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transpositions by EXIF orientation (CIPA DC-008, 4.6.4)."""
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def list_pictures(folder: Path) -> list[Path]:
    """Returns the pictures of a folder; `image10` comes after `image9`."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.name[0] != "."]
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[str | int]:
    # Every second part is a number; other parts may hold characters that only look like digits (a superscript).
    return [int(part) if k % 2 else part for k, part in enumerate(re.split(r"(\d+)", path.name))]


def read_folder(
    folder: Path, interval: Interval, settings: PictureSettings, *, source_fps: float
) -> ClipPictures:
    """Returns the pictures of a stretch of a folder, whose files are `source_fps` a second."""
    files = list_pictures(folder)
    if not files:
        raise ClipRejected("empty", "a folder without pictures")
    chosen_T = nearest_frames(len(files), source_fps, settings.fps, interval.start_s, interval.end_s)
    check_length(len(chosen_T), settings.min_frames, settings.max_frames)
    frames: list[np.ndarray] = []
    greys: list[np.ndarray] = []
    for k, index in enumerate(chosen_T):
        picture = open_picture(files[index])
        if k % settings.stride == 0:
            frames.append(_square(picture, settings.size, settings.stretch, interval.region))
        if settings.grey_size:
            greys.append(_square(picture.convert("L"), settings.grey_size, settings.stretch, interval.region))
    grey_THW = np.stack(greys) if greys else np.zeros((len(chosen_T), 0, 0), np.uint8)
    return ClipPictures(np.stack(frames), grey_THW, source_fps)


def open_picture(path: Path) -> Image.Image:
    """Returns the first picture of a file in RGB as viewers show it: turned by its EXIF orientation, in 8 bits a
    colour, on black where it is transparent."""
    try:
        with open_regular(path) as file, Image.open(file) as picture:
            check_picture(*picture.size)  # from the header, before the pixels are decoded
            return _turned(_in_rgb(picture), picture)
    except (NotRegularFile, IsADirectoryError) as error:
        raise ClipRejected("unreadable", f"picture {path.name}: {error.strerror}") from None
    except ClipRejected:
        raise
    except MemoryError:
        raise no_memory("unreadable", f"no memory for picture {path.name}") from None
    except Exception as error:  # the parsers of many formats raise any exception on damaged bytes
        if isinstance(error, OSError) and error.errno is not None and mode_of(path):
            raise  # the disk, not the picture, nor a link that leads nowhere
        raise ClipRejected("unreadable", f"picture {path.name}: {type(error).__name__}") from None


def _in_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # One colour of 16 bits; Pillow would clip it at 255. Of three it keeps the upper 8 bits itself.
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        shown = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, "black"), shown).convert("RGB")
    return picture.convert("RGB")


def _turned(shown: Image.Image, picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except (
        Exception
    ):  # the parser raises any exception on damaged EXIF; viewers then show the picture unturned
        return shown
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return shown if turn is None else shown.transpose(turn)


def _square(picture: Image.Image, size: int, stretch: bool, region: Region | None) -> np.ndarray:
    if region is not None:
        box = plan_cut(*picture.size, region)
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=corners))
    plan = plan_square(*picture.size, size, stretch=stretch)
    scaled = picture.resize((plan.width, plan.height), Image.Resampling.BILINEAR)
    return np.asarray(scaled)[plan.middle]
