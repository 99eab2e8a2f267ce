"""Cleaning: each function against a known motion, another way to compute it, or a peer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_track import SIZES, some_track

from sage_scale.keypoints import names
from sage_scale.keypoints.cleaning import (
    completed,
    confident,
    interpolated,
    mirrored,
    normalised,
    opposite,
    resampled,
    smoothed,
)
from sage_scale.keypoints.files import pose_bytes
from sage_scale.keypoints.track import KeypointTrack, track_of


def moving(frames: int = 40, fps: float = 25.0, seed: int = 0) -> KeypointTrack:
    """Three points at constant speeds of -20 to 20 pixels a second."""
    speed = np.random.default_rng(seed).uniform(-20, 20, (1, 3, 3))
    values = 200 + speed * np.arange(frames)[:, None, None] / fps
    return track_of("abc", values, np.ones((frames, 3)), **(SIZES | {"fps": fps}))


def without(track: KeypointTrack, frames: object, point: int = 0) -> KeypointTrack:
    points, confidence = track.points_TKC.copy(), track.confidence_TK.copy()
    points[frames, point], confidence[frames, point] = 0, 0
    return track.replace(points_TKC=points, confidence_TK=confidence)


def test_gaps_up_to_the_longest_are_filled_along_the_line() -> None:
    whole = moving()
    track = without(whole, [0, 5, 6, 7, 20, 21, 22, 23, 39])
    filled = interpolated(track, 3 / 25)
    assert np.flatnonzero(~filled.seen_TK[:, 0]).tolist() == [0, 20, 21, 22, 23, 39]
    seen = filled.seen_TK
    assert np.abs(filled.points_TKC - whole.points_TKC)[seen].max() < 1e-3
    assert np.array_equal(interpolated(track, 0).points_TKC, track.points_TKC)
    assert interpolated(track, 1).seen_TK[1:39].all()


@given(st.integers(1, 120), st.floats(5, 120), st.floats(5, 120), st.integers(0, 9))
def test_another_frame_rate_keeps_times_and_lines(frames, fps, other, seed) -> None:
    track = moving(frames, fps, seed)
    result = resampled(track, other)
    assert result.fps == other and result.seen_TK.all()
    assert abs(len(result) / other - frames / fps) <= 1 / other
    speed = (track.points_TKC[-1] - track.points_TKC[0]) / max(1, frames - 1) * fps
    times = np.minimum(np.arange(len(result)) / other, (frames - 1) / fps)
    assert np.abs(result.points_TKC - (track.points_TKC[0] + speed * times[:, None, None])).max() < 1e-2


def test_half_the_frame_rate_is_every_second_frame_and_missing_stays_missing() -> None:
    track = some_track(31)
    half = resampled(track, 12.5)
    assert np.array_equal(half.points_TKC, track.points_TKC[::2])
    assert np.array_equal(half.confidence_TK, track.confidence_TK[::2])
    twice = resampled(track, 50.0)
    assert np.array_equal(twice.points_TKC[::2], track.points_TKC) and len(twice) == 62
    assert np.array_equal(twice.seen_TK[1:61:2], track.seen_TK[:-1] & track.seen_TK[1:])


def test_smoothing_keeps_constant_speed_and_takes_jitter() -> None:
    track = without(moving(), slice(10, 15))
    same = smoothed(track, 0.08)
    assert np.abs(same.points_TKC - track.points_TKC).max() < 1e-3
    assert np.array_equal(same.confidence_TK, track.confidence_TK)
    noise = np.random.default_rng(0).normal(0, 1, track.points_TKC.shape).astype(np.float32)
    rough = moving(400)
    noise = np.random.default_rng(0).normal(0, 1, rough.points_TKC.shape).astype(np.float32)
    left = smoothed(rough.replace(points_TKC=rough.points_TKC + noise), 0.08).points_TKC - rough.points_TKC
    # a Gaussian of 2 frames leaves 1 / (2 sqrt(pi) 2) of white noise's variance
    assert left[20:-20].var() == pytest.approx(1 / (4 * np.sqrt(np.pi)), rel=0.15)


def test_smoothing_is_the_weighted_line_of_least_squares() -> None:
    track = some_track(12, ("body.nose", "body.neck"), seed=3)
    sigma_s, place = 0.06, 5
    step = np.arange(12) - place
    got = smoothed(track, sigma_s).points_TKC[place]
    for point in range(2):
        seen = track.seen_TK[:, point] & (np.abs(step) <= np.ceil(3 * sigma_s * 25))
        if not track.seen_TK[place, point]:
            continue
        root = np.exp(-0.25 * (step[seen] / (sigma_s * 25)) ** 2)
        line = np.polynomial.polynomial.polyfit(step[seen], track.points_TKC[seen, point], 1, w=root)
        assert np.abs(got[point] - line[0]).max() < 1e-3


@given(st.integers(0, 50), st.floats(0.2, 5), st.floats(-500, 500))
def test_normalisation_takes_place_and_size_away(seed, scale, shift) -> None:
    track = some_track(8, names.HOLISTIC_75, seed)
    moved = track.replace(
        points_TKC=np.where(track.seen_TK[..., None], track.points_TKC * scale + shift, 0).astype(np.float32)
    )
    one, other = normalised(track), normalised(moved)
    if one.seen_TK.any():
        assert np.abs(one.points_TKC - other.points_TKC).max() < 1e-2
        both = track.select(["body.left_shoulder", "body.right_shoulder"]).seen_TK.all(1)
        shoulders = one.select(["body.left_shoulder", "body.right_shoulder"]).points_TKC[both].astype(float)
        assert np.linalg.norm(shoulders[:, 0] - shoulders[:, 1], axis=1).mean() == pytest.approx(1, abs=1e-3)
        assert np.abs(shoulders.mean((0, 1))).max() < 1e-3


def test_normalisation_is_the_peers() -> None:
    pose_format = pytest.importorskip("pose_format")
    track = some_track(20)
    pose = pose_format.Pose.read(pose_bytes(track))
    info = pose.header.normalization_info(
        ("POSE_LANDMARKS", "RIGHT_SHOULDER"), ("POSE_LANDMARKS", "LEFT_SHOULDER")
    )
    assert np.abs(pose.normalize(info).body.data.filled(0)[:, 0] - normalised(track).points_TKC).max() < 1e-4


def test_without_shoulders_nothing_is_seen_after_normalisation() -> None:
    track = without(some_track(5, names.BODY_33), slice(None), names.BODY_33.index("body.left_shoulder"))
    assert not normalised(track).seen_TK.any() and not normalised(track).points_TKC.any()
    assert not normalised(moving()).seen_TK.any()


@pytest.mark.parametrize("layout", [names.HOLISTIC_75, names.OPENPOSE_67 + names.FACE_70, names.FACE_MESH])
def test_a_mirror_twice_is_the_track(layout) -> None:
    track = some_track(6, layout)
    once = mirrored(track)
    twice = mirrored(once)
    assert once.names == track.names and np.array_equal(once.seen_TK.sum(1), track.seen_TK.sum(1))
    assert np.abs(twice.points_TKC - track.points_TKC).max() < 1e-3
    assert np.array_equal(twice.confidence_TK, track.confidence_TK)
    if "right_hand.wrist" in layout:
        left, right = layout.index("left_hand.wrist"), layout.index("right_hand.wrist")
        seen = track.seen_TK[:, left]
        assert np.allclose(once.points_TKC[seen, right, 0], 640 - track.points_TKC[seen, left, 0])


def test_opposites_are_those_of_the_published_meshes() -> None:
    """MediaPipe's outer eye corners are 33 and 263, its mouth corners 61 and 291; nose tip 1, chin 152."""
    assert [opposite(f"face.{point}") for point in (33, 61, 1, 152)] == [
        "face.263",
        "face.291",
        "face.1",
        "face.152",
    ]
    assert [opposite(f"face68.{point}") for point in (0, 36, 48, 30)] == [
        "face68.16",
        "face68.45",
        "face68.54",
        "face68.30",
    ]
    assert opposite("body.mouth_left") == "body.mouth_right" and opposite("body.nose") == "body.nose"
    every = names.FACE_MESH + names.FACE_70
    assert sorted(map(opposite, every)) == sorted(every)


def test_one_hand_alone_changes_its_name() -> None:
    assert mirrored(some_track(2, names.RIGHT_HAND)).names == names.LEFT_HAND


def test_points_are_completed_from_others() -> None:
    track = some_track(30, names.HOLISTIC_75)
    whole = completed(track, names.BODY_25)
    left, right = (track.names.index(f"body.{side}_shoulder") for side in ("left", "right"))
    seen = track.seen_TK[:, left] & track.seen_TK[:, right]
    assert np.array_equal(whole.seen_TK[:, 1], seen)
    assert np.allclose(
        whole.points_TKC[seen, 1], (track.points_TKC[seen, left] + track.points_TKC[seen, right]) / 2
    )
    assert np.array_equal(whole.points_TKC[:, 0], track.points_TKC[:, 0])
    assert not whole.seen_TK[:, names.BODY_25.index("body.left_small_toe")].any()
    back = completed(whole, names.BODY_33)
    assert np.array_equal(back.points_TKC[:, left], track.points_TKC[:, left])


def test_unsure_points_are_dropped() -> None:
    track = some_track()
    kept = confident(track, 0.5)
    assert (
        np.array_equal(kept.seen_TK, track.confidence_TK >= 0.5) and not kept.points_TKC[~kept.seen_TK].any()
    )


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_empty_and_short_tracks_have_defined_results(frames) -> None:
    track = some_track(5).part(0, frames / 25)
    assert len(track) == frames
    for result in (
        interpolated(track, 1),
        smoothed(track, 0.1),
        normalised(track),
        mirrored(track),
        confident(track, 1),
    ):
        assert len(result) == frames and np.isfinite(result.points_TKC).all()
    assert len(resampled(track, 120)) == round(frames * 4.8 + 0.3 * (frames > 0))
