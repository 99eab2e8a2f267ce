"""A trained run's frame encoder as frozen backbone (`vision.backbone=runs/NAME`)."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.precompute import hashes
from factories.training import SIZE, make_language_folder, make_shards, tiny_recipe
from factories.videos import write_square

from sage_scale.config import Recipe, Stage, override, to_yaml
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.errors import CheckpointError, RecipeError
from sage_scale.models.sage.visual import VisualEncoder
from sage_scale.precompute import job
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.environment import environment_here
from sage_scale.precompute.frozen_backbone import open_backbone, run_weights
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import UnitDone
from sage_scale.training.export import load_tensors
from sage_scale.training.stage import run_stage
from sage_scale.vision.packed import PackedVideo


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Recipe]:
    """A stage-1 run of four steps, on frames."""
    root = tmp_path_factory.mktemp("own_encoder")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe("frames", f"model.language_model={language}", "pretrain.max_steps=4")
    make_shards(root / "shards", recipe, [("train", 14), ("dev", 4)])
    run_stage("pretrain", recipe, root / "run", str(root / "shards"))
    return root / "run", recipe


def features_recipe(run: Path, recipe: Recipe, *overrides: str) -> Recipe:
    vision = dataclasses.replace(recipe.vision, kind="features", backbone=str(run), backbone_batch=8)
    text = dataclasses.replace(recipe.text, tagger="none", target="sentence")
    return override(dataclasses.replace(recipe, vision=vision, text=text), overrides)


@pytest.mark.parametrize("background", ["none", "median"])
def test_rows_are_what_the_runs_own_model_makes_of_the_frames(trained, tmp_path, background) -> None:
    """In the plain view those of its evaluation, in the others those of its training on the frames changed alike."""
    run, recipe = trained
    changed = override(recipe, [f"vision.background={background}"])
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text(to_yaml(changed), encoding="utf-8")
    frames = np.random.default_rng(1).integers(0, 256, (11, SIZE, SIZE, 3), dtype=np.uint8)
    vision = features_recipe(tmp_path / "run", changed, "vision.feature_views=2").vision
    rows, view = open_backbone(vision).pictures(frames, [12345])

    model = VisualEncoder(changed, Stage(augment=vision.view_augment)).eval()
    values = load_tensors(run / "pretrain" / "visual.safetensors")
    model.load_state_dict(
        {k.removeprefix("visual."): v for k, v in values.items() if k.startswith("visual.")}
    )
    middle = np.sort(frames, axis=0)[(len(frames) - 1) // 2]
    video = PackedVideo(
        segment_frames_N=torch.tensor([4, 7]),
        clip_segments_B=torch.tensor([2]),
        clip_seeds_B=torch.tensor([12345]),
        frames_FCHW=torch.from_numpy(frames).permute(0, 3, 1, 2),
        background_BCHW=torch.from_numpy(middle).permute(2, 0, 1)[None] if background == "median" else None,
    )
    with torch.no_grad():
        plain = model.frame_features(video, augmented=False).numpy()
        augmented = model.frame_features(video, augmented=True).numpy()
    assert rows.shape == plain.shape == (11, 16) and rows.dtype == np.float16
    for found, expected in ((rows, plain), (view, augmented)):
        assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()
        assert np.abs(expected).max() > 0.1
    assert np.abs(plain - augmented).max() > 0.02 * np.abs(plain).max()


@pytest.mark.parametrize("views", [1, 3])
def test_a_unit_with_a_runs_own_features_is_the_same_in_a_pass_and_alone(trained, tmp_path, views) -> None:
    run, recipe = trained
    write_square(tmp_path / "talk.mp4", frames=200, seed=1)
    clips = tuple(
        Clip(id=str(k), video=str(tmp_path / "talk.mp4"), start_s=k, end_s=k + 1.4) for k in (0, 2, 1, 4, 3)
    )
    chosen = features_recipe(run, recipe, f"vision.feature_views={views}")
    for name, alone in (("alone", True), ("pass", False)):
        worker = UnitWorker(chosen, str(tmp_path / name))
        *_, last = worker.work(Unit(number=0, split="train", clips=clips), "0" * 16, alone=alone)
        assert isinstance(last, UnitDone), last
        assert last.marker.samples == 5
    assert hashes(tmp_path / "alone") == hashes(tmp_path / "pass")
    assert environment_here(chosen, "none").versions["backbone_sha256"]


def test_a_run_is_named_by_its_folder_its_export_or_its_file(trained, tmp_path) -> None:
    run, recipe = trained
    file = run / "pretrain" / "visual.safetensors"
    assert run_weights(str(run)) == run_weights(str(file)) == run_weights(str(run / "pretrain")) == file
    export = tmp_path / "model"
    export.mkdir()
    shutil.copyfile(file, export / "visual.safetensors")
    with pytest.raises(CheckpointError, match=r"no recipe\.yaml"):
        open_backbone(features_recipe(export, recipe).vision)
    shutil.copyfile(run / "recipe.yaml", export / "recipe.yaml")
    frames = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    both = [open_backbone(features_recipe(place, recipe).vision).pictures(frames) for place in (run, export)]
    assert np.array_equal(*both)


def test_mistakes_are_one_line(trained, tmp_path) -> None:
    run, recipe = trained
    with pytest.raises(RecipeError, match="neither a backbone's name"):
        open_backbone(features_recipe(tmp_path / "none", recipe).vision)
    with pytest.raises(RecipeError, match=f"set vision.crop={SIZE}"):
        open_backbone(features_recipe(run, recipe, "vision.crop=14").vision)
    for change, told in (
        ("model.feature_dim=12", r"set model\.feature_dim=16"),
        ("vision.crop=14", r"set vision\.crop=16"),
    ):
        with pytest.raises(RecipeError, match=told):  # before Ray is started or a thing is written
            wanted = features_recipe(run, recipe, "model.feature_dim=16", change)
            job.PrecomputeJob(manifest=Manifest(()), recipe=wanted, url=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "pretrain" / "visual.safetensors"
    file.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"visual\.safetensors"):
        open_backbone(features_recipe(tmp_path / "run", recipe).vision)
