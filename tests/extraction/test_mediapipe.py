"""MediaPipe Holistic itself, in the environment that `keypoints --setup` makes, on three real signing videos."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import av
import numpy as np
import pytest

from sage_scale.cli import main
from sage_scale.errors import SageError
from sage_scale.extraction.extract import extract
from sage_scale.extraction.mediapipe import MediapipeHolistic
from sage_scale.extraction.mediapipe_environment import set_up
from sage_scale.keypoints.files import pose_bytes, read_track
from sage_scale.keypoints.names import HOLISTIC_75

pytestmark = [pytest.mark.extras, pytest.mark.timeout(900)]
VIDEOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "videos"
RATES = {"bsl_demo_video": 25.0, "human_signer_480": 30.0, "pose_test_video": 29.9167}


@pytest.fixture(scope="module")
def mediapipe(request: pytest.FixtureRequest) -> None:
    """The environment, in pytest's cache."""
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setenv("XDG_DATA_HOME", str(request.config.cache.mkdir("data")))
    try:
        set_up()
    except SageError as error:
        pytest.skip(f"MediaPipe cannot be had: {error}")


@pytest.fixture(scope="module")
def poses(mediapipe, tmp_path_factory) -> Path:
    """The output of the verb on the three videos."""
    if not VIDEOS.is_dir():
        pytest.skip(f"no {VIDEOS}: three real videos beside the checkout")
    out = tmp_path_factory.mktemp("poses")
    assert main.run(["keypoints", "--root", str(VIDEOS), "--out", str(out), "precompute.actors=1"]) == 0
    return out


@pytest.mark.parametrize("name", RATES)
def test_real_videos_become_tracks_of_a_signer_who_faces_the_camera(poses, name):
    found = read_track(poses / f"{name}.pose")
    with av.open(str(VIDEOS / f"{name}.mp4")) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert found.names == HOLISTIC_75 and found.has_z and len(found) == len(pictures)
    assert (found.height, found.width) == pictures[0].shape[:2]
    assert found.fps == pytest.approx(RATES[name], abs=1e-3)
    nose, left, right, wrist = (
        found.select([point]).points_TKC[:, 0]
        for point in ("body.nose", "body.left_shoulder", "body.right_shoulder", "left_hand.wrist")
    )
    seen = found.select(["body.nose"]).confidence_TK[:, 0] > 0.5
    assert seen.mean() > 0.95
    assert (left[seen, 0] > right[seen, 0]).all()  # the signer's left is the picture's right
    assert (nose[seen, 1] < (left[seen, 1] + right[seen, 1]) / 2).all()
    hand = found.select(["left_hand.wrist"]).confidence_TK[:, 0]
    assert set(np.unique(hand)) <= {0.0, 1.0} and not wrist[hand == 0].any()


def test_hands_are_found_where_the_wrists_of_the_body_are(poses):
    found = read_track(poses / "bsl_demo_video.pose")
    for side in ("left", "right"):
        seen = found.select([f"{side}_hand.wrist"]).confidence_TK[:, 0] > 0
        assert seen.mean() > 0.8
        hand, body = (
            found.select([f"{side}_hand.wrist", f"body.{side}_wrist"]).points_TKC[seen, :, :2].swapaxes(0, 1)
        )
        assert np.median(np.linalg.norm(hand - body, axis=1)) < 0.05 * found.width


def test_a_new_process_and_plain_decoding_give_the_same_bytes(poses):
    """Nothing carries over between videos, and a video without turns and odd pixels is seen as it is stored."""
    extractor = MediapipeHolistic()
    try:
        again = pose_bytes(extract(VIDEOS / "pose_test_video.mp4", extractor))
        assert again == (poses / "pose_test_video.pose").read_bytes()
        with av.open(str(VIDEOS / "bsl_demo_video.mp4")) as container:
            pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:12]
        points = np.stack([points for points, _ in extractor(iter(pictures))])
    finally:
        extractor.close()
    found = read_track(poses / "bsl_demo_video.pose")
    assert np.abs(points[..., :2] - found.points_TKC[:12, :, :2]).max() < 0.02 * found.width


def test_the_settings_name_version_and_models(poses):
    stored = json.loads((poses / "_settings.json").read_text())
    assert stored["settings"] == {"extractor": "mediapipe", "complexity": 1, "source_fps": 25.0}
    versions = stored["versions"]
    assert versions.pop("mediapipe") == "0.10.21" and "pose_landmark_full.tflite" in versions
    assert all(len(digest) == len(hashlib.sha256().hexdigest()) for digest in versions.values())


def test_pose_formats_own_reader_opens_the_files(poses):
    Pose = pytest.importorskip("pose_format", reason="the extra `pose` is not installed").Pose
    pose = Pose.read((poses / "human_signer_480.pose").read_bytes())
    assert [len(component.points) for component in pose.header.components] == [33, 21, 21]
    assert pose.body.data.shape[1:] == (1, 75, 3)


def test_black_pictures_have_nobody(mediapipe):
    extractor = MediapipeHolistic()
    answers = list(extractor(iter(np.zeros((3, 120, 160, 3), np.uint8))))
    extractor.close()
    assert len(answers) == 3 and not any(confidence.any() for _, confidence in answers)
