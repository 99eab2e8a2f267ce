"""Videos inside zip archives are the videos that were put in, and a damaged archive is refused with a reason."""

from __future__ import annotations

import os
import random
import tempfile
import unicodedata
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from factories.videos import write_video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_scale.config import Vision
from sage_scale.errors import ClipRejected
from sage_scale.vision import archives
from sage_scale.vision.archives import find_member
from sage_scale.vision.decode import decode_clip, decode_clips, probe

VISION = Vision(size=32, crop=32, fps=25.0, frame_stride=1, min_frames=1)
NAMES = ("rgb/ein Clip, größer.mp4", "%d:x.mp4", "deep/er/b.mkv")
WAYS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}
PACKED = {"deflated": zipfile.ZIP_DEFLATED, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}


@dataclass
class Clip:
    video: str
    start_s: float = 0.0
    end_s: float | None = None
    id: str = "clip"
    key: str = "0" * 16


@pytest.fixture(params=WAYS)
def packed(request, tmp_path) -> tuple[Path, dict[str, Path]]:
    """An archive with a comment and other members between the videos, and the videos by name."""
    files = {
        name: write_video(tmp_path / f"{k}{Path(name).suffix}", 40 + 10 * k) for k, name in enumerate(NAMES)
    }
    archive = tmp_path / "Archiv 1.ZIP"
    with zipfile.ZipFile(archive, "w") as out:
        out.comment = b"a comment"
        for name, path in files.items():
            out.writestr(f"{name}.pkl", bytes(1234))
            out.write(path, name, WAYS[request.param])
    return archive, files


def same(a, b) -> bool:
    return np.array_equal(a.frames, b.frames) and np.array_equal(a.grey_THW, b.grey_THW)


def test_clips_in_an_archive_are_those_of_the_files(packed):
    archive, files = packed
    assert all(find_member(archive / name) for name in files)
    for name, path in files.items():
        inside = str(archive / name)
        assert (probe(inside).end_s, probe(inside).rate) == (probe(str(path)).end_s, probe(str(path)).rate)
        spans = [(0.0, None), (0.4, 1.2), (0.9, 1.3)]
        alone = [decode_clip(Clip(str(path), *span), VISION) for span in spans]
        assert all(
            same(decode_clip(Clip(inside, *span), VISION), clip)
            for span, clip in zip(spans, alone, strict=True)
        )
        together = dict(decode_clips([Clip(inside, *span) for span in spans], VISION))
        assert all(same(together[k], clip) for k, clip in enumerate(alone))


def test_nothing_is_left_in_the_temporary_folder(packed, tmp_path, monkeypatch):
    archive, _ = packed
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    decode_clip(Clip(str(archive / NAMES[0])), VISION)
    assert not list(scratch.iterdir())


def test_a_name_that_is_not_there_is_missing(packed):
    archive, _ = packed
    for name in ("rgb/other.mp4", "rgb", "../0.mp4", f"{NAMES[0]}/x.mp4"):
        with pytest.raises(ClipRejected) as refused:
            decode_clip(Clip(str(archive / name)), VISION)
        assert refused.value.reason == "missing"
    assert find_member(archive.parent / "0.mp4") is None


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["Gr\u00fc\u00dfe.mp4", "\uc778\uc0ac.mp4", "a/\u00e9t\u00e9.mp4"])
def test_names_of_members_are_compared_in_one_form(tmp_path, name, stored):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as whole:
        whole.writestr(unicodedata.normalize(stored, name), b"video")
    for form in ("NFC", "NFD"):
        member = find_member(tmp_path / "a.zip" / unicodedata.normalize(form, name))
        assert member is not None and member.info.file_size == 5


def test_an_archive_that_was_exchanged_is_read_anew(tmp_path):
    archive = tmp_path / "a.zip"
    for frames in (20, 30):
        with zipfile.ZipFile(archive, "w") as out:
            out.write(write_video(tmp_path / "v.mp4", frames), "v.mp4")
        assert decode_clip(Clip(str(archive / "v.mp4")), VISION).total_frames == frames


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_archive_gives_the_right_frames_or_a_reason(packed, seed):
    archive, files = packed
    name = NAMES[0]
    good = decode_clip(Clip(str(files[name])), VISION)
    data = bytearray(archive.read_bytes())
    generator = random.Random(seed)
    if seed % 3 == 0:
        del data[generator.randrange(len(data)) :]
    else:
        for _ in range(1 if seed % 3 == 1 else 200):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    archive.write_bytes(data)
    try:
        got = decode_clip(Clip(str(archive / name)), VISION)
    except ClipRejected as refused:
        assert refused.reason in ("missing", "unreadable", "corrupt", "truncated", "empty", "no-video")
        assert str(archive.parent) not in refused.detail
    else:
        # A flipped bit in a stored video is the video's own affair, as in a file; a deflated one has a checksum.
        assert got.frames.shape[1:] == good.frames.shape[1:]


def test_what_an_archive_claims_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_UNPACKED", 1 << 20)
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("big.mp4", bytes(1000))
    data = bytearray(archive.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")  # the size, as the directory has it
    archive.write_bytes(data)
    with pytest.raises(ClipRejected, match="claims 4,294,967,294 bytes"):
        decode_clip(Clip(str(archive / "big.mp4")), VISION)
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 but not really")
    with pytest.raises(ClipRejected) as refused:
        decode_clip(Clip(str(tmp_path / "no.zip" / "a.mp4")), VISION)
    assert refused.value.reason == "unreadable"


def zipped(archive: Path, video: bytes, way: int) -> tuple[bytearray, int, int]:
    """An archive of one video: its bytes, and where the member's begin and end."""
    with zipfile.ZipFile(archive, "w", way) as out:
        out.writestr("v.mp4", video)
        size = out.getinfo("v.mp4").compress_size
    data = bytearray(archive.read_bytes())
    return data, 30 + len("v.mp4"), 30 + len("v.mp4") + size


def refused(video: Path) -> str:
    """The reason for which a video is refused, by decoding and by its header alone."""
    reasons = set()
    for read in (lambda: decode_clip(Clip(str(video)), VISION), lambda: probe(str(video))):
        with pytest.raises(ClipRejected) as caught:
            read()
        assert str(video.parent) not in caught.value.detail and len(caught.value.detail) < 300
        reasons.add(caught.value.reason)
    (reason,) = reasons
    return reason


@pytest.mark.parametrize("way", PACKED)
def test_a_damaged_member_is_corrupt_however_it_was_packed(tmp_path, way):
    video = write_video(tmp_path / "v.mp4", 40).read_bytes()
    archive = tmp_path / "a.zip"
    data, begin, end = zipped(archive, video, PACKED[way])
    damages = {
        "first bytes": lambda d: d.__setitem__(slice(begin, begin + 12), bytes(12)),
        "all ones": lambda d: d.__setitem__(slice(begin, begin + 12), b"\xff" * 12),
        "the middle": lambda d: d.__setitem__(
            slice((begin + end) // 2, (begin + end) // 2 + 40), b"\x5a" * 40
        ),
        "the last bytes": lambda d: d.__setitem__(slice(end - 30, end), bytes(30)),
        "its checksum": lambda d: d.__setitem__(
            d.rindex(b"PK\x01\x02") + 16, d[d.rindex(b"PK\x01\x02") + 16] ^ 1
        ),
    }
    for damage in damages.values():
        damaged = bytearray(data)
        damage(damaged)
        archive.write_bytes(damaged)
        assert refused(archive / "v.mp4") == "corrupt"


def test_members_that_cannot_be_unpacked_are_refused(tmp_path):
    archive = tmp_path / "a.zip"
    data, *_ = zipped(archive, b"video" * 100, zipfile.ZIP_DEFLATED)
    entry = data.rindex(b"PK\x01\x02")
    for method in (1, 6, 9, 93, 96, 98, 99):  # shrunk, imploded, deflate64, zstd, JPEG, PPMd, AES
        changed = bytearray(data)
        changed[8:10] = changed[entry + 10 : entry + 12] = method.to_bytes(2, "little")
        archive.write_bytes(changed)
        assert refused(archive / "v.mp4") in ("unsupported", "corrupt")
    for flags in (0x01, 0x41, 0x20):  # encrypted, strongly encrypted, a patch
        changed = bytearray(data)
        changed[6] = changed[entry + 8] = flags
        archive.write_bytes(changed)
        assert refused(archive / "v.mp4") in ("unreadable", "unsupported")


@given(st.sampled_from(sorted(PACKED)), st.data())
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_bytes_in_an_archive_give_frames_or_a_reason(tmp_path, way, choice):
    archive = tmp_path / "a.zip"
    data, *_ = zipped(archive, bytes(range(256)) * 8, PACKED[way])
    places = choice.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=6))
    for place in places:
        data[place] = choice.draw(st.integers(0, 255))
    archive.write_bytes(data)
    with pytest.raises(ClipRejected):
        decode_clip(Clip(str(archive / "v.mp4")), VISION)


def test_a_pipe_named_as_an_archive_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.zip")
    assert refused(tmp_path / "a.zip" / "v.mp4") == "missing"
    assert refused(tmp_path / "a.zip") == "unreadable"
