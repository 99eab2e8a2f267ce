"""Keypoint files and their features: what must change nothing changes nothing."""

from __future__ import annotations

import contextlib
import os
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_scale.config import Vision
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected
from sage_scale.vision.backbones import FrozenBackbone
from sage_scale.vision.decode import decode_clip
from sage_scale.vision.keypoints import keypoint_features, read_keypoints

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
    assert np.array_equal(decoded.keypoints_TKC, values.reshape(61, 67, 2)[:60:2].astype(np.float32))
    np.savez(tmp_path / "b.npz", keypoints=values, fps=25)
    assert decode_clip(Clip(id="b", video=str(tmp_path / "b.npz")), KEYPOINTS).total_frames == 61
    part = decode_clip(Clip(id="a", video=str(tmp_path / "a.npz"), start_s=0.2, end_s=0.8), KEYPOINTS)
    assert np.array_equal(part.keypoints_TKC, decoded.keypoints_TKC[5:20])
    (rows,) = FrozenBackbone(KEYPOINTS)(decoded)
    assert rows.shape == (15, 134) and rows.dtype == np.float16  # every second frame


def test_place_and_size_of_the_signer_vanish() -> None:
    points = signer()
    moved = np.where((points != 0).any(-1, keepdims=True), points * 1.7 + [0.3, -0.2], 0)
    expected, features = keypoint_features(points), keypoint_features(moved)
    assert np.abs(expected.astype(float) - features).max() < 0.01
    shoulders = features.reshape(-1, 67, 2)[:, [2, 5]].astype(float)
    seen = (points[:, [2, 5]] != 0).any(-1).all(-1)
    assert np.abs(shoulders[seen].sum(1)).max() < 1e-3
    assert np.abs(np.linalg.norm(shoulders[seen, 0] - shoulders[seen, 1], axis=-1) - 1).max() < 2e-3


def test_points_not_seen_stay_zero_and_have_no_velocity() -> None:
    points = signer()
    features = keypoint_features(points, velocities=True)
    assert features.shape == (60, 268) and np.isfinite(features).all()
    missing = (points == 0).all(-1)
    places, steps = features[:, :134].reshape(60, 67, 2), features[:, 134:].reshape(60, 67, 2)
    assert not places[missing].any() and not steps[missing].any() and not steps[1:][missing[:-1]].any()
    both = ~missing[1:] & ~missing[:-1]
    difference = places[1:].astype(float) - places[:-1].astype(float)
    assert np.abs(difference[both] - steps[1:][both]).max() < 0.01


def test_bad_keypoint_files(tmp_path) -> None:
    path = tmp_path / "bad.npz"

    def reason(vision: Vision = KEYPOINTS) -> str:
        with pytest.raises(ClipRejected) as caught:
            decode_clip(Clip(id="x", video=str(path)), vision)
        return caught.value.reason

    path.write_bytes(b"PK\3\4 no archive")
    assert reason() == "unreadable"
    for values in (np.zeros((40, 133)), np.full((40, 134), np.nan), np.zeros((0, 134)), np.zeros(134)):
        np.savez(path, keypoints=values)
        assert reason() == "unreadable"
    np.savez(path, points=np.zeros((40, 134)))
    assert reason() == "unreadable"
    np.savez(path, keypoints=np.array([[{"an": "object"}]]))
    assert reason() == "unreadable"
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
    with pytest.raises(ClipRejected, match="unreadable"):
        decode_clip(Clip(id="x", video=str(path)), KEYPOINTS)


def test_an_array_that_claims_all_memory_is_refused(tmp_path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000, 134), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as out:
        out.writestr("keypoints.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(ClipRejected, match="unreadable"):
        decode_clip(Clip(id="x", video=str(tmp_path / "a.npz")), KEYPOINTS)


def test_what_is_no_file_is_no_keypoint_file(tmp_path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    (tmp_path / "b.pose").symlink_to("/dev/zero")
    (tmp_path / "c.npz").mkdir()
    for name in ("a.npz", "b.pose", "c.npz"):
        with pytest.raises(ClipRejected):
            decode_clip(Clip(id="x", video=str(tmp_path / name)), KEYPOINTS)
    with pytest.raises(ClipRejected, match="a FIFO"):
        read_keypoints(tmp_path / "a.npz", 25.0)


def test_pose_files(tmp_path) -> None:
    pose_format = pytest.importorskip("pose_format", reason="the extra sage-scale[pose] is not installed")
    from pose_format.numpy import NumPyPoseBody
    from pose_format.pose_header import PoseHeader, PoseHeaderComponent, PoseHeaderDimensions

    body = ["NOSE", "LEFT_SHOULDER", "RIGHT_SHOULDER", "LEFT_WRIST", "RIGHT_WRIST"]
    hand = [f"POINT_{k}" for k in range(21)]
    components = [
        PoseHeaderComponent(name, points, [], [(0, 0, 0)], "XYZC")
        for name, points in (
            ("POSE_LANDMARKS", body),
            ("LEFT_HAND_LANDMARKS", hand),
            ("RIGHT_HAND_LANDMARKS", hand),
        )
    ]
    data = np.random.default_rng(0).uniform(10, 90, (30, 1, 47, 3)).astype(np.float32)
    confidence = np.ones((30, 1, 47), np.float32)
    confidence[:, :, 26:] = 0  # the right hand is never seen
    header = PoseHeader(0.1, PoseHeaderDimensions(200, 100, 100), components)
    pose = pose_format.Pose(header, NumPyPoseBody(50, data, confidence))
    with (tmp_path / "a.pose").open("wb") as file:
        pose.write(file)
    decoded = decode_clip(Clip(id="a", video=str(tmp_path / "a.pose")), KEYPOINTS)
    assert decoded.total_frames == 15 and decoded.source_fps == 50
    expected = data[::2, 0, :, :2] / [200, 100]
    points = decoded.keypoints_TKC
    assert np.allclose(points[:, [0, 5, 2, 7, 4]], expected[:, :5], atol=1e-5)
    assert np.allclose(points[:, 1], (expected[:, 1] + expected[:, 2]) / 2, atol=1e-5)
    assert np.allclose(points[:, 25:46], expected[:, 5:26], atol=1e-5) and not points[:, 46:].any()
    (tmp_path / "a.pose").write_bytes((tmp_path / "a.pose").read_bytes()[:100])
    with pytest.raises(ClipRejected, match="unreadable"):
        decode_clip(Clip(id="a", video=str(tmp_path / "a.pose")), KEYPOINTS)
