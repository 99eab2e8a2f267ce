"""The parts of an exported folder that other tools made: segmenters and frozen backbones go along, as safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.segmenters import Released, small_2023, write_2023, write_2026
from factories.training import SIZE, make_language_folder, make_shards, tiny_recipe
from transformers import ViTConfig, ViTModel

from sage_scale.config import Recipe, from_mapping, override, to_yaml
from sage_scale.config.recipe import flat, to_mapping
from sage_scale.errors import CheckpointError, RecipeError
from sage_scale.precompute.frozen_backbone import open_backbone, weights_sha256
from sage_scale.segmentation.tagger import segmenter_fingerprint
from sage_scale.training.export import load_translator
from sage_scale.training.stage import run_stage
from sage_scale.training.standalone import write_standalone

PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Recipe]:
    root = tmp_path_factory.mktemp("standalone")
    language = make_language_folder(root / "language")
    changes = [f"model.language_model={language}", "finetune.init=none", "finetune.max_steps=1"]
    recipe = tiny_recipe("features", *changes)
    data = make_shards(root / "shards", recipe, [("train", 6), ("dev", 2)])
    run_stage("finetune", recipe, root / "run", data)
    return root / "run", recipe


def changed_run(trained: tuple[Path, Recipe], folder: Path, *changes: str) -> tuple[Path, Recipe]:
    """A copy of the run whose recipe names another part."""
    run, recipe = shutil.copytree(trained[0], folder), override(trained[1], changes)
    (run / "model" / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    return run, from_mapping(to_mapping(recipe))


def hands_on(folder: Path) -> Path:
    folder.mkdir(parents=True)
    torch.save({"state_dict": Released().state(), "epoch": 9}, folder / "epoch=9.ckpt")
    return folder / "epoch=9.ckpt"


def pickled_2023(folder: Path) -> Path:
    folder.mkdir(parents=True)
    torch.save(small_2023(), folder / "model.pth")
    return folder


@pytest.mark.parametrize(
    ("tagger", "write"),
    [
        ("published", write_2023),
        ("published", write_2026),
        ("published", pickled_2023),
        ("hands-on", hands_on),
    ],
)
def test_a_segmenter_goes_along_without_a_pickle(trained, tmp_path, tagger, write):
    weights = write(tmp_path / "theirs" / "segmenter")
    run, recipe = changed_run(
        trained, tmp_path / "run", f"segmentation.tagger={tagger}", f"segmentation.weights={weights}"
    )
    known = segmenter_fingerprint(recipe.segmentation)
    write_standalone(run, tmp_path / "out")
    shutil.rmtree(tmp_path / "theirs")
    out = Path(shutil.move(tmp_path / "out", tmp_path / "there"))
    opened = load_translator(out)[2]
    assert opened.segmentation.weights.startswith(str(out))
    assert segmenter_fingerprint(opened.segmentation) == known
    assert not [path for path in out.rglob("*") if path.suffix in PICKLES]
    assert "theirs" not in (out / "recipe.yaml").read_text()
    write_standalone(out, tmp_path / "again")
    assert segmenter_fingerprint(load_translator(tmp_path / "again")[2].segmentation) == known
    damaged = next((out / "tagger").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x55")
    with pytest.raises(CheckpointError, match=r"tagger/model\.safetensors"):
        load_translator(out)


def test_a_missing_segmenter_is_one_line_and_leaves_no_folder(trained, tmp_path):
    changes = ("segmentation.tagger=published", f"segmentation.weights={tmp_path / 'gone'}")
    run, _ = changed_run(trained, tmp_path / "run", *changes)
    with pytest.raises(CheckpointError, match="gone is missing"):
        write_standalone(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_image_model_of_stored_features_goes_along(trained, tmp_path):
    torch.manual_seed(0)
    ViTModel(
        ViTConfig(
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=SIZE,
            patch_size=SIZE // 2,
        )
    ).save_pretrained(tmp_path / "theirs")
    run, recipe = changed_run(trained, tmp_path / "run", f"vision.backbone={tmp_path / 'theirs'}")
    frames = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    before = open_backbone(recipe.vision).pictures(frames)[0]
    write_standalone(run, tmp_path / "out")
    shutil.rmtree(tmp_path / "theirs")
    opened = load_translator(tmp_path / "out")[2]
    assert np.array_equal(open_backbone(opened.vision).pictures(frames)[0], before)
    assert len(weights_sha256(opened.vision)) == 64


def test_a_run_as_backbone_goes_along(trained, tmp_path):
    frames_run = tiny_recipe("frames", f"model.language_model={make_language_folder(tmp_path / 'language')}")
    frames_run = override(frames_run, ["pretrain.max_steps=1"])
    data = make_shards(tmp_path / "shards", frames_run, [("train", 8), ("dev", 2)])
    run_stage("pretrain", frames_run, tmp_path / "theirs", data)
    run, recipe = changed_run(trained, tmp_path / "run", f"vision.backbone={tmp_path / 'theirs'}")
    frames = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    before = open_backbone(recipe.vision).pictures(frames)[0]
    write_standalone(run, tmp_path / "out")
    shutil.rmtree(tmp_path / "theirs")
    opened = load_translator(tmp_path / "out")[2]
    assert np.array_equal(open_backbone(opened.vision).pictures(frames)[0], before)


def test_no_key_of_the_recipe_keeps_a_place_of_the_machine(trained, tmp_path):
    """Every key of text that names nothing which the model needs is a path, where the recipe takes it."""
    names = [name for name, value in flat(to_mapping(trained[1])).items() if value == ""]
    names.remove("vision.backbone_weights")
    taken = []
    for name in names:
        try:
            override(trained[1], [*taken, f"{name}={tmp_path / 'secret' / name}"])
        except RecipeError:
            continue
        taken.append(f"{name}={tmp_path / 'secret' / name}")
    assert len(taken) > 10
    run, _ = changed_run(trained, tmp_path / "run", *taken)
    write_standalone(run, tmp_path / "out")
    assert "secret" not in (tmp_path / "out" / "recipe.yaml").read_text()


def test_the_models_of_an_extractor_go_along(trained, tmp_path):
    for name in ("yolox_m.onnx", "rtmw.onnx", "notes.txt"):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs" / name).write_text(name)
    changes = ("vision.extractor=rtmlib", f"vision.extractor_weights={tmp_path / 'theirs'}")
    run, _ = changed_run(trained, tmp_path / "run", *changes)
    write_standalone(run, tmp_path / "out")
    opened = load_translator(tmp_path / "out")[2]
    assert opened.vision.extractor_weights == str(tmp_path / "out" / "extractor")
    found = sorted(path.name for path in (tmp_path / "out" / "extractor").iterdir())
    assert found == ["rtmw.onnx", "yolox_m.onnx"]
