"""`vision.fit=signer`: the square follows the shoulders in a keypoint file beside the video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from factories.videos import write_video
from PIL import Image
from video_kinds import turned

from sage_scale.config import Corpus, Vision
from sage_scale.corpora.manifest import Clip
from sage_scale.corpora.videos import read_corpus
from sage_scale.errors import ClipRejected
from sage_scale.vision.decode import decode_clip, decode_clips
from sage_scale.vision.keypoints import LEFT_SHOULDER, POINTS, RIGHT_SHOULDER

SIGNER = Vision(size=64, crop=64, frame_stride=1, fit="signer")
WIDTH, HEIGHT = 320, 180
SHOULDERS = 24  # apart, pixels


def signer_at(x: int, y: int, frames: int = 20) -> list[np.ndarray]:
    """A dark hall with one bright body, its shoulders' middle at (x, y)."""
    picture = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    picture[max(0, y - 20) : y + 45, max(0, x - 20) : x + 20] = 220
    return [picture] * frames


def keypoints_at(path: Path, *places: tuple[float, float], width: int = WIDTH, height: int = HEIGHT) -> None:
    """A keypoint file whose shoulders are at these pixels, a second each at 25 frames a second."""
    points = np.zeros((25 * len(places), POINTS, 2), np.float32)
    for second, (x, y) in enumerate(places):
        rows = slice(25 * second, 25 * (second + 1))
        points[rows, LEFT_SHOULDER] = ((x + SHOULDERS / 2) / width, y / height)
        points[rows, RIGHT_SHOULDER] = ((x - SHOULDERS / 2) / width, y / height)
    np.savez(path, keypoints=points.reshape(len(points), -1), fps=25)


def brightness(clip: Clip, vision: Vision = SIGNER) -> np.ndarray:
    return decode_clip(clip, vision).frames[2].mean(-1) > 120


@pytest.mark.parametrize("place", [(60, 70), (250, 60), (10, 160)])
def test_the_square_holds_the_signer_wherever_it_stands(tmp_path, place) -> None:
    path = write_video(tmp_path / "talk.mp4", signer_at(*place))
    keypoints_at(tmp_path / "talk.npz", place)
    body = brightness(Clip(id="a", video=str(path)))
    side = 3.6 * SHOULDERS
    left = min(max(place[0] - side / 2, 0), WIDTH - side)
    top = min(max(place[1] + 0.125 * side - side / 2, 0), HEIGHT - side)
    wanted = np.asarray(Image.fromarray(signer_at(*place)[0]).crop(
        (round(left), round(top), round(left + side), round(top + side))
    ).resize((64, 64)).convert("L")) > 120  # fmt: skip
    assert (body == wanted).mean() > 0.95
    grey = decode_clip(Clip(id="a", video=str(path)), SIGNER).grey_THW[2] > 120
    assert abs(grey.mean() - body.mean()) < 0.05  # the tagger of motion sees the same part


def test_without_keypoints_or_shoulders_it_is_the_middle(tmp_path) -> None:
    path = write_video(tmp_path / "talk.mp4", signer_at(60, 70))
    middle = decode_clip(Clip(id="a", video=str(path)), Vision(size=64, crop=64, frame_stride=1))
    assert np.array_equal(decode_clip(Clip(id="a", video=str(path)), SIGNER).frames, middle.frames)
    np.savez(tmp_path / "talk.npz", keypoints=np.zeros((20, 2 * POINTS), np.float32), fps=25)
    assert np.array_equal(decode_clip(Clip(id="a", video=str(path)), SIGNER).frames, middle.frames)


def test_each_clip_has_the_square_of_its_own_time_also_in_one_pass(tmp_path) -> None:
    pictures = signer_at(60, 70, 25) + signer_at(250, 70, 25)
    path = write_video(tmp_path / "talk.mp4", pictures)
    keypoints_at(tmp_path / "talk.npz", (60, 70), (250, 70))
    clips = [Clip(id=str(s), video=str(path), start_s=s, end_s=s + 0.9) for s in (0, 1)]
    for place, decoded in decode_clips(clips, SIGNER):
        assert 0.15 < (decoded.frames.mean((0, 3)) > 120).mean() < 0.6
        assert np.array_equal(decoded.frames, decode_clip(clips[place], SIGNER).frames)


def test_a_turned_video_is_cut_as_it_is_shown(tmp_path) -> None:
    """The file's pictures lie on their side; keypoints are of the upright ones."""
    shown = np.full((HEIGHT, WIDTH, 3), 30, np.uint8)
    shown[30:90, 230:270] = 220
    stored = np.rot90(shown, 1)  # turned clockwise it is upright
    path = turned(write_video(tmp_path / "talk.mp4", [np.ascontiguousarray(stored)] * 12))
    keypoints_at(tmp_path / "talk.npz", (250, 50))
    straight = write_video(tmp_path / "straight.mp4", [shown] * 12)
    keypoints_at(tmp_path / "straight.npz", (250, 50))
    bodies = [brightness(Clip(id="a", video=str(p))) for p in (path, straight)]
    assert bodies[1].any() and (bodies[0] == bodies[1]).mean() > 0.95


def test_a_folder_of_frames_has_its_keypoints_beside_it(tmp_path) -> None:
    folder = tmp_path / "talk.v1"
    folder.mkdir()
    for t, picture in enumerate(signer_at(250, 70, 10)):
        Image.fromarray(picture).save(folder / f"{t}.png")
    keypoints_at(tmp_path / "talk.v1.npz", (250, 70))
    assert 0.15 < brightness(Clip(id="a", video=str(folder))).mean() < 0.6


def test_keypoints_that_are_no_shares_or_cannot_be_read_reject(tmp_path) -> None:
    path = write_video(tmp_path / "talk.mp4", signer_at(60, 70))
    keypoints_at(tmp_path / "talk.npz", (60, 70), width=1, height=1)
    with pytest.raises(ClipRejected, match=r"bad-keypoints: talk.npz: points lie far outside"):
        decode_clip(Clip(id="a", video=str(path)), SIGNER)
    (tmp_path / "talk.npz").write_bytes(b"no keypoints")
    with pytest.raises(ClipRejected, match="bad-keypoints"):
        decode_clip(Clip(id="a", video=str(path)), SIGNER)
    assert decode_clip(Clip(id="a", video=str(path)), Vision(size=64)).total_frames == 20


def test_keypoints_beside_a_video_are_part_of_it(tmp_path) -> None:
    write_video(tmp_path / "talk.mp4", signer_at(60, 70))
    (tmp_path / "talk.txt").write_text("Guten Tag.")
    keypoints_at(tmp_path / "talk.npz", (60, 70))
    keypoints_at(tmp_path / "alone.npz", (60, 70))
    clips = read_corpus(Corpus(name="videos", root=str(tmp_path))).clips
    assert [clip.id for clip in clips] == ["alone.npz", "talk.mp4"]
    features = decode_clip(clips[1], Vision(kind="features", backbone="keypoints"))
    assert features.keypoints_TKC is not None and features.total_frames == 25
