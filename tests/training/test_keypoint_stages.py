"""The recipe `sage-keypoints` from `.pose` files to a translation, and the width that features give a model."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from factories.precompute import run_here
from factories.training import COLOURS, make_language_folder

from sage_scale.config import Recipe, from_mapping, load_recipe, override
from sage_scale.corpora.manifest import Manifest
from sage_scale.corpora.synthetic.animation import animate
from sage_scale.corpora.synthetic.grammar import signing
from sage_scale.corpora.synthetic.sampling import sample
from sage_scale.corpora.synthetic.signers import SIGNERS
from sage_scale.corpora.synthetic.skeleton import skeleton_track
from sage_scale.errors import OtherDataset, UsageError
from sage_scale.keypoints.files import pose_bytes
from sage_scale.precompute.environment import check_same_environment, describe, environment_here
from sage_scale.training.stage import run_stage
from sage_scale.translation.translate import Translator

SMALL = [
    "text.tagger=none", "text.trim_vocabulary=false", "shards.clips_per_unit=8", "stream.lanes=4", "stream.window=8",
    "stream.workers=0", "model.token_dim=24", "model.context_layers=1", "corpus.language=de",
    *(f"{stage}.{key}" for stage in ("pretrain", "finetune") for key in (
        "batch_size=6", "epochs=2", "zero_stage=0", "precision=fp32", "evaluate_every=-1", "save_every=-1")),
    "evaluation.beams=2", "evaluation.max_tokens=8",
]  # fmt: skip


def signed(folder: Path) -> Path:
    """Signed sentences of two signers as `.pose` files, with sentences of the tiny language."""
    words = list(COLOURS)
    for split, count in (("train", 14), ("dev", 4)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            rng = Random(f"{split} {number}")
            signer = SIGNERS[number % 2]
            track = skeleton_track(animate(signing(sample(rng)), signer, rng), signer).part(0, 3)
            (folder / split / f"{number}.pose").write_bytes(pose_bytes(track))
            (folder / split / f"{number}.txt").write_text(" ".join(rng.choices(words, k=3)))
    return folder


@pytest.mark.system
def test_from_pose_files_to_a_translation(tmp_path) -> None:
    root, language = signed(tmp_path / "signed"), make_language_folder(tmp_path / "language")
    changes = [*SMALL, f"corpus.root={root}", f"model.language_model={language}"]
    recipe = load_recipe("sage-keypoints", [*changes, "segmentation.tagger=trained"])
    assert recipe.model.feature_dim == 300  # 75 points, x and y, velocities
    made = run_here(recipe, tmp_path / "shards").execute()
    assert made.clips == 18
    run_stage("pretrain", recipe, tmp_path / "run", str(tmp_path / "shards"))
    # Another recipe takes layout and width from the dataset.
    frames = load_recipe("sage-phoenix14t", changes)
    run_stage("pretrain", frames, tmp_path / "other", str(tmp_path / "shards"))
    assert load_recipe(tmp_path / "other" / "recipe.yaml").model.feature_dim == 300
    given = override(frames, ["model.feature_dim=150"])
    with pytest.raises(OtherDataset, match=r"model\.feature_dim=150 is given"):
        run_stage("pretrain", given, tmp_path / "third", str(tmp_path / "shards"))
    run_stage("finetune", recipe, tmp_path / "run", str(tmp_path / "shards"))
    translator = Translator(tmp_path / "run")
    translation = translator.translate(root / "dev" / "0.pose", start_s=0.5, end_s=2.5)
    assert translation.frames == 50 and len(translation.segments) and not translator.warnings
    # Another model of the tagger than the one that cut the training data is named.
    assert translation.tagger == "trained" and not any("weights" in line for line in translation.warnings)
    (own,) = translator.card.segmenters
    translator.card = replace(translator.card, segmenters=(own[::-1],))
    again = translator.translate(root / "dev" / "0.pose", start_s=0.5, end_s=2.5)
    assert any("with other weights than the training data" in line for line in again.warnings)
    # A run of 0.1.0 knew no aspect of the picture: one line says so.
    file = tmp_path / "run" / "model" / "recipe.yaml"
    file.write_text("".join(line for line in file.open() if "source_aspect" not in line))
    (line,) = Translator(tmp_path / "run").warnings
    assert "0.1.0" in line and ".pose" in line


@pytest.mark.parametrize(
    ("changes", "width"),
    [
        ([], 512),
        (["vision.kind=features"], 512),
        (["vision.kind=features", "vision.backbone=dinov2-vits14"], 384),
        (["vision.kind=features", "vision.backbone=keypoints"], 134),
        (["vision.kind=features", "vision.backbone=keypoints", "vision.keypoint_z=true"], 201),
        (["vision.kind=features", "vision.backbone=keypoints", "model.feature_dim=7"], 7),
        (["vision.kind=features", "vision.backbone=runs/mine"], 512),
    ],
)
def test_the_width_of_features_follows_from_the_backbone(changes, width) -> None:
    assert override(load_recipe("sage-phoenix14t"), changes).model.feature_dim == width
    step: Recipe = load_recipe("sage-phoenix14t")
    for change in changes:  # one after the other, as overrides of a stored recipe are
        step = override(step, [change])
    assert step.model.feature_dim == width
    assert override(step, ["vision.keypoint_velocities=true"]).model.feature_dim in (width, 268, 402)


def test_a_stated_width_stays() -> None:
    stated = from_mapping(
        {"vision": {"kind": "features", "backbone": "keypoints"}, "model": {"feature_dim": 99}}
    )
    assert override(stated, ["vision.backbone=resnet34"]).model.feature_dim == 99


def test_outputs_from_keypoints_record_how_the_points_became_numbers() -> None:
    versions = environment_here(load_recipe("sage-keypoints"), "none").versions
    assert versions["keypoint_features"].startswith("2 ")
    assert "keypoint_features" not in environment_here(load_recipe("sage-phoenix14t"), "none").versions


def test_an_output_of_keypoints_of_0_1_0_is_not_gone_on_with_unless_it_may_be_mixed() -> None:
    recipe = load_recipe("sage-keypoints")
    here = environment_here(recipe, "none")
    stored = describe(recipe, Manifest(()), (), here)
    assert check_same_environment(stored, here, False) == ""
    older = {name: version for name, version in here.versions.items() if name != "keypoint_features"}
    stored = dataclasses.replace(stored, versions=older)
    with pytest.raises(UsageError, match=r"keypoint_features was unset, is 2 \(true aspect of the picture\)"):
        check_same_environment(stored, here, False)
    assert "mixed dataset" in check_same_environment(stored, here, True)
