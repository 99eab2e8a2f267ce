"""Taggers with a model through precompute, and `segmentation.tagger=auto`: decided once, stored, and kept."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from factories.precompute import CLIPS, HereRun, hashes, manifest_of, recipe_for, run_here, write_corpus
from factories.segmenters import random_track, write_2023

from sage_scale.config import from_mapping
from sage_scale.errors import NoModel, TooManyRejects, UsageError
from sage_scale.keypoints.files import npz_bytes
from sage_scale.segmentation.decoding import peaks
from sage_scale.segmentation.rules import labels_to_segments
from sage_scale.segmentation.tagger import cached_tagger, open_tagger
from sage_scale.shards import open_dataset


@pytest.fixture
def folder(corpus_root: Path, tmp_path: Path) -> Path:
    """Keypoints of every video of the corpus, and weights, in folders of their own."""
    for clip in manifest_of(recipe_for(corpus_root)).clips:
        path = tmp_path / "keypoints" / clip.split / f"{Path(clip.video).stem}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames = 24 + 2 * int(path.stem[-2:])
        path.write_bytes(npz_bytes(random_track(frames, seed=frames, fps=25.0)))
    write_2023(tmp_path / "weights")
    cached_tagger.cache_clear()
    return tmp_path


def recipe_with(root: Path, folder: Path, tagger: str = "published", rate: float = 0.0, **keys):
    segmentation = {"tagger": tagger, "weights": str(folder / "weights"), **keys}
    return recipe_for(
        root,
        segmentation=segmentation,
        vision={"keypoints": str(folder / "keypoints")},
        shards={"max_reject_rate": rate},
    )


def test_published_cuts_videos_with_keypoints(corpus_root: Path, folder: Path) -> None:
    """What is stored is the rule's result on the model's labels; repeated, the bytes are the same."""
    recipe = recipe_with(corpus_root, folder, rule="plain", trim_rests=True)
    run_here(recipe, folder / "out").execute()
    dataset = open_dataset(folder / "out")
    assert dataset.splits == {"train": CLIPS, "dev": 2}
    model = open_tagger(folder / "weights")
    assert dataset.info.versions["segmenter_sha256"] == model.fingerprint
    samples = dataset.samples()
    for row in range(len(samples)):
        sample = dataset.read(samples, row)
        frames = int(sample.meta["frames"])
        labels = peaks(model(random_track(frames, seed=frames, fps=25.0)).sign_T3, 25.0)
        expected = labels_to_segments(labels, "plain", rests=False)
        assert sample.segments.tolist() == expected.tolist() and sample.frames
    run_here(recipe, folder / "again").execute()
    assert hashes(folder / "out") == hashes(folder / "again")


def test_published_cuts_keypoint_files_without_videos(folder: Path) -> None:
    for path in (folder / "keypoints").rglob("*.npz"):
        path.with_suffix(".txt").write_text("ein Satz")
    recipe = recipe_for(
        folder / "keypoints",
        segmentation={"tagger": "auto", "weights": str(folder / "weights")},
        vision={"kind": "features", "backbone": "keypoints", "min_frames": 1},
    )
    run_here(recipe, folder / "out").execute()
    dataset = open_dataset(folder / "out")
    assert dataset.splits == {"train": CLIPS, "dev": 2} and dataset.info.kind == "features"
    assert dataset.info.recipe_part["segmentation"]["tagger"] == "published"


def test_clips_without_keypoints_are_rejected_each_or_all_up_front(corpus_root: Path, folder: Path) -> None:
    (folder / "keypoints" / "train" / "train03.npz").unlink()
    with pytest.raises(TooManyRejects, match=rf"1 of {CLIPS + 2} clips have no keypoint file .*train03"):
        run_here(recipe_with(corpus_root, folder), folder / "out").execute()
    run_here(recipe_with(corpus_root, folder, rate=0.3), folder / "out").execute()
    dataset = open_dataset(folder / "out")
    assert dataset.splits == {"train": CLIPS - 1, "dev": 2}
    assert [dict(unit.reasons) for unit in dataset.units if unit.reasons] == [{"no-keypoints": 1}]
    shutil.rmtree(folder / "keypoints")
    with pytest.raises(UsageError, match="sage-scale keypoints"):
        run_here(recipe_with(corpus_root, folder, rate=1.0), folder / "none").execute()
    assert not (folder / "none").exists()
    run_here(recipe_with(corpus_root, folder, rate=0.3), folder / "out").execute()  # whole: none is asked for


def test_other_weights_are_refused_and_missing_ones_named(corpus_root: Path, folder: Path) -> None:
    recipe = recipe_with(corpus_root, folder)
    with pytest.raises(NoModel, match=r"segmentation\.weights: there is no"):
        run_here(recipe_with(corpus_root, folder, weights=str(folder / "no")), folder / "out").execute()
    assert not (folder / "out").exists()
    run_here(recipe, folder / "out").execute()
    marker = sorted((folder / "out").glob("*.tar"))[-1]
    for name in (
        marker.name,
        marker.with_suffix(".idx").name,
        marker.with_suffix(".json").name,
        "index.json",
    ):
        (folder / "out" / name).unlink()
    write_2023(folder / "weights", seed=1)
    cached_tagger.cache_clear()
    with pytest.raises(UsageError, match=r"segmenter_sha256 was [0-9a-f]{64}, is"):
        run_here(recipe, folder / "out").execute()


def said(capsys, recipe, out: Path, **settings) -> tuple[HereRun, str]:
    """A job that speaks, and its line on the tagger."""
    job = HereRun(recipe=recipe, url=str(out), manifest=manifest_of(recipe), **settings)
    return job, capsys.readouterr().err.strip()


def test_auto_takes_labels_then_a_model_then_motion(corpus_root: Path, folder: Path, capsys) -> None:
    labels = folder / "labels.csv"
    labels.write_text(
        "id,labels\n" + "".join(f"{c.id},BIII\n" for c in manifest_of(recipe_for(corpus_root)).clips)
    )
    every = recipe_with(corpus_root, folder, "auto", labels=str(labels))
    job, line = said(capsys, every, folder / "a")
    assert job.recipe.segmentation.tagger == "precomputed" and "auto is precomputed" in line
    job, line = said(capsys, recipe_with(corpus_root, folder, "auto"), folder / "b")
    assert job.recipe.segmentation.tagger == "published"
    assert line.count("\n") == 0 and f"{CLIPS + 2} of {CLIPS + 2} clips have keypoints" in line
    (folder / "keypoints" / "train" / "train03.npz").unlink()
    job, line = said(capsys, recipe_with(corpus_root, folder, "auto"), folder / "b")
    assert job.recipe.segmentation.tagger == "motion" and f"{CLIPS + 1} of {CLIPS + 2}" in line
    job, _ = said(capsys, recipe_with(corpus_root, folder, "auto", rate=0.3), folder / "b")
    assert job.recipe.segmentation.tagger == "published"
    job, line = said(capsys, recipe_with(corpus_root, folder, "auto", weights=""), folder / "b")
    assert job.recipe.segmentation.tagger == "motion" and "no labels and no weights are given" in line
    with pytest.raises(NoModel):
        said(capsys, recipe_with(corpus_root, folder, "auto", weights=str(folder / "no")), folder / "b")
    assert not (folder / "b").exists()


def test_auto_is_the_same_dataset_as_the_tagger_by_name(corpus_root: Path, folder: Path) -> None:
    for tagger in ("auto", "published"):
        run_here(recipe_with(corpus_root, folder, tagger), folder / tagger).execute()
    assert hashes(folder / "auto") == hashes(folder / "published")
    for tagger in ("auto", "motion"):
        recipe = recipe_for(corpus_root, segmentation={"tagger": tagger})
        run_here(recipe, folder / f"plain-{tagger}").execute()
    assert hashes(folder / "plain-auto") == hashes(folder / "plain-motion")


def test_a_resume_keeps_what_auto_was_decided_to_be(corpus_root: Path, folder: Path, capsys) -> None:
    """After the weights and keypoints are gone, and where there are now labels."""
    auto = recipe_with(corpus_root, folder, "auto")
    run_here(auto, folder / "out").execute()
    whole = hashes(folder / "out")
    shutil.move(folder / "weights", folder / "away")
    cached_tagger.cache_clear()
    job, line = said(capsys, auto, folder / "out")
    assert job.recipe.segmentation.tagger == "published" and "was begun" in line
    job.execute()  # whole: nothing is left to do
    (folder / "out" / "index.json").unlink()
    last = sorted((folder / "out").glob("*.tar"))[-1]
    for suffix in (".tar", ".idx", ".json"):
        last.with_suffix(suffix).unlink()
    with pytest.raises(NoModel, match=r"segmentation\.weights: there is no"):
        run_here(auto, folder / "out").execute()  # never by motion in silence
    shutil.move(folder / "away", folder / "weights")
    run_here(auto, folder / "out").execute()
    assert hashes(folder / "out") == whole
    motion = recipe_for(
        corpus_root, segmentation={"tagger": "auto"}, vision={"keypoints": str(folder / "later")}
    )
    run_here(motion, folder / "motion").execute()
    shutil.copytree(folder / "keypoints", folder / "later")
    assert run_here(motion, folder / "motion").recipe.segmentation.tagger == "motion"


def test_an_extension_keeps_it_too(folder: Path, tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "corpus", clips=3)
    auto = recipe_with(root, folder, "auto")
    run_here(auto, folder / "out").execute()
    write_corpus(root, clips=4)
    (folder / "keypoints" / "train" / "train03.npz").unlink()  # would now be motion
    with pytest.raises(UsageError, match="1 of 1 clips have no keypoint file"):
        run_here(auto, folder / "out", extend=True).execute()
    track = npz_bytes(random_track(30, seed=30, fps=25.0))
    (folder / "keypoints" / "train" / "train03.npz").write_bytes(track)
    run_here(auto, folder / "out", extend=True).execute()
    dataset = open_dataset(folder / "out")
    assert dataset.splits == {"train": 4, "dev": 2}
    assert dataset.info.recipe_part["segmentation"]["tagger"] == "published"


def test_a_cluster_that_alone_sees_the_videos_needs_a_name(corpus_root: Path, folder: Path) -> None:
    auto = recipe_with(corpus_root, folder, "auto")
    manifest = manifest_of(auto)
    away = [dataclasses.replace(clip, video=f"/nowhere/{clip.key}.mp4") for clip in manifest.clips]
    remote = from_mapping({"precompute": {"address": "auto"}}, auto)
    with pytest.raises(UsageError, match="does not see the videos: name a tagger"):
        run_here(remote, folder / "out", manifest=dataclasses.replace(manifest, clips=tuple(away)))


def test_tracks_of_one_frame_and_of_nobody_have_segments(corpus_root: Path, folder: Path) -> None:
    """A signer who leaves the picture, a track that ends early, one of another rate: defined results."""
    train = folder / "keypoints" / "train"
    gone = random_track(24, fps=25.0)
    gone = gone.replace(
        points_TKC=np.zeros_like(gone.points_TKC), confidence_TK=np.zeros_like(gone.confidence_TK)
    )
    (train / "train00.npz").write_bytes(npz_bytes(gone))
    (train / "train01.npz").write_bytes(npz_bytes(random_track(1, fps=25.0)))
    (train / "train02.npz").write_bytes(npz_bytes(random_track(134, fps=120.0)))
    (train / "train03.npz").write_bytes(b"PK no archive")
    run_here(recipe_with(corpus_root, folder, rate=0.2), folder / "out").execute()
    dataset = open_dataset(folder / "out")
    assert dataset.splits["train"] == CLIPS - 1
    assert [dict(unit.reasons) for unit in dataset.units if unit.reasons] == [{"bad-keypoints": 1}]
