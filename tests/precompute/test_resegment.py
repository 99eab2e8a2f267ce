"""Segments made anew from stored clips are those of precompute with the same recipe, byte for byte where that is
possible; what the shards do not store is asked for in one line."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from factories.datasets import DyingStore, Killed, equal, make_dataset, make_sample, snapshot, write_dataset
from factories.precompute import recipe_for, run_here, write_corpus
from factories.videos import write_signing

from sage_scale.cli.main import run
from sage_scale.precompute.resegment import resegment, stored_clip
from sage_scale.segmentation.rules import sage_rule
from sage_scale.shards import Dataset, Sample, open_dataset, verify_dataset
from sage_scale.shards.remove import remove_clips
from sage_scale.storage import open_store
from sage_scale.training.inherited import recorded_keys

UNIFORM = ("segmentation.tagger=uniform", "segmentation.uniform_frames=5")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips=3)


def samples(dataset: Dataset) -> dict[str, Sample]:
    table = dataset.samples()
    read = (dataset.read(table, row) for row in range(len(table)))
    return {sample.meta["id"]: sample for sample in read}


def labels_for(folder: Path, frames: dict[str, int]) -> Path:
    choose = np.random.default_rng(5)
    folder.mkdir()
    for name, count in frames.items():
        labels_T = choose.choice(3, size=count, p=[0.2, 0.6, 0.2]).astype(np.int8)
        np.save(folder / f"{name.replace('/', '__')}.npy", labels_T)
    return folder


@pytest.mark.parametrize("tagger", ["uniform", "precomputed"])
@pytest.mark.parametrize("rule", ["sage", "plain"])
def test_the_tars_are_those_of_precompute_with_the_recipe(corpus, tmp_path, tagger, rule) -> None:
    first = recipe_for(corpus)
    run_here(first, tmp_path / "first").execute()
    source = open_dataset(tmp_path / "first")
    segmentation = {"tagger": tagger, "rule": rule}
    if tagger == "precomputed":
        segmentation["labels"] = str(
            labels_for(tmp_path / "labels", {k: s.meta["frames"] for k, s in samples(source).items()})
        )
    run_here(recipe_for(corpus, segmentation=segmentation), tmp_path / "again").execute()
    again = open_dataset(tmp_path / "again")
    made = resegment(
        source,
        open_store(tmp_path / "made"),
        [f"segmentation.{key}={value}" for key, value in segmentation.items()],
    )
    ours, theirs, before = samples(made), samples(again), samples(source)
    assert ours.keys() == theirs.keys() and all(equal(ours[name], theirs[name]) for name in ours)
    assert [r["hash"].tobytes() for r in made.records] == [r["hash"].tobytes() for r in again.records]
    assert any(ours[name].segments.tolist() != before[name].segments.tolist() for name in ours)
    assert (made.info.recipe, made.info.recipe_part) == (again.info.recipe, again.info.recipe_part)
    assert recorded_keys(made)["segmentation.rule"] == rule
    assert recorded_keys(made)["segmentation.tagger"] == tagger
    assert verify_dataset(made.store).problems == ()


def test_motion_on_every_stored_frame_finds_the_onsets_of_the_video(tmp_path) -> None:
    root = tmp_path / "corpus" / "train"
    root.mkdir(parents=True)
    for seed in range(4):
        write_signing(root / f"{seed}.mp4", seed)
        (root / f"{seed}.txt").write_text("Satz.\n", encoding="utf-8")
    for tagger in ("uniform", "motion"):
        recipe = recipe_for(
            root.parent, vision={"size": 64, "crop": 64, "frame_stride": 1}, segmentation={"tagger": tagger}
        )
        run_here(recipe, tmp_path / tagger).execute()
    made = resegment(
        open_dataset(tmp_path / "uniform"), open_store(tmp_path / "made"), ["segmentation.tagger=motion"]
    )
    ours, theirs = samples(made), samples(open_dataset(tmp_path / "motion"))
    near = [
        np.abs(theirs[name].segments[:, 0] - start).min() <= 1
        for name in ours
        for start in ours[name].segments[:, 0]
    ]
    assert np.mean(near) >= 0.9


def test_features_keep_all_views_and_rejects(tmp_path) -> None:
    source = make_dataset(open_store(tmp_path / "set"))
    made = resegment(source, open_store(tmp_path / "made"), UNIFORM)
    for name, sample in samples(made).items():
        assert equal(sample, make_sample(name, split=sample.meta["split"])) is False
        before = samples(source)[name]
        assert sample.features is not None and before.features is not None
        assert sample.meta == before.meta and sample.features.tobytes() == before.features.tobytes()
        signs = [(start, start + 5) for start in range(0, 20, 5)]
        labels_T = np.ones(20, np.int8)
        labels_T[[start for start, _ in signs]] = 2
        assert sample.segments.tolist() == [list(pair) for pair in sage_rule(labels_T, 4, 10)]
    assert [unit.reasons for unit in made.units] == [unit.reasons for unit in source.units]


def test_a_clip_without_labels_becomes_a_reject(tmp_path, capsys) -> None:
    write_dataset(tmp_path / "set", [("train", [make_sample(f"c-{n}") for n in range(10)])])
    labels = labels_for(tmp_path / "labels", {f"c-{n}": 20 for n in range(10) if n != 3})
    given = ["segmentation.tagger=precomputed", f"segmentation.labels={labels}"]
    command = ["shards", "resegment", str(tmp_path / "set"), "--out", str(tmp_path / "made"), *given]
    assert run(command) == 0
    said = capsys.readouterr()
    assert "9 clips" in said.out and "1 more rejects" in said.out
    assert run(["shards", "ls", str(tmp_path / "made"), "--rejects"]) == 0
    assert "c-3  no-labels" in capsys.readouterr().out
    unfit = labels_for(tmp_path / "unfit", {f"c-{n}": 40 for n in range(10)})
    given[1], command[4] = f"segmentation.labels={unfit}", str(tmp_path / "none")
    assert run([*command[:5], *given]) == 3
    assert "10 of 10 clips were rejected (10 bad-labels)" in capsys.readouterr().err


def test_a_kill_at_any_moment_is_resumed_to_the_same_bytes(tmp_path) -> None:
    source = make_dataset(open_store(tmp_path / "set"))
    whole = snapshot(resegment(source, open_store(tmp_path / "whole"), UNIFORM).store)
    for at in random.Random(0).sample(range(len(whole)), 5):
        out = tmp_path / "made"
        with pytest.raises(Killed):
            resegment(source, DyingStore(out, at), UNIFORM)
        assert snapshot(resegment(source, open_store(out), UNIFORM).store) == whole
        shutil.rmtree(out)


def test_a_clip_that_was_removed_stays_away(tmp_path) -> None:
    store = open_store(tmp_path / "set")
    make_dataset(store)
    remove_clips(store, ["train-0-2"])
    made = resegment(open_dataset(store), open_store(tmp_path / "made"), UNIFORM)
    assert len(made.records) == 13 and b"train-0-2" not in b"".join(snapshot(made.store).values())
    assert verify_dataset(made.store).problems == ()


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("features", ["segmentation.tagger=motion"], "this dataset stores features alone"),
        ("frames", ["segmentation.tagger=motion"], "this dataset stores one of 2"),
        ("frames", ["segmentation.tagger=published"], "keypoint tracks, which shards do not store"),
        ("frames", ["segmentation.tagger=auto"], "name a tagger"),
        ("frames", ["segmentation.tagger=precomputed"], "segmentation.labels"),
        ("frames", ["segmentation.rule=nosuch"], "segmentation.rule"),
        ("frames", ["vision.size=3"], "only keys of the section segmentation"),
        ("frames", [], "name what changes"),
    ],
)
def test_what_is_not_stored_is_asked_for_in_one_line(tmp_path, capsys, kind, changes, said) -> None:
    part = {"vision": {"kind": kind, "frame_stride": 2, "backbone": "resnet34"}}
    write_dataset(tmp_path / "set", [("train", [make_sample("a", kind)])], recipe_part=part)
    assert run(["shards", "resegment", str(tmp_path / "set"), "--out", str(tmp_path / "made"), *changes]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and said in error[0]
    assert not (tmp_path / "made" / "dataset.json").exists()


def test_the_source_and_another_dataset_are_no_output(tmp_path, capsys) -> None:
    url = str(tmp_path / "set")
    make_dataset(open_store(url))
    before = snapshot(open_store(url))
    assert run(["shards", "resegment", url, "--out", url, *UNIFORM]) == 2
    assert snapshot(open_store(url)) == before
    assert run(["shards", "resegment", url, "--out", str(tmp_path / "made"), *UNIFORM]) == 0
    assert run(["shards", "resegment", url, "--out", str(tmp_path / "made"), UNIFORM[0]]) == 1
    assert "holds another dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "video", "start", "end"),
    [
        ("talk.mp4", "talk.mp4", 0.0, None),
        ("talk.mp4#t=1.5,4.25", "talk.mp4", 1.5, 4.25),
        ("talk.mp4#t=1.5", "talk.mp4", 1.5, None),
        ("a#t=b.mp4", "a#t=b.mp4", 0.0, None),
        ("a#t=..,1", "a#t=..,1", 0.0, None),
    ],
)
def test_the_interval_of_a_stored_clip(source, video, start, end) -> None:
    clip = stored_clip({"id": "x", "split": "dev", "source": source})
    assert (clip.video, clip.start_s, clip.end_s, clip.split) == (video, start, end, "dev")
