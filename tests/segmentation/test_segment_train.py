"""`sage-scale segment train`: from tables, ELAN's files and the synthetic corpus, with its messages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sage_scale.cli import main as command_line
from sage_scale.corpora.synthetic.random_signing import random_signing
from sage_scale.keypoints.arrays import npz_bytes
from sage_scale.keypoints.pose_file import pose_bytes
from sage_scale.segmentation.elan import eaf_bytes
from sage_scale.segmentation.intervals import Interval, SignIntervals
from sage_scale.segmentation.tagger import open_tagger
from sage_scale.segmentation.training_data import read_examples

SHORT = ["--passes", "1", "--networks", "2", "--start", "none"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of two recordings: `table.jsonl`, `eaf/`, and keypoints in two formats."""
    root = tmp_path_factory.mktemp("clips")
    (root / "eaf").mkdir()
    (root / "eaf" / "_settings.json").write_text("{}")  # as `segment predict` leaves it beside its files
    (root / "points").mkdir()
    rng, rows = np.random.default_rng(5), []
    for number in range(6):
        track, signs = random_signing(rng)
        name = f"clip-{number}"
        if number % 2:
            (root / "points" / f"{name}.pose").write_bytes(pose_bytes(track))
        else:
            (root / "points" / f"{name}.npz").write_bytes(npz_bytes(track))
        items = [{"start_ms": 1000 * a, "end_ms": 1000 * b} for a, b in signs.tolist()]
        rows.append({"id": name, "recording": f"r{number % 2}", "signs": items})
        intervals = SignIntervals(signs=tuple(Interval(a, b) for a, b in signs.tolist()))
        (root / "eaf" / f"{name}.eaf").write_bytes(eaf_bytes(intervals, video=f"{name}.mp4"))
    (root / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def run(*words: object) -> int:
    return command_line.run(["segment", "train", *map(str, words)])


def test_a_table_with_folds_gives_a_model_and_the_scores_of_each_fold(
    clips: Path, tmp_path: Path, capsys
) -> None:
    data = ["--annotation", clips / "table.jsonl", "--keypoints", clips / "points"]
    assert run(*data, "--folds", "recording", "--out", tmp_path / "new", *SHORT) == 0
    said = capsys.readouterr().out
    assert "r0: frame_macro_f1" in said and "mean of the folds: frame_macro_f1" in said
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["data"]["clips"] == 6 and config["data"]["groups"] == 2 and config["started_from"] == "none"
    folds = config["folds"]
    assert folds["r0"]["clips"] == folds["r1"]["clips"] == 3
    for name, mean in folds["mean"].items():
        each = [folds[group][name]["value"] for group in ("r0", "r1")]
        assert mean == pytest.approx(np.mean(each), abs=1e-4)
    again = tmp_path / "again"
    assert run(*data, "--out", again, *SHORT) == 0
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "new" / "model.safetensors").read_bytes()
    assert run(*data, "--out", tmp_path / "further", *SHORT[:4], "--start", again) == 0
    assert open_tagger(tmp_path / "further").fingerprint != open_tagger(again).fingerprint


def test_elan_files_and_a_table_are_the_same_examples(clips: Path) -> None:
    by_table, _ = read_examples(clips / "table.jsonl", clips / "points")
    by_elan, left_out = read_examples(clips / "eaf", clips / "points")
    assert [example.id for example in by_elan] == [example.id for example in by_table] and not left_out
    for one, other in zip(by_table, by_elan):
        assert other.signs_N2 == pytest.approx(one.signs_N2, abs=2e-3)


def test_the_synthetic_corpus_is_an_annotation(tmp_path: Path, capsys) -> None:
    counts = ["corpus.train_clips=2", "corpus.dev_clips=1", "corpus.test_clips=0", "corpus.heldout_clips=0"]
    root = tmp_path / "made"
    assert command_line.run(["corpus", "make", "--root", str(root), "--keypoints", *counts]) == 0
    examples, left_out = read_examples(root, root / "keypoints")
    assert len(examples) == 3 and not left_out
    for example in examples:
        gold = json.loads((root / "gold" / f"{example.id}.json").read_text())
        assert example.signs_N2 * 25 == pytest.approx(
            np.array([[s["start"], s["end"]] for s in gold["signs"]])
        )
        assert example.frames == gold["frames"]
    assert (
        run("--annotation", root, "--keypoints", root / "keypoints", "--out", tmp_path / "new", *SHORT) == 0
    )


def test_what_cannot_be_used_is_named_and_the_rest_is_trained_on(clips: Path, tmp_path: Path, capsys) -> None:
    rows = [json.loads(line) for line in (clips / "table.jsonl").read_text().splitlines()[:2]]
    rows += [{"id": "lost", "signs": [[0, 1]]}, {"id": "../outside", "signs": [[0, 1]]}]
    rows[0]["signs"].append([3, 2])
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("--annotation", table, "--keypoints", clips / "points", "--out", tmp_path / "new", *SHORT) == 0
    said = capsys.readouterr().err
    assert "left out: lost: no-keypoints" in said and "left out: ../outside: bad-labels" in said
    assert "clip-0: signs" in said
    assert json.loads((tmp_path / "new" / "config.json").read_text())["data"]["clips_left_out"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --annotation and --keypoints, or --synthetic"),
        (["--annotation", "TABLE"], "give --annotation and --keypoints"),
        (["--synthetic", "3", "--annotation", "TABLE", "--keypoints", "POINTS"], "or --synthetic N"),
        (["--synthetic", "3", "--folds", "x"], "--folds needs --annotation"),
        (["--annotation", "TABLE", "--keypoints", "POINTS", "--picture", "wide"], "WIDTHxHEIGHT"),
        (["--annotation", "TABLE", "--keypoints", "POINTS", "--folds", "signer"], "has no such column"),
        (["--annotation", "EAF", "--keypoints", "POINTS", "--folds", "signer"], "is a column of a table"),
        (["--annotation", "TABLE", "--keypoints", "EAF"], "no sign with keypoints"),
        (
            ["--annotation", "TABLE", "--keypoints", "POINTS", "--start", "nowhere"],
            "no segmentation model nowhere",
        ),
    ],
)
def test_a_mistake_is_one_line(clips: Path, tmp_path: Path, capsys, words: list[str], message: str) -> None:
    names = {"TABLE": clips / "table.jsonl", "POINTS": clips / "points", "EAF": clips / "eaf"}
    assert run("--out", tmp_path / "new", *(names.get(word, word) for word in words)) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "new").exists()
