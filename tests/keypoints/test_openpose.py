"""OpenPose's JSON, beside pose-format's reader of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_keypoint_files import same
from test_track import some_track

from sage_scale.errors import ClipRejected
from sage_scale.keypoints.files import openpose_frames, read_track
from sage_scale.keypoints.names import BODY_25, OPENPOSE_67
from sage_scale.keypoints.openpose import OPENPOSE_137
from sage_scale.keypoints.track import KeypointTrack

PICTURE = (640.0, 360.0)


def flat(names: tuple[str, ...] = OPENPOSE_67, frames: int = 5, seed: int = 0) -> KeypointTrack:
    track = some_track(frames, names, seed)
    return track.replace(points_TKC=track.points_TKC * np.array([1, 1, 0], np.float32), has_z=False)


def write(folder: Path, track: KeypointTrack, name: str = "talk") -> Path:
    folder.mkdir(exist_ok=True)
    for file, content in openpose_frames(track, name):
        (folder / file).write_bytes(content)
    return folder


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([OPENPOSE_67, OPENPOSE_137]), st.integers(1, 4), st.integers(0, 99))
def test_what_is_written_is_read(tmp_path_factory, names, frames, seed) -> None:
    track = flat(names, frames, seed)
    folder = write(tmp_path_factory.mktemp("openpose"), track)
    same(read_track(folder, default_fps=25.0, picture=PICTURE), track)
    documents = [json.loads(file.read_bytes()) for file in sorted(folder.iterdir())]
    (folder / "all.json").write_text(json.dumps(documents))
    same(read_track(folder / "all.json", picture=PICTURE), track)
    (folder / "all.json").write_text(json.dumps({str(i): frame for i, frame in enumerate(documents)}))
    same(read_track(folder / "all.json", picture=PICTURE), track)


def test_the_peer_reads_the_same_folder(tmp_path) -> None:
    openpose = pytest.importorskip("pose_format.utils.openpose")
    track = flat(OPENPOSE_137, 6)
    folder = write(tmp_path / "json", track)
    (folder / "talk_000000000003_keypoints.json").write_text('{"version": 1.3, "people": []}')
    pose = openpose.load_openpose_directory(str(folder), fps=25, width=640, height=360)
    ours = read_track(folder, picture=PICTURE).select(OPENPOSE_137)
    assert np.array_equal(pose.body.data.filled(0)[:, 0], ours.points_TKC[..., :2])
    assert np.array_equal(pose.body.confidence[:, 0], ours.confidence_TK)


def person(width: float, confidence: float, at: float = 100.0) -> dict:
    rows = np.full((25, 3), [at, 50, confidence])
    rows[BODY_25.index("body.left_shoulder"), 0] += width
    return {"pose_keypoints_2d": rows.ravel().tolist()}


def frames_of(tmp_path, frames: list) -> KeypointTrack:
    (tmp_path / "a.json").write_text(json.dumps(frames))
    return read_track(tmp_path / "a.json", picture=PICTURE)


def test_of_several_people_the_one_with_the_widest_shoulders_is_taken(tmp_path) -> None:
    near, far, headless = person(80, 0.5, 10.0), person(30, 0.9, 300.0), person(0, 0.9, 500.0)
    headless["pose_keypoints_2d"][2 + 3 * 2] = headless["pose_keypoints_2d"][2 + 3 * 5] = 0
    track = frames_of(
        tmp_path, [{"people": people} for people in ([far, near], [near, far], [far, headless], [])]
    )
    assert track.points_TKC[:, 0, 0].tolist() == [10, 10, 300, 0]
    unsure, sure = person(0, 0.2, 1.0), person(0, 0.8, 2.0)
    for one in (unsure, sure):
        one["pose_keypoints_2d"][2 + 3 * 2] = 0  # a shoulder of each is not seen
    assert frames_of(tmp_path, [{"people": [unsure, sure]}]).points_TKC[0, 0, 0] == 2


def test_shares_are_brought_to_the_picture(tmp_path) -> None:
    """`--keypoint_scale 3` writes coordinates of 0 to 1."""
    one = person(0.25, 1, 0.5)
    one["pose_keypoints_2d"][1::3] = 25 * [0.5]
    track = frames_of(tmp_path, [{"people": [one]}])
    assert track.points_TKC[0, 0].tolist() == [320, 180, 0] and (track.width, track.height) == PICTURE


def test_a_damaged_frame_is_a_frame_without_points(tmp_path) -> None:
    track = flat()
    folder = write(tmp_path / "json", track)
    (folder / "talk_000000000001_keypoints.json").write_bytes(b'{"people": [')
    (folder / "talk_000000000002_keypoints.json").write_text(
        json.dumps({"people": [person(float("nan"), 1)]})
    )
    (folder / "talk_000000000003_keypoints.json").write_text('{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}')
    (folder / "talk_000000000004_keypoints.json").rename(folder / "talk_000000000005_keypoints.json")
    found = read_track(folder, picture=PICTURE)
    assert found.seen_TK.any(1).tolist() == [True, False, False, False, False, True]
    for file in folder.iterdir():
        file.write_bytes(b"[]")
    with pytest.raises(ClipRejected, match=r"json: talk_0+_keypoints.json: a frame without a list of people"):
        read_track(folder)


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ("{}", "no frames"),
        ("[]", "no frames"),
        ("[1]", "without a list of people"),
        ('{"people": 3}', "without a list of people"),
        ('{"people": [[]]}', "without a list of people"),
        ('{"a": {"people": []}}', "nor a list or an object"),
        ('{"999999": {"people": []}}', "frame number 999999 with 1 frames"),
        (json.dumps({"people": 101 * [{}]}), "more than 100 people"),
        ('{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', "has 3 numbers, expected 75"),
        ('{"people": [{"pose_keypoints_2d": "x"}]}', "has str numbers"),
        (99 * "[" + 99 * "]", "nested"),
        ("nothing", "not JSON"),
    ],
)  # fmt: skip
def test_documents_that_are_no_frames_are_rejected(tmp_path, document, match) -> None:
    (tmp_path / "a.json").write_text(document)
    with pytest.raises(ClipRejected, match=match) as caught:
        read_track(tmp_path / "a.json")
    assert caught.value.reason == "bad-keypoints" and caught.value.detail.startswith("a.json: ")


def test_folders_that_are_no_track_are_rejected(tmp_path) -> None:
    with pytest.raises(ClipRejected, match="no files NAME_"):
        read_track(tmp_path)
    write(tmp_path, flat(), "one"), write(tmp_path, flat(), "two")
    with pytest.raises(ClipRejected, match="several videos, such as one and two"):
        read_track(tmp_path)
