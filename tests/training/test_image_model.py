"""An image model of transformers, trained in place of the ResNet (`model.backbone.folder`), from start to end."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.training import SIZE, make_language_folder, make_shards, tiny_recipe
from transformers import RTDetrResNetBackbone, RTDetrResNetConfig, ViTConfig, ViTModel

from sage_scale.config import Recipe, override
from sage_scale.errors import CheckpointError
from sage_scale.nn.frame_encoder import make_frame_encoder
from sage_scale.precompute.frozen_backbone import open_backbone, weights_sha256
from sage_scale.registry import model_spec
from sage_scale.streaming import open_datasets, open_evaluation
from sage_scale.training.export import load_tensors, load_translator
from sage_scale.training.stage import run_stage
from sage_scale.vision.image_models import ImageModel


def vit() -> ViTModel:
    """Opened by AutoModel, without a pooler: a row is the class token."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTModel(
        ViTConfig(hidden_size=8, image_size=SIZE, patch_size=8, hidden_dropout_prob=0.5, **sizes),
        add_pooling_layer=False,
    )


def resnet() -> RTDetrResNetBackbone:
    """Known to AutoBackbone alone, with BatchNorm: a row is the mean of the last map."""
    return RTDetrResNetBackbone(
        RTDetrResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    )


@pytest.fixture(scope="module", params=[vit, resnet], ids=["vit", "resnet"])
def trained(request, tmp_path_factory) -> tuple[Path, Recipe]:
    """A run of both stages, with its image model in `image`, which was moved away after training."""
    root = tmp_path_factory.mktemp("image_model")
    torch.manual_seed(0)
    request.param().save_pretrained(root / "image")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe(
        "frames", f"model.language_model={language}", f"model.backbone.folder={root / 'image'}", "pretrain.max_steps=3",
        "finetune.max_steps=3", "model.batchnorm=group", "pretrain.micro_batch=4", "pretrain.chunk_frames=16",
    )  # fmt: skip
    make_shards(root / "shards", recipe, [("train", 14), ("dev", 4)])
    run_stage("pretrain", recipe, root / "run", str(root / "shards"))
    run_stage("finetune", recipe, root / "run", str(root / "shards"))
    (root / "image").rename(root / "moved")
    return root, recipe


def test_it_is_trained_and_described(trained):
    root, recipe = trained
    before = dict(ImageModel.open(root / "moved").named_parameters())
    after = load_tensors(root / "run" / "pretrain" / "visual.safetensors")
    moved = [
        name for name, value in before.items() if not torch.equal(value, after[f"visual.backbone.{name}"])
    ]
    assert len(moved) > len(before) / 2
    here = override(recipe, [f"model.backbone.folder={root / 'moved'}"])
    parts = {part.name: part for part in model_spec("sage").part("describe")(here)}
    parameters = sum(value.numel() for value in before.values())
    assert parts["frame encoder"].stage1 == parts["frame encoder"].parameters == parameters


def test_its_export_translates_without_the_first_folder(trained, tmp_path):
    root, _ = trained
    shutil.copytree(root / "run" / "model", tmp_path / "elsewhere")
    model, tokenizer, recipe = load_translator(tmp_path / "elsewhere")
    data = open_datasets(str(root / "shards"))
    (batch,) = open_evaluation(data, recipe, "dev", rank=0, world=1, batch_size=8)
    sentences = model.generate(batch.video, tokenizer, ["de"] * 4, beams=1, max_tokens=8)
    assert len(sentences) == 4
    stored = load_tensors(tmp_path / "elsewhere" / "visual.safetensors")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in stored.items())


def test_a_run_with_it_is_a_frozen_backbone(trained):
    root, recipe = trained
    frames = np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    vision = override(recipe, ["vision.kind=features", f"vision.backbone={root / 'run'}"]).vision
    rows = open_backbone(vision).pictures(frames)[0]
    config = root / "run" / "model" / "backbone" / "config.json"
    text, before = config.read_text(), weights_sha256(vision)
    config.write_text(text.replace("gelu", "relu").replace("relu", "silu"))
    assert weights_sha256(vision) != before
    config.write_text(text)
    model, _, _ = load_translator(root / "run")
    with torch.no_grad():
        expected = model.visual.backbone(torch.from_numpy(frames).permute(0, 3, 1, 2).float())
    assert rows.shape == (5, 8) and np.abs(rows - expected.numpy()).max() < 2e-3 * expected.abs().max()


@pytest.mark.parametrize("make", [vit, resnet])
def test_no_frames_give_no_rows_zero_gradients_and_no_statistics(make, tmp_path):
    make().save_pretrained(tmp_path)
    encoder = make_frame_encoder(tiny_recipe("frames", f"model.backbone.folder={tmp_path}"))
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    rows = encoder(torch.zeros(0, 3, SIZE, SIZE))
    rows.sum().backward()
    assert rows.shape == (0, 8)
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    trained = [value for value in encoder.parameters() if value.requires_grad]
    assert trained and all(value.grad is not None and value.grad.abs().sum() == 0 for value in trained)


def test_a_folder_that_does_not_fit_is_one_line(tmp_path):
    vit().save_pretrained(tmp_path / "image")
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe(
        "frames", f"model.language_model={language}", f"model.backbone.folder={tmp_path / 'image'}"
    )
    make_shards(tmp_path / "shards", recipe, [("train", 6), ("dev", 2)])
    for changes, told in (
        ([f"model.backbone.folder={tmp_path / 'none'}"], r"config\.json cannot be read"),
        (["vision.crop=15"], r"no pictures of vision\.crop=15"),
    ):
        with pytest.raises(CheckpointError, match=told) as caught:
            run_stage("pretrain", override(recipe, changes), tmp_path / "run", str(tmp_path / "shards"))
        assert "\n" not in str(caught.value)
