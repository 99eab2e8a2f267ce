"""The rules from labels to segments, against what FACTS and the papers say, and as properties over random
labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_scale.config import extension, load_recipe
from sage_scale.errors import RecipeError
from sage_scale.segmentation import rules
from sage_scale.segmentation.rules import (
    LETTERS,
    B,
    I,
    O,
    decode_oib,
    labels_to_segments,
    parse_letters,
    resample_labels,
    segments_to_labels,
)

labels = st.lists(st.sampled_from([O, I, B]), min_size=1, max_size=120).map(
    lambda row: np.array(row, np.int8)
)


def sage(text: str, **keywords) -> list[list[int]]:
    return labels_to_segments(parse_letters(text), "sage", **keywords).tolist()


@pytest.mark.parametrize(
    "text,segments",
    [
        ("BIIIIBIIII", [[0, 5], [5, 10]]),  # cut at every B
        ("BIIIOOBIII", [[0, 6], [6, 10]]),  # O frames stay with the segment before
        ("OOOOOBIIIOOO", [[5, 12]]),  # O only, before the first sign: dropped; 7 frames stay
        ("BIIBIIIII", [[3, 9]]),  # under 4 frames: dropped
        ("BIIIBIIIII", [[0, 4], [4, 10]]),  # 4 is enough
        ("BIIIIIIIII", [[0, 10]]),  # 10 is not above 10
        ("BIIIIIIIIII", [[0, 5], [5, 11]]),  # 11 is halved
        ("B" + "I" * 23, [[0, 6], [6, 12], [12, 18], [18, 24]]),  # halved again
        ("O" * 12, [[0, 6], [6, 12]]),  # without any sign: halved as a whole
        ("O" * 5, [[0, 5]]),
        ("IIIIIIBIIII", [[0, 6], [6, 11]]),  # begins within a sign
        ("BIBIBI", [[0, 6]]),  # nothing left: the whole
        ("B", [[0, 1]]),
        ("BIIIOOOOOOOOOOOO", [[0, 8], [8, 16]]),  # O after the last sign belongs to it
    ],
)
def test_rule_sage(text, segments) -> None:
    assert sage(text) == segments


@given(labels=labels)
def test_rule_sage_keeps_the_contract(labels) -> None:
    segments = labels_to_segments(labels)
    lengths = segments[:, 1] - segments[:, 0]
    assert segments.dtype == np.int32 and len(segments) >= 1
    assert (
        (segments[0, 0] >= 0)
        and (segments[-1, 1] <= len(labels))
        and (segments[1:, 0] >= segments[:-1, 1]).all()
    )
    assert (lengths >= 1).all() and (lengths <= 10).all()
    if len(labels) >= 4:
        assert (lengths >= 4).all()  # halves of more than 10 frames are at least 5
    for start, end in segments:  # no cut is passed over, unless the whole clip was taken
        whole = (
            segments[0, 0] == 0
            and segments[-1, 1] == len(labels)
            and not (np.diff(segments.ravel())[1::2]).any()
        )
        assert whole or B not in labels[start + 1 : end]


@given(labels=labels, factor=st.integers(2, 4))
def test_limits_follow_the_frame_rate(labels, factor) -> None:
    """At k times the rate the same signing gives the same segments, up to how an odd number of frames is
    halved."""
    faster = np.repeat(labels, factor)
    faster[1:][(faster[1:] == B) & (faster[:-1] == B)] = I
    repeated = np.concatenate([[False], (labels[1:] == B) & (labels[:-1] == B)])
    for k in np.flatnonzero(repeated):
        faster[k * factor] = B
    slow, fast = labels_to_segments(labels), labels_to_segments(faster, fps=25.0 * factor)
    # Of 21 frames one half has 10, which is short enough; of 42 both have 21 and are halved again.
    assert len(fast) >= len(slow)
    for edges, faster_edges in zip(slow.T * factor, fast.T):
        assert np.abs(edges[:, None] - faster_edges[None]).min(axis=1).max() <= 2 * factor


@given(labels=labels)
def test_rule_plain_cuts_at_every_b(labels) -> None:
    segments = labels_to_segments(labels, "plain")
    onsets = np.flatnonzero(labels == B)
    if len(onsets):
        assert segments[:, 0].tolist() == onsets.tolist()
        assert segments[1:, 0].tolist() == segments[:-1, 1].tolist()
        assert segments[-1, 1] == np.flatnonzero(labels != O)[-1] + 1
    else:
        assert len(segments) == 1


def test_unknown_rule_and_empty_clip() -> None:
    with pytest.raises(ValueError, match="sage or sage-unhalved or plain"):
        labels_to_segments(np.array([B, I]), "halves")
    with pytest.raises(ValueError, match="without frames"):
        labels_to_segments(np.zeros(0))


def one_hot(text: str) -> np.ndarray:
    return np.eye(3)[parse_letters(text)]


@pytest.mark.parametrize(
    "seen,decoded",
    [
        ("OBIIO", "OBIIO"),
        ("OBBIO", "OBIIO"),  # a repeated B becomes I
        ("OBBBO", "OBIIO"),
        ("OIIO", "OBIO"),  # a run of 2 gets a B
        ("OIO", "OIO"),  # a run of 1 does not
        ("IIIIIO", "IIIIIO"),  # 5 at the clip's start do not
        ("IIIIIIO", "BIIIIIO"),  # 6 do
        ("OBIIOIIIBI", "OBIIOBIIBI"),
        ("OOOO", "OOOO"),
    ],
)
def test_decoding_as_hands_on_does(seen, decoded) -> None:
    noisy = one_hot(seen) * 0.5 + np.random.default_rng(0).random((len(seen), 3)) * 0.4
    assert "".join(LETTERS[label] for label in decode_oib(noisy)) == decoded


@given(labels=labels)
def test_decoded_labels_are_well_formed(labels) -> None:
    decoded = decode_oib(np.eye(3)[labels])
    assert ((decoded == O) == (labels == O)).all()
    assert not ((decoded[1:] == B) & (decoded[:-1] == B)).any()
    assert np.array_equal(decode_oib(np.eye(3)[decoded]), decoded)  # nothing is left to correct


@given(
    gaps=st.lists(st.tuples(st.integers(0, 8), st.integers(1, 12)), max_size=10),
    rate=st.sampled_from([25.0, 50.0, 100.0, 29.97, 12.5]),
)
def test_resampling_loses_no_sign(gaps, rate) -> None:
    intervals, t = [], 0
    for gap, length in gaps:
        intervals.append([t + gap, t + gap + length])
        t += gap + length
    total = t + 5
    there = segments_to_labels(np.array(intervals).reshape(-1, 2), total)
    faster = round(total * 50 / rate)
    again = resample_labels(there, rate, faster, 50.0)
    starts = np.floor(np.array([start for start, _ in intervals]) * 50 / rate + 0.5 + 1e-6)
    assert sorted(set(starts.astype(int).tolist())) == np.flatnonzero(again == B).tolist()
    if rate == 25.0:
        back = resample_labels(again, 50.0, total, 25.0)
        assert np.array_equal(back, there)


def test_intervals_outside_the_clip_are_cut() -> None:
    assert segments_to_labels(np.array([[-3, 2], [4, 99], [50, 60]]), 6).tolist() == [B, I, O, O, B, I]


def test_strange_letters() -> None:
    assert parse_letters("oib").tolist() == [O, I, B]
    with pytest.raises(ValueError, match="X"):
        parse_letters("OXB")


def test_a_plug_in_adds_a_rule(tmp_path, monkeypatch) -> None:
    """A rule in one file outside the package cuts clips under its own name in a recipe."""
    code = "from sage_scale.segmentation.rules import register_rule\n"
    (tmp_path / "whole_rule.py").write_text(f"{code}register_rule('whole', lambda l, *_: [(0, len(l))])\n")
    with pytest.raises(RecipeError, match=r"segmentation\.rule"):
        load_recipe("demo", ["segmentation.rule=whole"])
    monkeypatch.setattr(rules, "RULES", dict(rules.RULES))
    monkeypatch.setattr(extension, "_choices", dict(extension._choices))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SAGE_SCALE_PLUGINS", "whole_rule")
    recipe = load_recipe("demo", ["segmentation.rule=whole"])
    assert rules.apply_rule(parse_letters("OBIIBIII"), recipe.segmentation, 25.0).tolist() == [[0, 8]]
