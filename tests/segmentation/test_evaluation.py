"""`segment evaluate`: one annotation in many forms scores alike, held-out choices, and what is said of bad input."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from sage_scale.cli.main import run
from sage_scale.config import Segmentation, Vision
from sage_scale.corpora.videos import whole_videos
from sage_scale.errors import UsageError
from sage_scale.keypoints.arrays import npz_bytes
from sage_scale.keypoints.track import HOLISTIC_75, track_of
from sage_scale.segmentation.elan import eaf_bytes
from sage_scale.segmentation.evaluation import (
    WHOLE,
    Row,
    choose_on_others,
    evaluate,
    without_media,
)
from sage_scale.segmentation.intervals import Interval, SignIntervals, table_column
from sage_scale.segmentation.rules import label_segments, segments_to_labels
from sage_scale.segmentation.scores import COUNTS, scores

SIGNS = {
    "a": [(0.4, 0.8), (0.8, 1.24), (2.0, 2.6)],
    "deep/b": [(0.2, 0.52), (1.0, 1.4)],
    "c": [(0.12, 0.36), (0.6, 1.0), (1.6, 2.4)],
}
"""Clip -> signs in seconds, on whole frames at 25 a second."""
GROUPS = {"a": "first", "deep/b": "second", "c": "second"}


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """Keypoint files of three seconds each."""
    chance = np.random.default_rng(0)
    for name in SIGNS:
        points = chance.normal([640, 360, 0], 50, (75, 75, 3))
        path = tmp_path / "media" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        track = track_of(HOLISTIC_75, points, np.ones((75, 75), np.float32), fps=25.0, width=1280, height=720)
        path.write_bytes(npz_bytes(track))
    return tmp_path / "media"


def frames(name: str) -> np.ndarray:
    return np.rint(np.array(SIGNS[name]) * 25).astype(int)


def written(kind: str, folder: Path) -> Path:
    """The annotation in one of the forms that are read."""
    intervals = {
        name: SignIntervals(signs=tuple(Interval(*sign) for sign in signs)) for name, signs in SIGNS.items()
    }
    folder.mkdir()
    if kind == "eaf":
        for name, signs in intervals.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / f"{name}.eaf").write_bytes(eaf_bytes(signs))
    elif kind == "npy":
        for name in SIGNS:
            np.save(folder / f"{name.replace('/', '__')}.npy", segments_to_labels(frames(name), 75))
    elif kind == "jsonl":
        in_ms = {
            name: [{"start_ms": 1000 * a, "end_ms": 1000 * b} for a, b in signs]
            for name, signs in SIGNS.items()
        }
        rows = [{"id": name, "recording": GROUPS[name], "signs": signs} for name, signs in in_ms.items()]
        (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        lines = [f"{name},{a},{b},{GROUPS[name]}" for name, signs in SIGNS.items() for a, b in signs]
        (folder / "t.csv").write_text("\n".join(["id,start_s,end_s,recording", *lines]))
    elif kind == "labels":
        letters = {name: "".join("OIB"[n] for n in segments_to_labels(frames(name), 75)) for name in SIGNS}
        (folder / "t.json").write_text(json.dumps(letters))
    return next(folder.glob("t.*"), folder)


def evaluated(media: Path, gold: Path, *rows: Row, **more):
    return evaluate(whole_videos(media).clips, str(gold), rows, Vision(), fps=25.0, **more)


KINDS = ("eaf", "npy", "jsonl", "csv", "labels")


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_annotation_scores_every_form_of_itself_perfectly(kind, media, tmp_path):
    gold = written(kind, tmp_path / "gold")
    rows = [
        Row(
            name=other,
            segmentation=Segmentation(tagger="precomputed", labels=str(written(other, tmp_path / other))),
        )
        for other in KINDS
    ]
    found = evaluated(media, gold, *rows)
    assert len(found.clips) == 3 and found.signs == 8 and found.frames == 225 and not found.left_out
    for row in found.table():
        if row["name"] != WHOLE:
            value = {name: score["value"] for name, score in row["scores"].items()}
            perfect = ("frame_macro_f1", "segment_f1_75", "onset_f1_1", "ratio")
            assert [value[name] for name in perfect] == [1] * 4 and value["boundary_error_ms"] == 0


def test_a_rule_is_scored_where_it_is_asked_for(media, tmp_path):
    labels = {"tagger": "precomputed", "labels": str(written("labels", tmp_path / "labels"))}
    gold = written("csv", tmp_path / "gold")
    before = Row(name="before", segmentation=Segmentation(**labels))
    after = Row(name="after", segmentation=Segmentation(**labels, max_frames=10), after_rule=True)
    counts = evaluated(media, gold, before, after).counts
    segments = {name: counts[name][:, COUNTS.index("predicted_segments")].sum() for name in counts}
    # The rule halves what is longer than ten frames, and its pieces reach over the rests between signs.
    assert segments["before"] == 8 < segments["after"] and segments[WHOLE] == 3


def test_signs_of_labels_begin_at_b_or_after_o():
    labels_T = np.array([1, 1, 0, 2, 1, 2, 2, 0, 0, 1])
    assert label_segments(labels_T).tolist() == [[0, 2], [3, 5], [5, 6], [6, 7], [9, 10]]
    assert label_segments(np.zeros(4, int)).shape == label_segments(np.zeros(0, int)).shape == (0, 2)
    for signs in map(frames, SIGNS):
        assert label_segments(segments_to_labels(signs, 75)).tolist() == signs.tolist()


def test_the_choice_for_a_group_does_not_see_it():
    """Beside loops over groups and points, and with a group exchanged for noise its own choice stays."""
    chance = np.random.default_rng(5)
    counts = chance.integers(1, 50, (12, 6, len(COUNTS))).astype(float)
    grid = list(itertools.product((0.3, 0.4), (0.1, 0.2, 0.3)))
    groups = ["x", "y", "z"] * 4
    taken, chosen = choose_on_others(counts, grid, groups, 25.0)
    for group in "xyz":
        best = max(
            range(6),
            key=lambda point: sum(
                float(
                    scores(sum(counts[c, point] for c in range(12) if groups[c] != group), 25.0)[
                        f"onset_f1_{n}"
                    ]
                )
                for n in (1, 2, 3)
            ),
        )
        assert chosen[group] == grid[best]
        assert all((taken[c] == counts[c, best]).all() for c in range(12) if groups[c] == group)
    counts[::3] = chance.integers(1, 50, counts[::3].shape)
    assert choose_on_others(counts, grid, groups, 25.0)[1]["x"] == chosen["x"]


def test_clips_that_cannot_be_scored_are_named(media, tmp_path):
    gold = written("jsonl", tmp_path / "gold")
    (media / "c.npz").write_bytes(b"no archive")
    (media / "d.npz").write_bytes((media / "a.npz").read_bytes())
    found = evaluated(media, gold, Row(name="uniform", segmentation=Segmentation(tagger="uniform")))
    assert set(found.clips) == {"a", "deep/b"}
    assert {row.id: row.reason for row in found.left_out} == {"c": "bad-keypoints", "d": "no-labels"}
    (media / "a.npz").unlink()
    assert without_media(gold, whole_videos(media).clips) == ["a"]
    (tmp_path / "predicted").mkdir()
    for name in ("c", "gone", "_settings"):  # as `segment predict` writes them
        (tmp_path / "predicted" / f"{name}.json").write_text('{"signs": []}')
    assert without_media(tmp_path / "predicted", whole_videos(media).clips) == ["gone"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no clip can be scored; the first: 'c': no-labels"):
        evaluated(media, tmp_path / "empty", Row(name="motion", segmentation=Segmentation()))


def test_columns_of_tables(tmp_path):
    for kind in ("jsonl", "csv"):
        table = written(kind, tmp_path / kind)
        assert table_column(table, "recording", "--group") == GROUPS
        with pytest.raises(UsageError, match="--group signer"):
            table_column(table, "signer", "--group")


def said(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    code = run(["segment", "evaluate", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_verb_prints_and_writes_its_table(media, tmp_path, capsys):
    gold = written("jsonl", tmp_path / "gold")
    labels = written("eaf", tmp_path / "labels")
    code, out, _ = said(
        capsys, "--gold", gold, "--root", media, "--group", "recording", "--out", tmp_path / "made" / "table",
        "--row", f"mine: segmentation.tagger=precomputed 'segmentation.labels={labels}'",
        "--row", "equal lengths: segmentation.tagger=uniform",
    )  # fmt: skip
    assert code == 0 and "equal lengths" in out and "1.000" in out
    document = json.loads((tmp_path / "made" / "table.json").read_text())
    assert (document["clips"], document["signs"]) == (3, 8)
    rows = {(row["name"], row["group"]): row for row in document["rows"]}
    assert len(rows) == 9  # three settings, over all clips and in two groups
    assert rows["mine", "second"]["clips"] == 2 and rows["mine", ""]["scores"]["ratio"]["interval"] == [1, 1]
    markdown = (tmp_path / "made" / "table.md").read_text()
    assert "| mine | 1.000 [1.000, 1.000] |" in markdown and "| mine | second | 2 |" in markdown


def test_signs_of_the_annotation_that_cannot_be_read_are_named(media, tmp_path, capsys):
    rows = ["a,0.2,0.6", "a,0.8,soon", "a,2,1", "a,2.8,5", "a,900,901", "elsewhere,0,1"]
    (tmp_path / "gold.csv").write_text("id,start_s,end_s\n" + "\n".join(rows) + "\n")
    code, _, err = said(
        capsys, "--gold", tmp_path / "gold.csv", "--root", media, "--out", tmp_path / "table",
        "segmentation.tagger=uniform",
    )  # fmt: skip
    assert code == 0 and "without a file" in err and "the first: 'elsewhere'" in err
    named = [line for line in err.splitlines() if line.startswith("annotation: 'a': ")]
    assert len(named) == 4
    assert "line 3" in named[0] and "line 4" in named[1]
    assert "5.00 s: cut at the end (3.00 s)" in named[2] and "901.00 s: left out" in named[3]
    assert len(json.loads((tmp_path / "table.json").read_text())["unread"]) == 4
    assert "left out or cut: 4" in (tmp_path / "table.md").read_text()


def test_only_signs_within_the_pictures_are_scored(media, tmp_path):
    """A tagger that marks what there is of each sign is perfect, however far the annotation goes on."""
    for name, ends in (("gold", (3.4, 9)), ("tagged", (3.0, 3.0))):
        rows = [
            f"a,0.4,0.8,{name}",
            f"a,2.4,{ends[0]},{name}",
            *([f"a,8,{ends[1]},{name}"] * (name == "gold")),
        ]
        (tmp_path / f"{name}.csv").write_text("id,start_s,end_s,text\n" + "\n".join(rows) + "\n")
    mine = Segmentation(tagger="precomputed", labels=str(tmp_path / "tagged.csv"))
    found = evaluate(
        [clip for clip in whole_videos(media).clips if clip.id == "a"], str(tmp_path / "gold.csv"),
        [Row(name="mine", segmentation=mine)], Vision(), fps=25.0,
    )  # fmt: skip
    values = scores(found.counts["mine"].sum(0), 25.0)
    assert found.signs == 2 and values["frame_macro_f1"] == values["segment_f1_75"] == values["ratio"] == 1
    assert values["boundary_error_ms"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--row", "no colon"], "expected 'NAME: KEY=VALUE"),
        (["--row", "a: x=1", "--row", "a: x=2"], "x"),
        (
            ["--row", "a: segmentation.tagger=uniform", "--row", "a: segmentation.tagger=motion"],
            "there twice",
        ),
        (["--row", "a: segmentation.tagger=magic"], "segmentation.tagger"),
        (["--choose-on-others"], "--choose-on-others needs"),
        (["--group", "signer"], "--group signer"),
        (["--gold", "/nowhere"], "no such file"),
        (["--root", "/nowhere"], "there is no /nowhere"),
        (["segmentation.tagger=precomputed"], "segmentation.labels"),
    ],
)
def test_wrong_usage_is_one_line(changes, words, media, tmp_path, capsys):
    gold = written("jsonl", tmp_path / "gold")
    code, out, err = said(capsys, "--gold", gold, "--root", media, *changes)
    assert code == 2 and not out and words in err.splitlines()[-1], err
