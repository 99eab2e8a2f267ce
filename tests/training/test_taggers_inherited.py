"""A dataset made with each tagger reports that tagger after pretrain, finetune, evaluate, report and translate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from factories.precompute import run_here
from factories.segmenters import random_track, write_2023
from factories.training import COLOURS, make_language_folder, tiny_recipe
from factories.videos import write_square

from sage_scale.cli.main import run
from sage_scale.config import load_recipe, override, to_yaml
from sage_scale.evaluation.stored import read_scores
from sage_scale.keypoints.files import npz_bytes
from sage_scale.shards import open_dataset

pytestmark = pytest.mark.system
TAGGERS = ("motion", "uniform", "precomputed", "published")
CHANGES = {
    "motion": ["segmentation.rule=plain"],
    "uniform": ["segmentation.tagger=uniform", "segmentation.uniform_frames=6", "vision.fit=stretch"],
    "precomputed": ["segmentation.tagger=precomputed", "segmentation.labels=labels.pt"],
    # Decided when the dataset is made; everything after it knows the decision.
    "published": [
        "segmentation.tagger=auto",
        "segmentation.weights=weights",
        "segmentation.decoding=runs",
        "vision.keypoints=keypoints",
    ],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A corpus, its labels as SAGE stores them, a recipe that says motion, and a dataset by each tagger."""
    root = tmp_path_factory.mktemp("taggers")
    words = list(COLOURS)
    labels: dict[str, dict[str, torch.Tensor]] = {}
    for split, count in (("train", 6), ("dev", 2), ("test", 2)):
        for number in range(count):
            video = root / "corpus" / split / f"{split}{number}.mp4"
            write_square(video, frames=24 + 4 * number, seed=number + 100 * len(split))
            video.with_suffix(".txt").write_text(
                f"{words[number % 6]} {words[(number + 1) % 6]}", encoding="utf-8"
            )
            track = root / "keypoints" / split / f"{video.stem}.npz"
            track.parent.mkdir(parents=True, exist_ok=True)
            track.write_bytes(npz_bytes(random_track(24 + 4 * number, seed=number, fps=25.0)))
            marks = torch.ones(24 + 4 * number, dtype=torch.int64)
            marks[::7] = 2
            labels.setdefault(split, {})[video.stem] = marks
    torch.save(labels, root / "labels.pt")
    write_2023(root / "weights")
    recipe = tiny_recipe("frames", f"model.language_model={make_language_folder(root / 'language')}")
    small = ["pretrain.max_steps=2", "finetune.max_steps=2", "text.tagger=none", "text.target=sentence"]
    recipe = override(recipe, [*small, "corpus.name=videos", f"corpus.root={root / 'corpus'}"])
    (root / "recipe.yaml").write_text(to_yaml(recipe))
    monkey = pytest.MonkeyPatch()
    monkey.chdir(root)
    for tagger, changes in CHANGES.items():
        run_here(override(recipe, changes), root / tagger).execute()
    yield root
    monkey.undo()


@pytest.mark.parametrize("tagger", TAGGERS)
def test_what_the_dataset_is_the_run_says(world: Path, tagger: str, capsys) -> None:
    folder = world / f"run-{tagger}"
    begin = ["--run", str(folder), "--data", str(world / tagger)]
    assert run(["pretrain", *begin, "--recipe", str(world / "recipe.yaml")]) == 0
    said = capsys.readouterr().err
    assert said.count("taken from") == 1
    if tagger != "motion":
        assert f"segmentation.tagger={tagger} (the recipe: motion)" in said
    assert run(["finetune", *begin]) == 0
    assert "taken from" not in capsys.readouterr().err
    made = open_dataset(world / tagger).info
    for stored in (folder / "recipe.yaml", folder / "model" / "recipe.yaml"):
        recipe = load_recipe(stored)
        assert recipe.segmentation.tagger == tagger and recipe.dataset_fingerprint() == made.recipe
        assert recipe.corpus_part() == dict(made.notes["corpus"])
    assert run(["evaluate", *begin]) == 0
    assert "made otherwise" not in capsys.readouterr().err
    assert read_scores(folder)["test"]["taggers"] == [tagger]
    assert run(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert f"segments by {tagger}" in page and f"tagger: {tagger}" in page
    video = world / "corpus" / "test" / "test1.mp4"
    translate = ["translate", str(video), "--model", str(folder), "--device", "cpu", "--json"]
    capsys.readouterr()
    assert run(translate) == 0
    printed = capsys.readouterr()
    row = json.loads(printed.out)
    stored = json.loads((folder / "predictions" / "test.jsonl").read_text().splitlines()[1])
    assert row["tagger"] == tagger and row["sentence"] == stored["hypothesis"]
    trained_on, *others = printed.err.splitlines()
    assert trained_on == f"sage-scale: {row['trained_on']}" and f"cut by {tagger}, " in trained_on
    assert not any("trained on" in line for line in others)
    assert row["segments_s"] == [[round(a / 25, 3), round(b / 25, 3)] for a, b in stored["segments"]]


def test_a_video_without_labels_is_cut_otherwise_and_said(world: Path, tmp_path: Path, capsys) -> None:
    folder = world / "run-precomputed"
    if not (folder / "model").is_dir():
        begin = [
            "--run",
            str(folder),
            "--data",
            str(world / "precomputed"),
            "--recipe",
            str(world / "recipe.yaml"),
        ]
        assert run(["pretrain", *begin]) == 0 and run(["finetune", *begin]) == 0
    write_square(tmp_path / "new.mp4", frames=40, seed=9)
    translate = ["translate", str(tmp_path / "new.mp4"), "--model", str(folder), "--device", "cpu", "--json"]
    capsys.readouterr()
    assert run(translate) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["tagger"] == "motion"
    assert "new.mp4: cut by motion: the model was trained on precomputed segments" in printed.err
    (tmp_path / "new.json").write_text(json.dumps({"new": [[0, 20], [20, 40]]}))
    labels = ["--set", f"segmentation.labels={tmp_path / 'new.json'}", "--set", "segmentation.rule=plain"]
    assert run([*translate, *labels]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["segments_s"] == [[0, 0.8], [0.8, 1.6]]
    assert (
        "segmentation.rule=plain (trained on: sage)" in printed.err and "new.mp4: cut by" not in printed.err
    )
    assert run([*translate, "--set", "segmentation.tagger=uniform"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["tagger"] == "uniform"
    assert "segmentation.tagger=uniform (trained on: precomputed)" in printed.err
    assert run([*translate, "--set", "segmentation.labels=none.json"]) == 2
    assert "there is no none.json" in capsys.readouterr().err


def test_a_video_without_keypoints_is_cut_otherwise_and_said(world: Path, tmp_path: Path, capsys) -> None:
    """`auto` on the command line stands for the dataset's tagger, in training and translation."""
    folder = world / "run-published"
    if not (folder / "model").is_dir():
        begin = ["--run", str(folder), "--data", str(world / "published")]
        begin += ["--recipe", str(world / "recipe.yaml"), "segmentation.tagger=auto"]
        assert run(["pretrain", *begin]) == 0 and run(["finetune", *begin[:4]]) == 0
    write_square(tmp_path / "new.mp4", frames=40, seed=9)
    translate = ["translate", str(tmp_path / "new.mp4"), "--model", str(folder), "--device", "cpu", "--json"]
    translate += ["--set", "segmentation.tagger=auto"]
    capsys.readouterr()
    assert run(translate) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["tagger"] == "motion"
    assert "new.mp4: cut by motion: the model was trained on published segments" in printed.err
    assert "no keypoint file of this video" in printed.err
    (tmp_path / "new.npz").write_bytes(npz_bytes(random_track(40, fps=25.0)))
    assert run([*translate, "--set", "vision.keypoints="]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["tagger"] == "published" and "new.mp4: cut by" not in printed.err
    away = ["--set", "vision.keypoints=", "--set", "segmentation.weights=none"]
    assert run([*translate, *away]) == 2
    assert "segmentation.weights: there is no none" in capsys.readouterr().err


def test_evaluation_on_a_dataset_that_was_cut_otherwise_says_so(world: Path, capsys) -> None:
    folder = world / "run-other"
    begin = ["--run", str(folder), "--recipe", str(world / "recipe.yaml"), "finetune.init=none"]
    assert run(["finetune", *begin, "--data", str(world / "uniform")]) == 0
    capsys.readouterr()
    assert run(["evaluate", "--run", str(folder), "--data", str(world / "motion")]) == 0
    said = capsys.readouterr().err
    assert "was made otherwise than the run was trained" in said
    assert (
        "segmentation.tagger=motion (the run: uniform)" in said
        and "vision.fit=auto (the run: stretch)" in said
    )


@pytest.mark.parametrize("tagger", TAGGERS)
def test_a_given_key_that_contradicts_is_refused_with_both_values(world: Path, tagger: str, capsys) -> None:
    folder, other = world / "refused", "uniform" if tagger != "uniform" else "motion"
    for given in ([f"segmentation.tagger={other}"], [f"segmentation={{tagger: {other}}}"], ["vision.fps=50"]):
        command = ["pretrain", "--run", str(folder), "--data", str(world / tagger), "--recipe"]
        assert run([*command, str(world / "recipe.yaml"), *given]) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1
        if "fps" in given[0]:
            assert "vision.fps=50.0 is given" in said and "vision.fps=25.0" in said
        else:
            assert (
                f"segmentation.tagger={other} is given" in said and f"segmentation.tagger={tagger}:" in said
            )
        assert not folder.exists()
