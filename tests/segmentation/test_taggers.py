"""Taggers and `segment_clip`: what each makes of a clip, and what it says to files that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sage_scale.config import Segmentation
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected, UsageError
from sage_scale.segmentation import segment_clip
from sage_scale.segmentation.label_files import _table
from sage_scale.segmentation.motion import fall, grey_movement, motion_labels, peaks
from sage_scale.segmentation.rules import B, I, O, parse_letters
from sage_scale.segmentation.scores import matches
from sage_scale.segmentation.tagger import tag_clip
from sage_scale.vision.decode import DecodedClip


def decoded(
    total: int = 0, *, grey: np.ndarray | None = None, clip_id: str = "sub/a clip", fps: float = 25.0
):
    if grey is None:
        grey = np.zeros((total, 48, 48), np.uint8)
    clip = Clip(id=clip_id, video="none.mp4")
    frames = np.zeros((0, 8, 8, 3), np.uint8)
    return DecodedClip(
        clip=clip, frames=frames, total_frames=len(grey), fps=fps, stride=2, source_fps=25.0, grey_THW=grey
    )


def signing(onsets: list[int], total: int, noise: float = 0.0) -> np.ndarray:
    """A patch that jumps fast before each onset and then rests a few frames: grey frames (total, 48, 48)."""
    rng = np.random.default_rng(3)
    goals = rng.uniform(4, 34, (len(onsets) + 1, 2))
    frames = np.full((total, 48, 48), 90.0)
    for t in range(total):
        done = sum(t >= onset for onset in onsets)
        place = goals[done]
        if done < len(onsets) and onsets[done] - t < 4:
            share = 1 - (onsets[done] - t) / 4
            place = goals[done] * (1 - share) + goals[done + 1] * share
        top, left = place.astype(int)
        frames[t, top : top + 8, left : left + 8] = 220
    return (frames + rng.normal(0, noise, frames.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_motion_finds_where_the_hand_arrives(noise) -> None:
    onsets = [12, 21, 33, 41, 55, 66]
    labels = motion_labels(grey_movement(signing(onsets, 80, noise), 25.0), 25.0)
    found = np.flatnonzero(labels == B)[1:]
    arrivals = onsets[:-1]  # after the last one the hand never moves again, which is rest
    assert matches(found, arrivals, 1) == len(arrivals) and len(found) <= len(onsets)
    assert (labels[69:] == O).all()


def test_rests_at_the_ends_are_outside() -> None:
    labels = motion_labels(grey_movement(signing([30, 40, 50], 90), 25.0), 25.0)
    assert (labels[:22] == O).all() and (labels[58:] == O).all() and (labels[30:50] != O).all()


def test_the_frame_rate_changes_labels_little() -> None:
    """The same movement filmed at 50 frames a second has its onsets at the same seconds."""
    onsets = [12, 21, 33, 41, 55, 66]
    slow = signing(onsets, 80)
    fast = np.repeat(slow, 2, axis=0)
    halves = (slow[:-1].astype(int) + slow[1:]) // 2
    fast[1:-1:2] = halves
    at_25 = np.flatnonzero(motion_labels(grey_movement(slow, 25.0), 25.0) == B)
    at_50 = np.flatnonzero(motion_labels(grey_movement(fast, 50.0), 50.0) == B)
    assert matches(at_25 * 2, at_50, 3) >= len(onsets)


def test_a_still_clip_has_no_sign_and_still_has_segments() -> None:
    still = decoded(40)
    assert not tag_clip(still, Segmentation(), 25.0).labels_T.any()
    assert segment_clip(still, Segmentation()).tolist() == [[0, 10], [10, 20], [20, 30], [30, 40]]
    assert segment_clip(decoded(1), Segmentation()).tolist() == [[0, 1]]


def test_fall_is_highest_where_movement_ends() -> None:
    speed = np.zeros(60)
    speed[20:30] = 5.0
    assert abs(int(fall(speed, 25.0).argmax()) - 30) <= 1
    assert not fall(np.ones(20), 25.0).any()


def test_peaks_stand_apart_and_the_higher_stays() -> None:
    values = np.array([0, 3, 0, 5, 0, 0, 0, 1, 0, 2.0, 0])
    assert peaks(values, 1.5, 1).tolist() == [1, 3, 9]
    assert peaks(values, 0.5, 3).tolist() == [3, 9]


@pytest.mark.parametrize("total", [1, 3, 7, 12, 100, 117])
def test_uniform_segments_are_equal_and_cover_the_clip(total) -> None:
    segments = segment_clip(decoded(total), Segmentation(tagger="uniform"))
    lengths = segments[:, 1] - segments[:, 0]
    assert segments[0, 0] == 0 and segments[-1, 1] == total and (segments[1:, 0] == segments[:-1, 1]).all()
    assert lengths.max() - lengths.min() <= 1 and (total <= 12 or abs(lengths.mean() - 8) <= 1.5)


TEXT = "OOBIIIIBIIIIIOO"
SIGNS = [[2, 7], [7, 13]]
EXPECTED = [[2, 7], [7, 15]]


def test_every_form_of_labels_gives_the_same_segments(tmp_path) -> None:
    clip = decoded(15)
    numbers = parse_letters(TEXT)

    def segments(place: Path) -> list[list[int]]:
        return segment_clip(clip, Segmentation(tagger="precomputed", labels=str(place))).tolist()

    for entry in (TEXT, numbers.tolist(), SIGNS, {"labels": TEXT}, {"segments": SIGNS, "fps": 25}):
        (tmp_path / "all.json").write_text(json.dumps({"sub/a clip": entry, "other": "B"}))
        _table.cache_clear()  # files of one size within one tick of the clock
        assert segments(tmp_path / "all.json") == EXPECTED
    doubled = {"segments": (np.array(SIGNS) * 2).tolist(), "fps": 50}
    (tmp_path / "fifty.json").write_text(json.dumps({"sub/a clip": doubled}))
    assert segments(tmp_path / "fifty.json") == EXPECTED
    (tmp_path / "letters.csv").write_text(f"id,labels\nsub/a clip,{TEXT}\n")
    assert segments(tmp_path / "letters.csv") == EXPECTED
    (tmp_path / "signs.csv").write_text("id,start,end,gloss\nsub/a clip,2,7,A\nsub/a clip,7,13,B\nx,0,3,C\n")
    assert segments(tmp_path / "signs.csv") == EXPECTED
    for n, array in enumerate((numbers, np.eye(3)[numbers], np.array(SIGNS))):
        folder = tmp_path / f"folder{n}"
        folder.mkdir()
        np.save(folder / ("sub__a clip.npy" if n else f"{clip.clip.key}.npy"), array)
        assert segments(folder) == EXPECTED


def test_labels_that_do_not_fit(tmp_path) -> None:
    def fails(content: str, kind: type[Exception], message: str, name: str) -> None:
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(kind, match=message) as caught:
            segment_clip(decoded(15), Segmentation(tagger="precomputed", labels=str(path)))
        assert "\n" not in str(caught.value)

    fails('{"other": "BI"}', ClipRejected, "no-labels", "a.json")
    fails('{"sub/a clip": "BXI"}', ClipRejected, "bad-labels.*only O, I and B", "b.json")
    fails(json.dumps({"sub/a clip": "B" * 100}), ClipRejected, "bad-labels.*labels last 4.00 s", "c.json")
    fails('{"sub/a clip": [0, 1, 7]}', ClipRejected, "bad-labels", "d.json")
    fails('{"sub/a clip": {"labels": "BI", "fps": 0}}', ClipRejected, "bad-labels", "e.json")
    fails('{"sub/a clip": {"fps": 25}}', ClipRejected, "bad-labels", "f.json")
    fails("[1, 2]", UsageError, "mapping", "g.json")
    fails("{", UsageError, "not a label file", "h.json")
    fails("name,start\n", UsageError, "columns", "i.csv")
    with pytest.raises(UsageError, match=r"segmentation[.]labels"):
        segment_clip(decoded(15), Segmentation(tagger="precomputed"))
    with pytest.raises(UsageError, match="there is no"):
        segment_clip(decoded(15), Segmentation(tagger="precomputed", labels=str(tmp_path / "none")))


def test_labels_are_the_three_letters() -> None:
    assert (O, I, B) == (0, 1, 2)
