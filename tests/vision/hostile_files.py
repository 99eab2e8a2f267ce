"""Files as crawls, broken downloads and bad jokes leave them, each with the reasons it may be refused for."""

from __future__ import annotations

import gzip
import io
import os
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from factories.videos import write_video
from PIL import Image
from video_kinds import X264, scenes

READ = "read"
"""The file is no danger: it gives its frames."""

PLAIN = X264 | {"g": "12"}
FRAMES = 60


def _good(path: Path, frames: int = FRAMES, **keywords) -> bytes:
    return write_video(path, scenes(frames), **{"options": PLAIN} | keywords).read_bytes()


def _bytes(data: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(data))


def void(_: object) -> None:
    """Makers give nothing."""


def _cut(share: float, suffix: str = ".mp4", **keywords) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        data = _good(path.with_suffix(suffix), **keywords)
        path.with_suffix(suffix).unlink()
        path.write_bytes(data[: int(len(data) * share)])

    return make


def _changed(change: Callable[[bytearray], None], **keywords) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        data = bytearray(_good(path, **keywords))
        change(data)
        path.write_bytes(data)

    return make


def _after(atom: bytes, offset: int, format_: str, *values: int) -> Callable[[bytearray], None]:
    """Write numbers behind a name in the file, wherever it occurs first."""

    def change(data: bytearray) -> None:
        place = data.find(atom)
        assert place >= 0, atom
        struct.pack_into(format_, data, place + len(atom) + offset, *values)

    return change


def _hole(size: int = 2**40) -> Callable[[Path], None]:
    """A good file, and a terabyte of nothing behind it."""

    def make(path: Path) -> None:
        _good(path)
        os.truncate(path, size)

    return make


def _named_as_another(suffix: str, **keywords) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        _good(path.with_suffix(suffix), **keywords)
        path.with_suffix(suffix).rename(path)

    return make


def _sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _no_frame(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def _picture(format_: str, size: tuple[int, int] = (64, 64)) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, format_)
    return out.getvalue()


def _folder(pictures: list[bytes], suffix: str = "png") -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        for number, data in enumerate(pictures):
            (path / f"{number}.{suffix}").write_bytes(data)

    return make


def _zip(path: Path, *, bomb: bool) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("keypoints.npy" if bomb else "video.mp4", b"\0" * (300 * 2**20 if bomb else 500))


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may be 108 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _giant_png() -> bytes:
    picture = bytearray(_picture("PNG", (8, 8)))
    picture[16:24] = struct.pack(">2I", 16384, 16384)
    return bytes(picture)


def _npz(**arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


def _flip(places: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        rng = np.random.default_rng(places)
        for place in rng.integers(len(data) // 10, len(data), places):
            data[place] ^= int(rng.integers(1, 256))

    return change


def _zeroed(data: bytearray) -> None:
    third = len(data) // 3
    data[third : 2 * third] = bytes(third)


def _renamed(data: bytearray) -> None:
    data[:] = data.replace(b"avc1", b"xyz1").replace(b"avcC", b"xyzC")


FASTSTART = {"container_options": {"movflags": "faststart"}}
RAW = {"codec": "rawvideo", "pixels": "yuv420p", "options": {}, "frames": 10}
Case = tuple[str, Callable[[Path], None], set[str]]

GARBAGE = {"unreadable"}
CUT = {"unreadable", "truncated", "corrupt", "empty", "no-video"}

CASES: list[Case] = [
    # not videos at all
    ("zero bytes.mp4", _bytes(b""), GARBAGE),
    ("one byte.mp4", _bytes(b"\0"), GARBAGE),
    ("a megabyte of zeros.mp4", _bytes(bytes(2**20)), GARBAGE),
    ("noise.mp4", _bytes(np.random.default_rng(1).bytes(2**16)), GARBAGE),
    ("noise.webm", _bytes(np.random.default_rng(2).bytes(2**16)), GARBAGE),
    ("text.mp4", _bytes(b"no video here\n" * 400), GARBAGE),
    ("not found.mp4", _bytes(b"<!doctype html><title>404</title>" * 90), GARBAGE),
    ("quota.mkv", _bytes(b'{"error": "quota exceeded"}'), GARBAGE),
    ("playlist.mp4", _bytes(b"#EXTM3U\n#EXTINF:9,\n/etc/passwd\n"), GARBAGE),
    ("playlist of an address.mp4", _bytes(b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n"), GARBAGE),
    ("script.mp4", _bytes(b"ffconcat version 1.0\nfile '/etc/passwd'\n"), GARBAGE),
    ("session.mp4", _bytes(b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"), GARBAGE),
    ("captions.mp4", _bytes(b"1\n00:00:00,000 --> 00:00:02,000\nHallo\n"), GARBAGE),
    ("packed.mp4", _bytes(gzip.compress(b"x" * 9000)), GARBAGE),
    ("archive.mp4", lambda path: _zip(path, bomb=False), GARBAGE),
    ("picture.mp4", lambda path: void(path.write_bytes(_picture("PNG"))), GARBAGE),
    ("photo.mp4", lambda path: void(path.write_bytes(_picture("JPEG"))), GARBAGE),
    ("animation.mp4", lambda path: void(path.write_bytes(_picture("GIF"))), GARBAGE),
    ("document.mp4", _bytes(b"%PDF-1.7\n" + bytes(4000)), GARBAGE),
    ("only a box.mp4", _bytes(b"\0\0\0\x18ftypisom\0\0\2\0isomiso2"), GARBAGE),
    ("box of two to the 63.mp4", _bytes(b"\0\0\0\1mdat" + struct.pack(">Q", 2**63 - 1)), GARBAGE),
    ("boxes in boxes.mp4", _bytes(b"".join(struct.pack(">I4s", 8 * k, b"moov") for k in range(900, 0, -1))),
     GARBAGE),
    # cut short
    *[
        (f"cut at {share:02d} of 100.mp4", _cut(share / 100, **FASTSTART), CUT | ({READ} if share > 90 else set()))
        for share in (1, 3, 8, 20, 35, 50, 65, 80, 93, 99)
    ],
    ("cut before its index.mp4", _cut(0.9), GARBAGE),
    ("cut.mkv", _cut(0.5, ".mkv"), CUT),
    ("cut.ts", _cut(0.5, ".ts"), CUT | {READ}),  # a broadcast has no length it could fall short of
    ("cut.avi", _cut(0.6, ".avi", codec="mpeg4", options={}), CUT),
    # damaged
    ("flipped once.mp4", _changed(_flip(1)), CUT | {READ}),
    ("flipped thirty times.mp4", _changed(_flip(30)), CUT | {READ, "too-long", "too-large", "too-short", "no-video"}),
    ("zeros in the middle.mp4", _changed(_zeroed, **FASTSTART), CUT | {READ}),
    ("zeros in the middle.mkv", _changed(_zeroed), CUT | {READ}),
    ("a codec nobody knows.mp4", _changed(_renamed), {"unreadable", "no-video", "empty"}),
    # headers that lie
    ("16k by 16k.avi", _changed(_after(b"strf", 8, "<2i", 16384, 16384), **RAW), {"too-large", "unreadable"}),
    ("2 by 5000.avi", lambda p: void(write_video(
        p, [np.zeros((5000, 2, 3), np.uint8)] * 9, codec="rawvideo", options={})), {"bad-shape"}),
    ("a hundred hours.mp4", _changed(_after(b"mdhd", 16, ">I", 2**31 - 1), **FASTSTART),
     {READ, "truncated", "too-long"}),
    ("no length.mp4", _changed(_after(b"mdhd", 16, ">I", 0), **FASTSTART), {READ}),
    ("a clock of no ticks.mp4", _changed(_after(b"mdhd", 12, ">I", 0), **FASTSTART),
     CUT | {READ, "too-long", "too-short"}),
    ("100,000 frames a second.mp4", lambda p: void(_good(p, rate=100_000)), {"too-short"}),
    ("a frame an hour.mkv", lambda p: void(_good(p, 5, times=[3600.0 * t for t in range(5)])), {"too-long"}),
    # streams
    ("sound alone.mp4", _sound, {"no-video"}),
    ("sound alone.mkv", _sound, {"no-video"}),
    ("one frame.mp4", lambda p: void(_good(p, 1)), {"too-short"}),
    ("no frame.mp4", _no_frame, {"unreadable", "no-video", "empty"}),
    ("one pixel.avi", lambda p: void(write_video(
        p, [np.zeros((1, 1, 3), np.uint8)] * 9, codec="rawvideo", pixels="bgr24", options={})), {READ}),
    # other endings
    ("in truth.mkv", _named_as_another(".mp4"), {READ}),
    ("in truth.avi", _named_as_another(".webm", codec="libvpx", options={}), {READ}),
    # without an end
    ("a pipe.mp4", lambda path: os.mkfifo(path), GARBAGE),
    ("all zeros.mp4", lambda path: path.symlink_to("/dev/zero"), GARBAGE),
    ("all noise.mp4", lambda path: path.symlink_to("/dev/urandom"), GARBAGE),
    ("a socket.mp4", _socket, GARBAGE),
    ("a terabyte of nothing.mp4", lambda p: void((p.touch(), os.truncate(p, 2**40))), GARBAGE),
    ("a terabyte behind.mp4", _hole(), GARBAGE),
    ("a terabyte behind.mkv", _hole(), GARBAGE),
    ("a terabyte behind.ts", _hole(), GARBAGE),
    # links and folders
    ("to itself.mp4", lambda path: path.symlink_to(path.name), GARBAGE),
    ("to nothing.mp4", lambda path: path.symlink_to("nothing here"), GARBAGE),
    ("an empty folder.mp4", lambda path: path.mkdir(), {"empty"}),
    ("a folder of giants", _folder([_giant_png()] * 9), {"too-large", "unreadable"}),
    ("a folder of halves", _folder([_picture("PNG")[:900]] * 9), GARBAGE),
    ("a folder of words", _folder([b"no picture"] * 9), GARBAGE),
    ("a folder of sizes", _folder([_picture("PNG", (20 + k, 40)) for k in range(9)]), {READ}),
    # names
    ("Schöne Grüße, ganz süß.mp4", lambda p: void(_good(p)), {READ}),
    ("zerlegte Umlaute u\u0308.mp4", lambda p: void(_good(p)), {READ}),
    ("手话 🤟.mp4", lambda p: void(_good(p)), {READ}),
    ("two\nlines.mp4", lambda p: void(_good(p)), {READ}),
    ("-i.mp4", lambda p: void(_good(p)), {READ}),
    ("http:x y%20#?'\".mp4", lambda p: void(_good(p)), {READ}),
    ("l" * 240 + ".mp4", lambda p: void(_good(p)), {READ}),
    # keypoints
    ("nothing.npz", _bytes(b""), {"bad-keypoints", "no-pictures"}),
    ("bomb.npz", lambda path: _zip(path, bomb=True), {"bad-keypoints", "no-pictures"}),
    ("objects.npz", _npz(keypoints=np.array([{}], dtype=object)), {"bad-keypoints", "no-pictures"}),
    ("not a number.npz", _npz(keypoints=np.full((20, 134), np.nan)), {READ, "no-pictures"}),
    ("another shape.npz", _npz(keypoints=np.zeros((20, 7))), {"bad-keypoints", "no-pictures"}),
]  # fmt: skip
"""(name, maker, reasons it may be refused for, READ among them where it may be read)."""

CAPTIONS: dict[str, tuple[bytes, str]] = {
    "latin1.txt": ("Schöne Grüße".encode("latin-1"), "not-utf8"),
    "utf16.srt": ("1\n00:00:00,000 --> 00:00:02,000\nGrüße\n".encode("utf-16-le"), "not-utf8"),
    "latin1.vtt": ("WEBVTT\n\n00:00.000 --> 00:02.000\nGrüße\n".encode("latin-1"), "not-utf8"),
    "empty.txt": (b"  \n", "no-sentence"),
    "empty.vtt": (b"", "no-captions"),
    "backwards.vtt": (b"WEBVTT\n\n00:02.000 --> 00:01.000\nHallo Welt\n", "bad-interval"),
}
"""Captions beside a good video, and what becomes of it."""
