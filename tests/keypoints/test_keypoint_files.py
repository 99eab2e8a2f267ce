"""Keypoint files: what is written is read; a peer's file; hostile bytes."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_track import some_track

from sage_scale.errors import ClipRejected
from sage_scale.keypoints import files, names
from sage_scale.keypoints.arrays import WHOLEBODY_133
from sage_scale.keypoints.files import npz_bytes, openpose_frames, pose_bytes, read_track, wholebody_array
from sage_scale.keypoints.people import SHOULDERS
from sage_scale.keypoints.track import KeypointTrack

SEGMENTER = Path(__file__).resolve().parents[3] / "shared" / "data" / "sign_segmenter"


def same(one: KeypointTrack, other: KeypointTrack) -> None:
    assert one.names == other.names
    assert np.array_equal(one.points_TKC, other.points_TKC)
    assert np.array_equal(one.confidence_TK, other.confidence_TK)
    assert (one.width, one.height, one.has_z) == (other.width, other.height, other.has_z)
    assert one.fps == pytest.approx(other.fps, rel=1e-6)


LAYOUTS = (
    names.HOLISTIC_75, names.BODY_33, names.OPENPOSE_67, WHOLEBODY_133, names.RIGHT_HAND,
    names.HOLISTIC_75 + names.FACE_MESH[:5], ("body.nose", "left_hand.wrist", "body.neck", "tail.tip"),
)  # fmt: skip
RANDOM_TRACKS = st.builds(
    lambda layout, frames, fps, sides, z, seed: some_track(frames, layout, seed).replace(
        fps=fps, width=float(sides[0]), height=float(sides[1]), has_z=z
    ),
    st.sampled_from(LAYOUTS),
    st.integers(1, 5),
    st.floats(1, 1000),
    st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
    st.booleans(),
    st.integers(0, 99),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(RANDOM_TRACKS, st.sampled_from(["npz", "pose"]))
def test_what_is_written_is_read(tmp_path, track, kind) -> None:
    if not track.has_z:
        track = track.replace(points_TKC=track.points_TKC * np.array([1, 1, 0], np.float32))
    path = tmp_path / f"a.{kind}"
    path.write_bytes(npz_bytes(track) if kind == "npz" else pose_bytes(track))
    same(read_track(path), track)


def test_a_real_pose_file() -> None:
    """130 frames of MediaPipe Holistic at 30 frames a second."""
    path = SEGMENTER / "example.pose"
    if not path.is_file():
        pytest.skip("../shared/data/sign_segmenter is missing")
    track = read_track(path)
    assert (len(track), track.fps, track.has_z) == (130, 30, True)
    assert set(names.HOLISTIC_75) <= set(track.names)
    shoulders = track.select(["body.left_shoulder", "body.right_shoulder"])
    assert shoulders.seen_TK.all() and (shoulders.points_TKC[:, 0, 0] > shoulders.points_TKC[:, 1, 0]).all()
    assert track.points_TKC[..., 0].max() < 1.5 * track.width


def test_shares_of_version_0_1_0_become_pixels(tmp_path) -> None:
    rng = np.random.default_rng(0)
    shares = rng.random((9, 67, 2)).astype(np.float16)
    shares[2, 5] = 0
    np.savez(tmp_path / "a.npz", keypoints=shares.reshape(9, 134), fps=50)
    track = read_track(tmp_path / "a.npz", picture=(1280, 720))
    assert track.names == names.OPENPOSE_67 and track.fps == 50 and not track.has_z
    assert (track.width, track.height) == (1280, 720)
    expected = shares.astype(np.float64) * [1280, 720]
    assert np.abs(track.points_TKC[..., :2] - expected).max() < 1e-3
    assert not track.seen_TK[2, 5] and track.seen_TK.sum() == 9 * 67 - 1
    np.savez(tmp_path / "b.npz", keypoints=shares)
    square = read_track(tmp_path / "b.npz", default_fps=30.0)
    assert square.fps == 30 and square.width == square.height
    assert np.array_equal(square.points_TKC[..., :2] / np.float32(square.width), shares)


def test_wholebody_arrays(tmp_path) -> None:
    """COCO-WholeBody numbers shoulders 5, 6, the left hand's wrist 91 and the right one's 112."""
    track = some_track(4, WHOLEBODY_133)
    track = track.replace(points_TKC=track.points_TKC * np.array([1, 1, 0], np.float32), has_z=False)
    array = wholebody_array(track)
    for number, name in (
        (5, "body.left_shoulder"),
        (6, "body.right_shoulder"),
        (91, "left_hand.wrist"),
        (112, "right_hand.wrist"),
    ):
        assert np.array_equal(array[:, number, :2], track.points_TKC[:, track.names.index(name), :2])
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", anything=array)
    for name in ("a.npy", "a.npz"):
        same(read_track(tmp_path / name, picture=(640, 360)), track)
    flat = np.zeros_like(array)
    flat[..., 2] = 1
    np.save(tmp_path / "two.npy", np.stack([flat, array], 1))
    near = read_track(tmp_path / "two.npy", picture=(640, 360))
    seen = track.select(SHOULDERS).seen_TK.all(1)
    assert seen.any() and np.array_equal(near.points_TKC[seen], track.points_TKC[seen])
    loose = read_track(tmp_path / "a.npy")
    assert loose.width == np.ceil(track.points_TKC[..., 0].max())


def test_a_pose_file_of_two_people_has_the_nearer_one(tmp_path) -> None:
    track = some_track(3, names.BODY_33)
    track = track.replace(confidence_TK=np.ones_like(track.confidence_TK))
    far, near = track, track.replace(points_TKC=track.points_TKC * 2)
    data = pose_bytes(track)
    begin = len(data) - track.points_TKC.nbytes - track.confidence_TK.nbytes - 2
    body = np.stack([far.points_TKC, near.points_TKC], 1).tobytes() + 2 * track.confidence_TK.tobytes()
    (tmp_path / "a.pose").write_bytes(data[:begin] + struct.pack("<H", 2) + body)
    assert np.array_equal(read_track(tmp_path / "a.pose").points_TKC, near.points_TKC)


def test_the_peer_reads_and_writes_the_same_pose_files(tmp_path) -> None:
    pose_format = pytest.importorskip("pose_format")
    track = some_track(7)
    pose = pose_format.Pose.read(pose_bytes(track))
    assert [c.name for c in pose.header.components] == [
        "POSE_LANDMARKS",
        "LEFT_HAND_LANDMARKS",
        "RIGHT_HAND_LANDMARKS",
    ]
    assert pose.header.components[0].points[11] == "LEFT_SHOULDER" and pose.body.fps == 25
    assert np.array_equal(pose.body.data.filled(0)[:, 0], track.points_TKC)
    assert np.array_equal(pose.body.confidence[:, 0], track.confidence_TK)
    out = io.BytesIO()
    pose.write(out)
    (tmp_path / "a.pose").write_bytes(out.getvalue())
    same(read_track(tmp_path / "a.pose"), track)


def sound_files() -> dict[str, bytes]:
    track = some_track(6)
    old, array = io.BytesIO(), io.BytesIO()
    np.savez(old, keypoints=np.ones((6, 134), np.float32), fps=50)
    np.save(array, wholebody_array(track))
    _, frame = next(iter(openpose_frames(track, "a")))
    return {
        "a.json": b"[" + frame + b"," + frame + b"]",
        "a.pose": pose_bytes(track),
        "a.npz": npz_bytes(track),
        "old.npz": old.getvalue(),
        "a.npy": array.getvalue(),
    }


SOUND = sound_files()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(sorted(SOUND)),
    st.integers(0, 10**6),
    st.binary(max_size=12),
    st.sampled_from(["cut", "write", "noise"]),
)
def test_any_bytes_give_a_track_or_a_reason(tmp_path, name, place, bytes_, way) -> None:
    data = SOUND[name]
    place %= len(data)
    if way == "cut":
        data = data[:place]
    elif way == "write":
        data = data[:place] + bytes_ + data[place + len(bytes_) :]
    else:
        data = bytes_ * 9
    path = tmp_path / name
    path.write_bytes(data)
    try:
        track = read_track(path)
    except ClipRejected as rejected:
        assert rejected.reason == "bad-keypoints" and rejected.detail.startswith(name)
        assert "\n" not in rejected.detail and len(rejected.detail) < 600
    else:
        assert (
            len(track) <= 1e4
            and np.isfinite(track.points_TKC).all()
            and np.isfinite(track.confidence_TK).all()
        )


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("frames.pose", struct.pack("<fHHHH", 0.2, 9, 9, 0, 1) + b"\1\0a\3\0XYC" + struct.pack("<HHH", 1, 0, 0)
         + b"\1\0p" + struct.pack("<fIH", 25, 2**32 - 1, 65535), "cut off"),
        ("limbs.pose", struct.pack("<fHHHH", 0.2, 9, 9, 0, 1) + b"\1\0a\3\0XYC" + struct.pack("<HHH", 1, 65535, 65535)
         + b"\1\0p", "cut off or damaged"),
        ("many.pose", struct.pack("<fHHHH", 0.2, 9, 9, 0, 65535) 
         + 65535 * (b"\0\0\0\0" + struct.pack("<HHH", 65535, 0, 0)),
         "more than 4096 points"),
        ("axes.pose", struct.pack("<fHHHH", 0.2, 9, 9, 0, 1) + b"\1\0a\xff\xff" + 65535 * b"X"
         + struct.pack("<HHH", 1, 0, 0) + b"\1\0p" + struct.pack("<fIH", 25, 5, 1), "cut off"),
        ("old.pose", struct.pack("<fHHHH", 0.0, 9, 9, 0, 1), "version 0"),
    ],
)  # fmt: skip
def test_counts_of_a_pose_header_are_not_believed(tmp_path, name, data, match) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ClipRejected, match=match):
        read_track(tmp_path / name)


def test_an_array_that_claims_more_than_its_file_is_not_allocated(tmp_path, monkeypatch) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999, 134), }\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (tmp_path / "a.npy").write_bytes(array)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as out:
        out.writestr("keypoints.npy", array)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("keypoints.npy", bytes(2**24))
    monkeypatch.setattr(files, "LARGEST_BYTES", 2**23)
    for name, match in (("a.npy", "cut off"), ("a.npz", "cut off"), ("bomb.npz", "above 8 MiB")):
        with pytest.raises(ClipRejected, match=match):
            read_track(tmp_path / name)


def test_pickled_objects_and_no_files_are_refused(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", keypoints=np.array([{"an": "object"}]))
    np.save(tmp_path / "a.npy", np.array([{"an": "object"}], dtype=object))
    (tmp_path / "b.pose").symlink_to("/dev/zero")
    for name in ("a.npz", "a.npy", "b.pose"):
        with pytest.raises(ClipRejected, match="bad-keypoints"):
            read_track(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_track(tmp_path / "none.pose")
