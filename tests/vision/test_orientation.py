"""Pictures stand as players and viewers show them: display matrices of videos, EXIF and colours of picture files."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from factories.videos import write_video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from sage_scale.config import Vision
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected
from sage_scale.vision.crop import Orientation, Region
from sage_scale.vision.decode import decode_clip
from sage_scale.vision.frame_folders import list_pictures
from sage_scale.vision.keypoints import LEFT_SHOULDER, POINTS, RIGHT_SHOULDER
from sage_scale.vision.video_clips import Interval, PictureSettings, read_clip

SMALL = Vision(size=64, crop=64, frame_stride=1, min_frames=1)
MATRICES = [
    (a, b, c, d)
    for a, b, c, d in itertools.product((-1, 0, 1), repeat=4)
    if abs(a) + abs(b) == 1 and abs(c) + abs(d) == 1 and abs(a) + abs(c) == 1
]
PICTURE = np.full((80, 112, 3), 40, np.uint8)
PICTURE[8:32, 24:48] = 240  # a white square, a grey one beside it, and nothing else
PICTURE[8:32, 56:80] = 140


def displayed(picture: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """The picture as ISO 14496-12 shows it, point by point: (x, y) is shown at (a x + c y, b x + d y)."""
    a, b, c, d = matrix
    height, width = picture.shape[:2]
    points = {(a * x + c * y, b * x + d * y): (y, x) for y in range(height) for x in range(width)}
    columns, rows = sorted({x for x, _ in points}), sorted({y for _, y in points})
    return np.array([[picture[points[x, y]] for x in columns] for y in rows])


def square(picture: np.ndarray, size: int = 64) -> np.ndarray:
    """The middle square of a picture, scaled."""
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return np.asarray(Image.fromarray(picture[top : top + side, left : left + side]).resize((size, size)))


def with_matrix(path: Path, atom: bytes, matrix: Sequence[int]) -> Path:
    """Writes the matrix into the header of the track (tkhd) or of the whole file (mvhd)."""
    data = bytearray(path.read_bytes())
    place = data.find(atom) + 4 + {b"tkhd": 40, b"mvhd": 36}[atom]
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return float(np.abs(one.astype(int) - other.astype(int)).mean()) < 8


@pytest.mark.parametrize("atom", [b"tkhd", b"mvhd"], ids=["track", "file"])
@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_all_eight_display_matrices(tmp_path, matrix, atom) -> None:
    assert len(MATRICES) == 8
    path = with_matrix(write_video(tmp_path / "a.mp4", [PICTURE] * 6), atom, matrix)
    decoded = decode_clip(Clip(id="a", video=str(path)), SMALL)
    upright = displayed(PICTURE, matrix)
    assert close(decoded.frames[2], square(upright))
    assert decoded.grey_THW is not None
    assert close(decoded.grey_THW[2], square(upright, 48)[..., 0])
    stretched = decode_clip(
        Clip(id="a", video=str(path)), Vision(size=64, frame_stride=1, min_frames=1, fit="stretch")
    )
    assert close(stretched.frames[2], np.asarray(Image.fromarray(upright).resize((64, 64))))


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
@pytest.mark.parametrize("suffix", ["mkv", "mov"])
def test_the_eight_matrices_as_other_containers_store_them(tmp_path, matrix, suffix) -> None:
    """Matroska has angles of a projection instead."""
    path = tmp_path / f"a.{suffix}"
    a, b, c, d = (value << 16 for value in matrix)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "4", "threads": "1"})
        stream.height, stream.width = PICTURE.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(PICTURE, "rgb24")))
        container.mux(stream.encode(None))
    assert close(
        decode_clip(Clip(id="a", video=str(path)), SMALL).frames[2], square(displayed(PICTURE, matrix))
    )


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_the_signer_is_looked_for_in_the_upright_picture(tmp_path, matrix) -> None:
    path = with_matrix(write_video(tmp_path / "a.mp4", [PICTURE] * 6), b"tkhd", matrix)
    upright = displayed(PICTURE, matrix)
    rows, columns = np.nonzero(upright[..., 0] == 240)
    height, width = upright.shape[:2]
    region = Region((columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height, 24 / width)
    pictures = PictureSettings(
        fps=25, stride=1, size=32, grey_size=0, stretch=False, min_frames=1, max_frames=99
    )
    assert read_clip(path, Interval(region=region), pictures).frames[2].mean() > 210


@pytest.mark.parametrize(
    "numbers",
    [(0, 0, 0, 0), (46341, 46341, -46341, 46341), (65536, 9000, 0, 65536), (65536, 65536, 65536, 65536)],
)
def test_a_matrix_of_another_angle_leaves_the_picture_as_it_is_stored(numbers) -> None:
    a, b, c, d = numbers
    assert Orientation.of_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30)) == Orientation()
    assert Orientation.of_matrix((-65500, 40, 0, -30, 65536, 0, 9, 9, 1 << 30)) == Orientation(0, True)


def folder_of(folder: Path, encoded: bytes, suffix: str, count: int = 6) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.{suffix}").write_bytes(encoded)
    return folder


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def first_frame(folder: Path, vision: Vision = SMALL) -> np.ndarray:
    return decode_clip(Clip(id="a", video=str(folder)), vision).frames[0]


EXIF = {
    1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip
"""Orientation -> display matrix."""


@pytest.mark.parametrize("kind,suffix", [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("MPO", "jpg")])
@pytest.mark.parametrize("orientation", [*EXIF, 0, 9])
def test_pictures_are_turned_as_their_exif_says(tmp_path, kind, suffix, orientation) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 95} if kind != "PNG" else {}
    data = encoded(Image.fromarray(PICTURE), kind, exif=exif, **options)
    frame = first_frame(folder_of(tmp_path / "a", data, suffix))
    upright = displayed(PICTURE, EXIF.get(orientation, EXIF[1]))
    assert close(frame, np.asarray(Image.fromarray(upright).resize((64, 64))))


def test_the_signer_is_looked_for_in_the_turned_picture(tmp_path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    folder = folder_of(
        tmp_path / "a", encoded(Image.fromarray(PICTURE), "JPEG", quality=95, exif=exif), "jpg"
    )
    upright = displayed(PICTURE, EXIF[6])
    rows, columns = np.nonzero(upright[..., 0] == 240)
    keypoints = np.zeros((6, POINTS, 2), np.float32)
    y = (rows.mean() + 0.5) / upright.shape[0]
    x, reach = (columns.mean() + 0.5) / upright.shape[1], 4 / upright.shape[1]
    keypoints[:, LEFT_SHOULDER], keypoints[:, RIGHT_SHOULDER] = (x - reach, y), (x + reach, y)
    np.savez(tmp_path / "a.npz", keypoints=keypoints.reshape(6, -1))
    assert first_frame(folder, Vision(size=32, frame_stride=1, min_frames=1, fit="signer")).mean() > 150


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_the_picture(tmp_path) -> None:
    plain = encoded(Image.fromarray(PICTURE), "JPEG", quality=95)
    for number, exif in enumerate(
        (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(range(64)))
    ):
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
        frame = first_frame(folder_of(tmp_path / str(number), data, "jpg"))
        assert close(frame, np.asarray(Image.fromarray(PICTURE).resize((64, 64))))


GREY = PICTURE[..., 0]
HIDDEN = np.dstack([PICTURE, np.where(GREY > 200, 255, 0).astype(np.uint8)])
COLOURS: dict[str, tuple[Callable[[], bytes], np.ndarray]] = {
    "16-bit grey": (lambda: encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"), PICTURE),
    "grey": (lambda: encoded(Image.fromarray(GREY), "PNG"), PICTURE),
    "black and white": (
        lambda: encoded(Image.fromarray(GREY > 200), "PNG"),
        np.repeat(np.where(GREY > 200, 255, 0).astype(np.uint8)[..., None], 3, 2),
    ),
    "palette": (lambda: encoded(Image.fromarray(PICTURE).quantize(8), "PNG"), PICTURE),
    "transparent": (lambda: encoded(Image.fromarray(HIDDEN), "PNG"), np.where(HIDDEN[..., 3:] > 0, PICTURE, 0)),
    "opaque alpha": (lambda: encoded(Image.fromarray(PICTURE).convert("RGBA"), "PNG"), PICTURE),
    "transparent palette": (
        lambda: encoded(Image.fromarray(HIDDEN).quantize(8), "PNG"), np.where(HIDDEN[..., 3:] > 0, PICTURE, 0)
    ),
    "grey and alpha": (lambda: encoded(Image.fromarray(GREY).convert("LA"), "PNG"), PICTURE),
    "16-bit colours": (lambda: png_of_16_bits(PICTURE), PICTURE),
    "CMYK": (lambda: encoded(Image.fromarray(PICTURE).convert("CMYK"), "JPEG", quality=95), PICTURE),
    "animated": (
        lambda: encoded(
            Image.fromarray(PICTURE), "PNG", save_all=True, append_images=[Image.new("RGB", (112, 80), "red")]
        ),
        PICTURE,
    ),
    "animated WebP": (
        lambda: encoded(
            Image.fromarray(PICTURE), "WEBP", save_all=True, lossless=True,
            append_images=[Image.new("RGB", (112, 80), "red")],
        ),
        PICTURE,
    ),
}  # fmt: skip


def png_of_16_bits(picture: np.ndarray) -> bytes:
    """A PNG of 16 bits a colour, which Pillow does not write."""
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width = picture.shape[:2]
    lines = (picture.astype(">u2") * 257).astype(">u2")
    body = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", COLOURS)
def test_pictures_of_every_kind_of_colour(tmp_path, kind) -> None:
    make, expected = COLOURS[kind]
    suffix = "jpg" if kind == "CMYK" else "webp" if "WebP" in kind else "png"
    frame = first_frame(folder_of(tmp_path / "a", make(), suffix))
    assert close(frame, np.asarray(Image.fromarray(expected).resize((64, 64))))


def test_what_lies_among_the_pictures_and_is_none_is_refused_at_once(tmp_path) -> None:
    import os

    data = encoded(Image.fromarray(PICTURE), "PNG")
    makers: dict[str, Callable[[Path], object]] = {
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "folder": lambda path: path.mkdir(),
        "link to nothing": lambda path: path.symlink_to("nothing"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "link to a name too long": lambda path: path.symlink_to("x" * 300),
    }
    for name, make in makers.items():
        folder = folder_of(tmp_path / name, data, "png")
        make(folder / "7.png")
        with pytest.raises(ClipRejected, match=r"picture 7\.png") as refused:
            first_frame(folder)
        assert refused.value.reason == "unreadable" and str(tmp_path) not in refused.value.detail


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "kind,suffix", [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", "bmp"), ("GIF", "png")]
)
@given(choice=st.data())
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_bytes_give_a_picture_or_a_reason(tmp_path, kind, suffix, choice) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = bytearray(
        encoded(Image.fromarray(PICTURE[::4, ::4]), kind, **({"exif": exif} if kind != "BMP" else {}))
    )
    header = min(120, len(data) - 1)
    places = choice.draw(st.lists(st.integers(0, header) | st.integers(0, len(data) - 1), max_size=6))
    for place in places:
        data[place] = choice.draw(st.integers(0, 255))
    del data[choice.draw(st.integers(0, 2 * len(data))) :]
    folder = tmp_path / "a"
    folder.mkdir(exist_ok=True)
    (folder / f"1.{suffix}").write_bytes(data)
    try:
        assert first_frame(folder).shape == (64, 64, 3)
    except ClipRejected as rejected:
        assert str(tmp_path) not in rejected.detail


def test_names_with_odd_digits_have_an_order(tmp_path) -> None:
    data = encoded(Image.fromarray(PICTURE), "PNG")
    for name in ("a\u00b2.png", "\u00b2.png", "10.png", "9.png", "\u0661\u0662.png", "x\u2460y3.png"):
        (tmp_path / name).write_bytes(data)
    assert [path.name for path in list_pictures(tmp_path)][:2] == ["9.png", "10.png"]
    assert decode_clip(Clip(id="a", video=str(tmp_path)), SMALL).total_frames == 6
