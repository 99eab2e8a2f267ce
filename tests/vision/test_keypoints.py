"""Keypoint files and their features: what must change nothing changes nothing."""

from __future__ import annotations

import contextlib
import os
import zipfile

import numpy as np
import pytest
from factories.videos import write_video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_scale.config import Segmentation, Vision
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected
from sage_scale.keypoints.features import keypoint_features
from sage_scale.keypoints.files import openpose_frames, pose_bytes
from sage_scale.keypoints.names import HOLISTIC_75, OPENPOSE_67, row_width
from sage_scale.keypoints.track import KeypointTrack, track_of
from sage_scale.segmentation import segment_clip
from sage_scale.vision.backbones import FrozenBackbone
from sage_scale.vision.decode import decode_clip, decode_clips
from sage_scale.vision.keypoints import read_keypoints

KEYPOINTS = Vision(kind="features", backbone="keypoints", source_fps=50.0)


def signer(frames: int = 60, seed: int = 0) -> np.ndarray:
    """Wandering points (T, 67, 2) around a body whose shoulders are .2 apart; some are not seen."""
    rng = np.random.default_rng(seed)
    points = 0.5 + rng.normal(0, 0.1, (1, 67, 2)) + rng.normal(0, 0.004, (frames, 67, 2)).cumsum(0)
    points[:, 2], points[:, 5] = (0.4, 0.4), (0.6, 0.42)
    points[rng.random((frames, 67)) < 0.05] = 0
    return points


def test_npz_at_fifty_frames_a_second_is_halved(tmp_path) -> None:
    values = signer(61).reshape(61, 134).astype(np.float16)
    np.savez(tmp_path / "a.npz", keypoints=values)
    decoded = decode_clip(Clip(id="a", video=str(tmp_path / "a.npz")), KEYPOINTS)
    assert decoded.total_frames == 30 and decoded.source_fps == 50 and not len(decoded.frames)
    expected = 1024 * values.reshape(61, 67, 2)[:60:2].astype(np.float32)
    assert np.array_equal(decoded.keypoints_TKC, expected) and len(decoded.track) == 61
    np.savez(tmp_path / "b.npz", keypoints=values, fps=25)
    assert decode_clip(Clip(id="b", video=str(tmp_path / "b.npz")), KEYPOINTS).total_frames == 61
    part = decode_clip(Clip(id="a", video=str(tmp_path / "a.npz"), start_s=0.2, end_s=0.8), KEYPOINTS)
    assert np.array_equal(part.keypoints_TKC, decoded.keypoints_TKC[5:20])
    (rows,) = FrozenBackbone(KEYPOINTS)(decoded)
    assert rows.shape == (15, 134) and rows.dtype == np.float16  # every second frame


def track_of_shares(points_TKC: np.ndarray, names: tuple[str, ...] = OPENPOSE_67) -> KeypointTrack:
    seen = (points_TKC != 0).any(-1).astype(float)
    return track_of(names, points_TKC * 1000, seen, fps=25, width=1000, height=1000)


def test_place_and_size_of_the_signer_vanish() -> None:
    points = signer()
    moved = np.where((points != 0).any(-1, keepdims=True), points * 1.7 + [0.3, -0.2], 0)
    expected, features = (keypoint_features(track_of_shares(p)) for p in (points, moved))
    assert np.abs(expected.astype(float) - features).max() < 0.01
    shoulders = features.reshape(-1, 67, 2)[:, [2, 5]].astype(float)
    seen = (points[:, [2, 5]] != 0).any(-1).all(-1)
    assert np.abs(shoulders[seen].sum(1)).max() < 1e-3
    assert np.abs(np.linalg.norm(shoulders[seen, 0] - shoulders[seen, 1], axis=-1) - 1).max() < 2e-3


def test_points_not_seen_stay_zero_and_have_no_velocity() -> None:
    points = signer()
    features = keypoint_features(track_of_shares(points), velocities=True)
    assert features.shape == (60, 268)
    places, steps = features[:, :134].reshape(-1, 67, 2), features[:, 134:].reshape(-1, 67, 2)
    missing = (points == 0).all(-1)
    assert not places[missing].any() and not steps[missing].any() and not steps[0].any()
    both = ~missing[1:] & ~missing[:-1]
    difference = places[1:].astype(float) - places[:-1].astype(float)
    assert np.abs(difference[both] - steps[1:][both]).max() < 0.01


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("velocities", [False, True])
def test_features_of_shares_are_those_of_version_0_1_0(tmp_path, seed, velocities) -> None:
    """Datasets of 0.1.0 keep their bytes: the rows as it computed them, from shares of a picture's sides."""
    shares = signer(40, seed).astype(np.float16)
    if seed == 4:
        shares[:, 5] = 0  # a shoulder is never seen
    np.savez(tmp_path / "a.npz", keypoints=shares.reshape(40, 134), fps=25)
    points = shares.astype(np.float32).astype(np.float64)
    seen = (points != 0).any(-1)
    known = np.flatnonzero(seen[:, 5] & seen[:, 2])
    centre, width = np.broadcast_to(points[seen].mean(0), (40, 2)), 1.0
    if len(known):
        width = float(np.median(np.linalg.norm(points[known, 5] - points[known, 2], axis=1)))
        nearest = known[np.abs(np.arange(40)[:, None] - known[None]).argmin(1)]
        centre = (points[nearest, 5] + points[nearest, 2]) / 2
    places = np.where(seen[..., None], (points - centre[:, None]) / width, 0)
    steps = np.zeros_like(places)
    steps[1:] = np.where((seen[1:] & seen[:-1])[..., None], places[1:] - places[:-1], 0)
    expected = np.concatenate([part.reshape(40, 134) for part in (places, steps)[: 1 + velocities]], 1)
    vision = Vision(kind="features", backbone="keypoints", frame_stride=1, keypoint_velocities=velocities)
    (rows,) = FrozenBackbone(vision)(decode_clip(Clip(id="a", video=str(tmp_path / "a.npz")), vision))
    assert np.array_equal(rows, np.clip(expected, -10, 10).astype(np.float16))


def test_the_aspect_of_the_picture_counts(tmp_path) -> None:
    """The same signer in a wide picture and in its left half: shares of the sides differ, features do not."""
    points = signer()
    wide = np.where(points == 0, 0, points * [0.5, 1])
    for name, shares in (("half", points), ("wide", wide)):
        np.savez(tmp_path / f"{name}.npz", keypoints=shares.reshape(60, 134), fps=25)

    def rows(name: str, aspect: float) -> np.ndarray:
        vision = Vision(kind="features", backbone="keypoints", source_aspect=aspect)
        return FrozenBackbone(vision)(decode_clip(Clip(id="a", video=str(tmp_path / f"{name}.npz")), vision))

    assert np.abs(rows("half", 0.8).astype(float) - rows("wide", 1.6)).max() < 0.01
    assert np.abs(rows("half", 1.0).astype(float) - rows("wide", 1.0)).max() > 0.1


def test_layouts_depth_and_gaps() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(100, 300, (20, 75, 3))
    values[..., 2] /= 1000
    values[:, 11], values[:, 12] = (300, 200, 0.1), (200, 200, 0.3)
    track = track_of(HOLISTIC_75, values, np.ones((20, 75)), fps=25, width=640, height=360)
    flat, deep = (keypoint_features(track, layout="holistic", z=z).astype(float) for z in (False, True))
    assert flat.shape == (20, 150) == (20, row_width("holistic")) and deep.shape == (
        20,
        row_width("holistic", z=True),
    )
    deep = deep.reshape(20, 75, 3)
    assert np.array_equal(deep[..., :2].reshape(20, 150), flat)
    assert np.abs(deep[:, :33, 2] - (values[:, :33, 2] - 0.2) * 640 / 100).max() < 0.01
    assert np.abs(deep[:, 33:, 2] - values[:, 33:, 2] * 640 / 100).max() < 0.01
    # BODY_25's neck is the middle of the shoulders, so the origin.
    assert not keypoint_features(track).reshape(20, 67, 2)[:, 1].any()
    with pytest.raises(ClipRejected, match="none of its points is one of the layout openpose"):
        keypoint_features(track.replace(names=tuple(map(str, range(75)))))


def test_short_gaps_are_interpolated_where_the_recipe_says_so(tmp_path) -> None:
    points = signer(40)
    points[points == 0] = 0.5
    points[10:12, 30] = 0
    np.savez(tmp_path / "a.npz", keypoints=points.reshape(40, 134), fps=25)
    for gap_s, missing in ((0.0, 2), (0.05, 2), (0.08, 0)):
        vision = Vision(kind="features", backbone="keypoints", frame_stride=1, keypoint_gap_s=gap_s)
        (rows,) = FrozenBackbone(vision)(decode_clip(Clip(id="a", video=str(tmp_path / "a.npz")), vision))
        assert (rows.reshape(40, 67, 2)[:, 30] == 0).all(-1).sum() == missing


def test_bad_keypoint_files(tmp_path) -> None:
    path = tmp_path / "bad.npz"

    def reason(vision: Vision = KEYPOINTS) -> str:
        with pytest.raises(ClipRejected) as caught:
            decode_clip(Clip(id="x", video=str(path)), vision)
        return caught.value.reason

    path.write_bytes(b"PK\3\4 no archive")
    assert reason() == "bad-keypoints"
    for values in (np.zeros((40, 133)), np.zeros((0, 134)), np.zeros(134)):
        np.savez(path, keypoints=values)
        assert reason() == "bad-keypoints"
    np.savez(path, points=np.zeros((40, 134)), others=np.zeros(3))
    assert reason() == "bad-keypoints"
    np.savez(path, keypoints=np.array([[{"an": "object"}]]))
    assert reason() == "bad-keypoints"
    np.savez(path, keypoints=np.ones((10, 134)))
    assert reason() == "too-short"
    np.savez(path, keypoints=np.ones((40, 134)))
    assert reason(Vision()) == "no-pictures"


@pytest.mark.parametrize(
    "way", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
@given(choice=st.data())
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_bytes_give_keypoints_or_a_reason(tmp_path, way, choice) -> None:
    np.savez(tmp_path / "whole.npz", keypoints=np.ones((40, 134), np.float32))
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(path, "w", way) as out:
        out.writestr("keypoints.npy", whole.read("keypoints.npy"))
    data = bytearray(path.read_bytes())
    header = min(200, len(data) - 1)
    for place in choice.draw(
        st.lists(st.integers(0, header) | st.integers(0, len(data) - 1), min_size=1, max_size=5)
    ):
        data[place] = choice.draw(st.integers(0, 255))
    path.write_bytes(data)
    with contextlib.suppress(ClipRejected):
        assert decode_clip(Clip(id="x", video=str(path)), KEYPOINTS).keypoints_TKC is not None


@pytest.mark.parametrize("offset", [1, 200, 2**31])
def test_a_directory_that_names_a_place_outside_the_file_is_damage(tmp_path, offset) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, keypoints=np.ones((40, 134), np.float32))
    data = bytearray(path.read_bytes())
    field = slice(len(data) - 6, len(data) - 2)  # where the directory begins; members' places follow from it
    data[field] = (int.from_bytes(data[field], "little") + offset).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ClipRejected, match="bad-keypoints"):
        decode_clip(Clip(id="x", video=str(path)), KEYPOINTS)


def test_an_array_that_claims_all_memory_is_refused(tmp_path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000, 134), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as out:
        out.writestr("keypoints.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ClipRejected, match="bad-keypoints"):
        decode_clip(Clip(id="x", video=str(tmp_path / "a.npz")), KEYPOINTS)


def test_what_is_no_file_is_no_keypoint_file(tmp_path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    (tmp_path / "b.pose").symlink_to("/dev/zero")
    (tmp_path / "c.npz").mkdir()
    for name in ("a.npz", "b.pose", "c.npz"):
        with pytest.raises(ClipRejected):
            decode_clip(Clip(id="x", video=str(tmp_path / name)), KEYPOINTS)
    with pytest.raises(ClipRejected, match="a FIFO"):
        read_keypoints(tmp_path / "a.npz", KEYPOINTS)


def test_a_pose_file_counts_in_pixels_of_its_picture(tmp_path) -> None:
    """Through decoding: its own frame rate and sides, missing hands, a clip of it, and a damaged one."""
    values = np.random.default_rng(0).uniform(10, 90, (30, 75, 3))
    confidence = np.ones((30, 75))
    confidence[:, 54:] = 0  # the right hand is never seen
    track = track_of(HOLISTIC_75, values, confidence, fps=50, width=200, height=100)
    (tmp_path / "a.pose").write_bytes(pose_bytes(track))
    decoded = decode_clip(Clip(id="a", video=str(tmp_path / "a.pose")), KEYPOINTS)
    assert decoded.total_frames == 15 and decoded.source_fps == 50 and len(decoded.track) == 30
    expected, points = values[::2, :, :2], decoded.keypoints_TKC
    assert np.allclose(points[:, [0, 5, 2, 7, 4]], expected[:, [0, 11, 12, 15, 16]], atol=1e-4)
    assert np.allclose(points[:, 1], (expected[:, 11] + expected[:, 12]) / 2, atol=1e-4)
    assert np.allclose(points[:, 25:46], expected[:, 33:54], atol=1e-4) and not points[:, 46:].any()
    part = decode_clip(Clip(id="a", video=str(tmp_path / "a.pose"), start_s=0.2, end_s=0.6), KEYPOINTS)
    assert np.array_equal(part.track.points_TKC, track.points_TKC[10:30]) and part.total_frames == 10
    (tmp_path / "a.pose").write_bytes((tmp_path / "a.pose").read_bytes()[:100])
    with pytest.raises(ClipRejected, match="bad-keypoints"):
        decode_clip(Clip(id="a", video=str(tmp_path / "a.pose")), KEYPOINTS)


def test_a_frame_that_is_not_finite_is_one_without_points(tmp_path) -> None:
    values = np.ones((40, 134))
    values[7], values[9, 3] = np.nan, np.inf
    np.savez(tmp_path / "a.npz", keypoints=values, fps=25)
    vision = Vision(kind="features", backbone="keypoints", frame_stride=1)
    decoded = decode_clip(Clip(id="x", video=str(tmp_path / "a.npz")), vision)
    assert np.flatnonzero(~decoded.keypoints.seen_TK.any(1)).tolist() == [7, 9]
    assert np.isfinite(FrozenBackbone(vision)(decoded)).all()


def test_keypoint_files_of_a_folder_of_their_own(tmp_path) -> None:
    """The folder has the videos' subfolders or none, and any format, also OpenPose's folders."""
    track = track_of_shares(signer(20))
    video = tmp_path / "videos" / "news" / "talk.v1.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(b"a video")
    out = tmp_path / "keypoints"
    vision = Vision(kind="features", backbone="keypoints", keypoints=str(out))

    def found() -> np.ndarray:
        return decode_clip(Clip(id="x", video=str(video)), vision).keypoints_TKC

    with pytest.raises(
        ClipRejected, match=f"no-keypoints: talk.v1.mp4 has no keypoint file .* beside it or in {out}"
    ):
        found()
    folder = out / "talk.v1"
    folder.mkdir(parents=True)
    for name, content in openpose_frames(track, "talk"):
        (folder / name).write_bytes(content)
    assert np.abs(found() - track.points_TKC[..., :2]).max() < 0.1
    (out / "talk.v1.npy").write_bytes(b"")
    with pytest.raises(ClipRejected, match=r"bad-keypoints: talk\.v1\.npy"):
        found()
    (out / "news").mkdir()
    moved = track.replace(points_TKC=track.points_TKC + track.seen_TK[..., None].astype(np.float32))
    (out / "news" / "talk.v1.pose").write_bytes(pose_bytes(moved))  # the more of its folders, the nearer
    assert np.array_equal(found(), moved.points_TKC[..., :2])
    (out / "news").rename(tmp_path / "elsewhere")
    (out / "talk.v1.npy").unlink()
    for file in folder.iterdir():
        file.unlink()
    (video.parent / "talk.v1.pose").write_bytes(
        pose_bytes(track)
    )  # what the folder lacks lies beside the video
    assert np.array_equal(found(), track.points_TKC[..., :2])
    for name, content in openpose_frames(track, "talk"):
        (folder / name).write_bytes(content)
    alone = Clip(id="x", video=str(folder))
    assert decode_clip(alone, vision).total_frames == 20


def test_a_video_comes_with_its_track_when_asked(tmp_path) -> None:
    pictures = [np.full((48, 64, 3), 9 * k, np.uint8) for k in range(20)]
    path = write_video(tmp_path / "talk.mp4", pictures)
    track = track_of_shares(signer(40)).replace(fps=50.0)
    clips = [Clip(id=str(k), video=str(path), start_s=0.4 * k, end_s=0.4 * (k + 1)) for k in range(2)]
    vision = Vision(size=32, crop=32)
    assert decode_clip(clips[0], vision, keypoints=True).track is None
    (tmp_path / "talk.pose").write_bytes(pose_bytes(track))
    assert decode_clip(clips[1], vision).track is None
    for number, decoded in decode_clips(clips, vision, keypoints=True):
        assert np.array_equal(decoded.track.points_TKC, track.points_TKC[20 * number : 20 * number + 20])
        assert decoded.total_frames == 10 and decoded.track.fps == 50
    (tmp_path / "talk.pose").write_bytes(b"damage")
    outcomes = dict(decode_clips(clips, vision, keypoints=True))
    assert [outcome.reason for outcome in outcomes.values()] == 2 * ["bad-keypoints"]


def test_pixels_without_the_size_of_their_picture_give_no_square(tmp_path) -> None:
    path = write_video(tmp_path / "talk.mp4", [np.zeros((48, 64, 3), np.uint8)] * 20)
    (tmp_path / "k").mkdir()
    for name, content in openpose_frames(track_of_shares(signer(20)), "talk"):
        (tmp_path / "k" / "talk").mkdir(exist_ok=True)
        (tmp_path / "k" / "talk" / name).write_bytes(content)
    vision = Vision(size=32, crop=32, fit="signer", keypoints=str(tmp_path / "k"))
    with pytest.raises(ClipRejected, match="bad-keypoints: talk: it does not state the size of its picture"):
        decode_clip(Clip(id="x", video=str(path)), vision)


def odd_track(kind: str) -> KeypointTrack:
    values = np.random.default_rng(1).normal(0, 2, (60, 75, 3)).cumsum(0) + 200
    confidence = np.ones((60, 75))
    fps = 25.0
    if kind == "one frame":
        values, confidence = values[:1], confidence[:1]
    elif kind == "half missing":
        confidence[np.random.default_rng(2).random((60, 75)) < 0.5] = 0
    elif kind == "120 fps":
        fps = 120.0
    elif kind == "leaves the picture":
        values[..., 0] += 20 * np.arange(60)[:, None]
        confidence[40:] = 0
    elif kind == "black last frame":
        confidence[-1] = 0
    elif kind == "nobody":
        confidence[:] = 0
    return track_of(HOLISTIC_75, values, confidence, fps=fps, width=640, height=360)


@pytest.mark.parametrize(
    ("kind", "frames"),
    [("one frame", 1), ("half missing", 60), ("120 fps", 12), ("leaves the picture", 60), ("black last frame", 60),
     ("nobody", 60)],
)  # fmt: skip
def test_odd_tracks_have_defined_features_and_segments(tmp_path, kind, frames) -> None:
    (tmp_path / "a.pose").write_bytes(pose_bytes(odd_track(kind)))
    vision = Vision(
        kind="features", backbone="keypoints", frame_stride=1, min_frames=1, keypoint_velocities=True,
        keypoint_layout="holistic", keypoint_z=True, keypoint_gap_s=0.2,
    )  # fmt: skip
    decoded = decode_clip(Clip(id="x", video=str(tmp_path / "a.pose")), vision)
    (rows,) = FrozenBackbone(vision)(decoded)
    assert rows.shape == (frames, 450) and np.isfinite(rows).all() and np.abs(rows).max() <= 10
    segments = segment_clip(decoded, Segmentation())
    assert len(segments) and segments.min() >= 0 and segments.max() <= frames
    assert (segments[:, 0] < segments[:, 1]).all()
    if kind == "nobody":
        assert not rows.any()


def test_a_clip_beyond_the_keypoints_is_beyond_their_end(tmp_path) -> None:
    (tmp_path / "a.pose").write_bytes(pose_bytes(odd_track("half missing")))
    with pytest.raises(ClipRejected, match="beyond-end"):
        decode_clip(Clip(id="x", video=str(tmp_path / "a.pose"), start_s=9, end_s=12), KEYPOINTS)
