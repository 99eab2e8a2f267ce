"""Tracks of videos as they come. The extractor finds the brightest part, whose place in the shown picture is known."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
import pytest
from factories.videos import write_video
from PIL import Image
from plugins.toy_extractor import brightest
from vision.video_kinds import turned, varying_times

from sage_scale.errors import ClipRejected
from sage_scale.extraction.extract import extract
from sage_scale.extraction.extractor import ExtractorFailed
from sage_scale.keypoints.track import KeypointTrack


class Spot:
    """Two points: the brightest part, and one that is never seen. Counts the pictures."""

    names = ("body.nose", "body.left_eye")
    has_z = False
    facts: ClassVar[dict] = {}

    def __init__(self):
        self.pictures = 0

    def __call__(self, pictures):
        for picture in pictures:
            self.pictures += 1
            x, y, brightness = brightest(picture)
            seen = brightness > 0.5
            yield np.array([[x, y], [0, 0]]), np.array([seen * brightness, 0])


def spots(places: Sequence[tuple[int, int] | None], width: int = 96, height: int = 64) -> list[np.ndarray]:
    pictures = []
    for place in places:
        picture = np.full((height, width, 3), 20, np.uint8)
        if place is not None:
            x, y = place
            picture[y - 4 : y + 4, x - 4 : x + 4] = 250
        pictures.append(picture)
    return pictures


def track(path: Path, extractor: Spot | None = None, **options) -> KeypointTrack:
    shares = []
    found = extract(path, extractor or Spot(), report=lambda frames, share: shares.append(share), **options)
    assert shares == sorted(shares)
    return found


ALONG = [(10 + 2 * t, 20 + t) for t in range(30)]


@pytest.mark.parametrize("rate", [12, 25, 120])
def test_a_constant_rate_is_kept_and_each_frame_is_its_own_picture(tmp_path, rate):
    found = track(write_video(tmp_path / "v.mp4", spots(ALONG), rate=rate))
    assert (len(found), found.fps, found.width, found.height) == (30, rate, 96, 64)
    assert np.abs(found.points_TKC[:, 0, :2] - ALONG).max() <= 1.5
    assert found.confidence_TK[:, 1].max() == 0 and not found.has_z


def test_a_turned_video_has_points_in_the_shown_picture(tmp_path):
    found = track(turned(write_video(tmp_path / "v.mp4", spots(ALONG))))
    assert (found.width, found.height) == (64, 96)
    shown = [(63 - y, x) for x, y in ALONG]  # a quarter turn clockwise
    assert np.abs(found.points_TKC[:, 0, :2] - shown).max() <= 1.5


def test_pixels_that_are_not_square_become_square(tmp_path):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "4", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        for picture in spots(ALONG):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    found = track(path)
    assert (found.width, found.height) == (192, 64)
    assert np.abs(found.points_TKC[:, 0, :2] - [(2 * x, y) for x, y in ALONG]).max() <= 3


def test_a_variable_rate_becomes_its_average_with_the_nearest_picture(tmp_path):
    times = varying_times(30)
    asked = Spot()
    found = track(write_video(tmp_path / "v.mkv", spots(ALONG), times=times), asked)
    nearest = np.abs(np.arange(len(found))[:, None] / found.fps - np.array(times)).argmin(1)
    assert np.abs(found.points_TKC[:, 0, :2] - np.array(ALONG)[nearest]).max() <= 1.5
    assert asked.pictures <= 30  # repeated pictures are not looked at again


def test_a_signer_who_leaves_and_a_black_last_frame_have_confidence_0(tmp_path):
    places = [*ALONG[:10], *[None] * 5, *ALONG[10:20]]
    pictures = [*spots(places), np.zeros((64, 96, 3), np.uint8)]
    found = track(write_video(tmp_path / "v.mp4", pictures))
    seen = [*[True] * 10, *[False] * 5, *[True] * 10, False]
    assert (found.confidence_TK[:, 0] > 0).tolist() == seen
    assert not found.points_TKC[~np.array(seen)].any()


def test_one_frame_is_a_track_of_one_frame(tmp_path):
    found = track(write_video(tmp_path / "v.mp4", spots(ALONG[:1])))
    assert len(found) == 1 and np.abs(found.points_TKC[0, 0, :2] - ALONG[0]).max() <= 1.5


def test_folders_of_pictures_have_the_given_rate(tmp_path):
    for number, picture in enumerate(spots(ALONG[:12])):
        Image.fromarray(picture).save(tmp_path / f"image{number}.png")
    found = track(tmp_path, source_fps=30.0)
    assert (len(found), found.fps) == (12, 30.0)
    assert np.abs(found.points_TKC[:, 0, :2] - ALONG[:12]).max() <= 1


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([(np.ones((2, 2)), np.ones(3))] * 3, r"points \(2, 2\) and confidence \(3,\) in place of"),
        ([(np.ones((3, 2)), np.ones(3))] * 3, r"in place of \(2, 2 or 3\) and \(2,\)"),
        ([(np.ones((2, 3)), np.ones(2))] * 2, "answered 2 of 3 pictures"),
        ([], "answered 0 of 3 pictures"),
        ([(np.ones((2, 3)), np.ones(2))] * 4, "more often than it had pictures"),
    ],
)
def test_answers_that_do_not_belong_to_the_pictures_are_a_failure(answers, message, tmp_path):
    class Wrong(Spot):
        def __call__(self, pictures):
            list(pictures)
            yield from answers

    with pytest.raises(ExtractorFailed, match=message) as caught:
        track(write_video(tmp_path / "a.mp4", spots(ALONG[:3])), Wrong())
    assert caught.value.kind == "nonsense"


def test_videos_that_are_none_are_rejected_by_name(tmp_path):
    whole = write_video(
        tmp_path / "whole.mp4", spots(ALONG * 4), options={"qp": "4", "threads": "1", "g": "10"}
    )
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "nothing").mkdir()
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    ts = write_video(tmp_path / "whole.avi", spots(ALONG * 4), codec="mpeg4", options={"g": "10"})
    cut = tmp_path / "cut.avi"
    cut.write_bytes(ts.read_bytes()[: ts.stat().st_size // 2])
    damaged = tmp_path / "damaged.mp4"
    shutil.copy(whole, damaged)
    with damaged.open("r+b") as file:
        file.seek(whole.stat().st_size // 4)
        file.write(b"\xff" * (whole.stat().st_size // 3))

    def reason(name: str) -> str:
        with pytest.raises(ClipRejected) as caught:
            track(tmp_path / name)
        return caught.value.reason

    assert reason("empty.mp4") == "unreadable" and reason("text.mp4") == "unreadable"
    assert reason("nothing") == "empty" and reason("sound.mp4") == "no-video"
    assert reason("missing.mp4") == "missing"
    assert reason("cut.avi") in ("truncated", "corrupt", "unreadable")
    assert reason("damaged.mp4") in ("corrupt", "truncated", "unreadable")
