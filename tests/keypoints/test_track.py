"""A track's parts, selections and what counts as a point not seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_scale.errors import ClipRejected
from sage_scale.keypoints import names
from sage_scale.keypoints.track import KeypointTrack, track_of

SIZES = {"fps": 25.0, "width": 640.0, "height": 360.0}


def some_track(frames: int = 20, points: tuple[str, ...] = names.HOLISTIC_75, seed: int = 0) -> KeypointTrack:
    rng = np.random.default_rng(seed)
    values = rng.normal(300, 80, (frames, len(points), 3)).astype(np.float32)
    confidence = (rng.random((frames, len(points))) * (rng.random((frames, len(points))) < 0.8)).astype(
        np.float32
    )
    return track_of(points, values, confidence, **SIZES)


def test_the_names_are_those_of_the_published_layouts() -> None:
    """MediaPipe numbers shoulders 11, 12 and wrists 15, 16; OpenPose numbers them 5, 2 and 7, 4."""
    assert [len(layout) for layout in (names.BODY_33, names.BODY_25, names.LEFT_HAND)] == [33, 25, 21]
    assert len(names.HOLISTIC_75) == 75 == len(set(names.HOLISTIC_75)) and len(names.OPENPOSE_67) == 67
    places = [
        names.BODY_33.index(f"body.{side}_{joint}")
        for joint in ("shoulder", "wrist")
        for side in ("left", "right")
    ]
    assert places == [11, 12, 15, 16]
    places = [
        names.BODY_25.index(f"body.{side}_{joint}")
        for joint in ("shoulder", "wrist")
        for side in ("left", "right")
    ]
    assert places == [5, 2, 7, 4]
    assert names.LEFT_HAND[0] == "left_hand.wrist" and names.LEFT_HAND[8] == "left_hand.index_finger_tip"


def test_a_part_has_the_frames_whose_times_lie_in_it() -> None:
    track = some_track(50)
    assert len(track.part(0, 2)) == 50 and len(track.part(0, None)) == 50
    assert np.array_equal(track.part(0.4, 0.8).points_TKC, track.points_TKC[10:20])
    assert np.array_equal(track.part(0.41, 0.8).points_TKC, track.points_TKC[11:20])
    assert len(track.part(7, 9)) == 0 and len(track.part(1.9, None)) == 2 and len(track.part(-3, 0.04)) == 1


@given(st.integers(1, 200), st.floats(1, 120), st.lists(st.floats(0, 300), min_size=2, max_size=2))
def test_adjacent_parts_share_no_frame_and_lose_none(frames, fps, cuts) -> None:
    track = some_track(frames, ("body.nose",)).replace(fps=fps)
    first, second = sorted(cuts)
    parts = [track.part(0, first), track.part(first, second), track.part(second, None)]
    joined = np.concatenate([part.points_TKC for part in parts])
    assert np.array_equal(joined, track.points_TKC)


def test_selected_points_that_are_not_there_were_not_seen() -> None:
    track = some_track()
    chosen = track.select(["body.neck", "left_hand.wrist", "body.nose"])
    assert chosen.names == ("body.neck", "left_hand.wrist", "body.nose")
    assert not chosen.confidence_TK[:, 0].any() and not chosen.points_TKC[:, 0].any()
    assert np.array_equal(chosen.points_TKC[:, 2], track.points_TKC[:, 0])
    assert np.array_equal(chosen.select(track.names).confidence_TK[:, 0], track.confidence_TK[:, 0])


def test_a_number_that_is_not_finite_rejects_its_frame_alone() -> None:
    values, confidence = np.full((6, 3, 3), 5.0), np.ones((6, 3))
    values[1, 0, 0] = np.inf
    values[2, 1, 1] = np.nan  # x is known, y is not: damage
    values[3, 2, 2] = np.nan
    confidence[4, 0] = np.nan
    values[5, 0, 0] = 3e7
    track = track_of(["a", "b", "c"], values, confidence, **SIZES)
    assert track.seen_TK.all(1).tolist() == [True] + 5 * [False] and not track.seen_TK[1:].any()
    assert np.isfinite(track.points_TKC).all() and not track.points_TKC[1:].any()


def test_a_point_without_place_or_confidence_was_not_seen() -> None:
    values, confidence = np.full((3, 2, 3), 5.0), np.ones((3, 2))
    values[0, 0, :2] = np.nan
    confidence[1, 0], values[1, 0] = 0, np.inf
    confidence[2, 0] = -1
    track = track_of(["a", "b"], values, confidence, **SIZES)
    assert track.seen_TK.tolist() == 3 * [[False, True]] and not track.points_TKC[:, 0].any()


@pytest.mark.parametrize(
    ("points", "shape", "changes", "match"),
    [
        ("ab", (0, 2, 2), {}, "no frames"),
        ("", (4, 0, 2), {}, "no points"),
        ("aa", (4, 2, 2), {}, "two points are named a"),
        ("ab", (4, 2, 2), {"fps": 0.0}, "0 frames a second"),
        ("ab", (4, 2, 2), {"fps": float("nan")}, "nan frames a second"),
        ("ab", (4, 2, 2), {"width": 0.0}, "a picture of 0 x 360 pixels"),
        ("ab", (4, 2, 2), {"height": float("inf")}, "640 x inf"),
    ],
)
def test_what_is_no_track_is_rejected_with_a_reason(points, shape, changes, match) -> None:
    with pytest.raises(ClipRejected, match=match):
        track_of(list(points), np.ones(shape), np.ones(shape[:2]), **(SIZES | changes))


def test_arrays_of_another_shape_or_type_are_no_track() -> None:
    track = some_track()
    for changes in (
        {"names": track.names[1:]},
        {"points_TKC": track.points_TKC.astype(float)},
        {"names": ("a",) * 75},
    ):
        with pytest.raises(ValueError):
            track.replace(**changes)
