"""Reading a video as a stream gives the pictures of decoding it as a clip; gaps and damage end no reading."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from factories.videos import camera_pictures, numbers, write_signing, write_video

from sage_scale.config import Vision
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected, UsageError
from sage_scale.vision.decode import decode_clip, picture_settings
from sage_scale.vision.video_stream import Gap, Picture, VideoStream, live_pictures

VISION = Vision(size=32, crop=32, frame_stride=2, min_frames=1)
SETTINGS = picture_settings(VISION, grey=True)


def read(path: Path, start_s: float = 0.0, end_s: float | None = None) -> list[Picture | Gap]:
    return list(VideoStream(path, SETTINGS).pictures(start_s, end_s))


@pytest.mark.parametrize("rate", [25, 30, 12])
@pytest.mark.parametrize(("start_s", "end_s"), [(0.0, None), (0.41, 1.3), (1.0, 99.0)])
def test_a_stream_has_the_pictures_of_a_clip(tmp_path, rate, start_s, end_s):
    path = write_video(tmp_path / "v.mp4", 50, rate=rate)
    clip = decode_clip(Clip(id="v", video=str(path), start_s=start_s, end_s=end_s), VISION)
    pictures = read(path, start_s, end_s)
    assert len(pictures) == clip.total_frames
    assert np.array_equal([picture.grey_HW for picture in pictures], clip.grey_THW)
    assert np.array_equal([each.colour_HWC for each in pictures if each.colour_HWC is not None], clip.frames)
    assert pictures[5].time_s == pytest.approx(start_s + 0.2)


def test_a_varying_rate_gives_the_nearest_pictures(tmp_path):
    times = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.12, 50)).round(3)
    path = write_video(tmp_path / "v.mp4", 50, times=(times - times[0]).tolist())
    clip = decode_clip(Clip(id="v", video=str(path)), VISION)
    assert np.array_equal([picture.grey_HW for picture in read(path)], clip.grey_THW)


def test_a_picture_that_stands_for_long_is_a_gap(tmp_path):
    times = [t / 25 + (3600 if t >= 25 else 0) for t in range(50)]
    found = read(write_video(tmp_path / "v.mkv", 50, times=times))
    assert len(found) < 60, "an hour of nothing is not filled with pictures"
    (gap,) = (each for each in found if isinstance(each, Gap))
    assert (gap.start_s, gap.end_s, gap.reason) == (pytest.approx(0.96), pytest.approx(3601.0), "")
    assert found[-1].time_s == pytest.approx(3601.96)


def test_damage_in_the_middle_is_named_and_left_out(tmp_path):
    """Random bytes in place of some key frames of ten."""
    path = write_signing(tmp_path / "v.mp4", 0, frames=250)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 20] = random.Random(1).randbytes(len(data) // 20)
    path.write_bytes(data)
    found = read(path)
    gaps = [each for each in found if isinstance(each, Gap)]
    times = [each.time_s for each in found if isinstance(each, Picture)]
    assert times == sorted(times) and times[0] == 0
    assert all(gap.reason and 0 < gap.start_s < gap.end_s <= 10 for gap in gaps)
    missing_s = sum(gap.end_s - gap.start_s for gap in gaps)
    assert len(times) / 25 + missing_s == pytest.approx(10, abs=0.2)


def test_a_file_cut_short_says_where_it_ends(tmp_path):
    pictures = camera_pictures(np.full((48, 64, 3), 90, np.uint8), 250, 12)
    path = write_video(tmp_path / "v.mp4", pictures, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    last = read(path)[-1]
    assert isinstance(last, Gap) and last.reason and last.end_s == pytest.approx(10)


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "v.mp4").write_text("a text")
    with pytest.raises(ClipRejected, match="unreadable"):
        read(tmp_path / "v.mp4")
    with pytest.raises(ClipRejected, match="beyond-end"):
        read(write_video(tmp_path / "short.mp4", 25), start_s=2.0)


def test_a_folder_of_pictures_is_a_video(tmp_path):
    from PIL import Image

    for number in range(20):
        Image.fromarray(np.full((48, 64, 3), 12 + 4 * number, np.uint8)).save(tmp_path / f"image{number}.png")
    clip = decode_clip(Clip(id="v", video=str(tmp_path), start_s=0.2, end_s=0.6), VISION)
    pictures = read(tmp_path, 0.2, 0.6)
    assert len(pictures) == clip.total_frames == 10
    assert numbers(np.array([picture.grey_HW for picture in pictures])) == numbers(clip.grey_THW)


def test_live_pictures_are_brought_to_the_rate():
    """A camera of 10 pictures a second with a repeated time, and a pause of an hour."""
    picture = np.zeros((48, 64, 3), np.uint8)
    times = [n / 10 for n in range(20)] + [1.9] + [3600 + n / 10 for n in range(10)]
    found = list(live_pictures(((time, picture) for time in times), SETTINGS))
    gaps = [number for number, each in enumerate(found) if isinstance(each, Gap)]
    assert len(gaps) == 1
    shown = [each.time_s for each in found if isinstance(each, Picture)]
    assert shown[:3] == pytest.approx([0, 0.04, 0.08])
    assert len(shown) == pytest.approx(25 * 2.8, abs=4)


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), "a file"]
)
def test_anything_else_than_a_picture_is_refused(picture):
    with pytest.raises(UsageError, match="picture"):
        list(live_pictures([(0.0, picture)], SETTINGS))
    with pytest.raises(UsageError, match="time"):
        list(live_pictures([(float("nan"), np.zeros((4, 4, 3), np.uint8))], SETTINGS))
