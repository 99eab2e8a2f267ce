"""Any image model that transformers opens from a folder is a frozen backbone, as wide as its configuration says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    RTDetrResNetBackbone,
    RTDetrResNetConfig,
    ViTConfig,
    ViTModel,
)

from sage_scale.config import Recipe, load_recipe
from sage_scale.errors import CheckpointError, RecipeError
from sage_scale.precompute.frozen_backbone import (
    check_backbone,
    open_backbone,
    read_backbone_weights,
    weights_sha256,
)
from sage_scale.vision.backbone_choice import IMAGENET_MEAN, IMAGENET_STD

SMALL = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 16,
}
MODELS = {
    "vit": (lambda: ViTModel(ViTConfig(hidden_size=24, **SMALL), add_pooling_layer=False), 24),
    "convnext": (lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1] * 4)), 20),
    # AutoModel does not know it, AutoBackbone does.
    "rt_detr_resnet": (
        lambda: RTDetrResNetBackbone(
            RTDetrResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        ),
        12,
    ),
}


def recipe(folder: Path, width: int) -> Recipe:
    changes = [
        f"vision.backbone={folder}",
        f"model.feature_dim={width}",
        "vision.kind=features",
        "vision.size=40",
    ]
    return load_recipe("demo", [*changes, "vision.crop=32", "vision.backbone_batch=4"])


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_those_of_the_model(tmp_path, name):
    make, width = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(tmp_path)
    chosen = recipe(tmp_path, width)
    check_backbone(chosen)
    backbone = open_backbone(chosen.vision)
    assert backbone.dim == width and len(weights_sha256(chosen.vision)) == 64
    frames = np.random.default_rng(1).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    rows = backbone.pictures(frames)[0]
    pixels = torch.from_numpy(frames[:, 4:36, 4:36]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        output = model((pixels - mean) / std)
    if name == "vit":
        wanted = output.last_hidden_state[:, 0]
    elif name == "convnext":
        wanted = output.pooler_output
    else:
        wanted = output.feature_maps[-1].mean((2, 3))
    assert np.abs(rows - wanted.numpy()).max() < 2e-3
    with pytest.raises(RecipeError, match=f"features of {width} numbers, .*set model.feature_dim={width}"):
        check_backbone(recipe(tmp_path, width + 1))


def test_a_damaged_folder_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(CheckpointError, match="tells no width"):
        check_backbone(recipe(tmp_path, 24))
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hidden_size": 24}')
    with pytest.raises(CheckpointError, match=r"backbone .* cannot be loaded"):
        open_backbone(recipe(tmp_path, 24).vision)


def test_the_hash_of_the_weights_covers_the_configuration(tmp_path):
    MODELS["vit"][0]().save_pretrained(tmp_path)
    chosen = recipe(tmp_path, 24).vision
    hashes = [weights_sha256(chosen)]
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    hashes.append(weights_sha256(chosen))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    hashes.append(weights_sha256(chosen))
    (tmp_path / "README.md").write_text("no part of the model")
    assert len(set(hashes)) == 3 and weights_sha256(chosen) == hashes[-1]


def test_weights_in_several_files_are_read_and_a_damaged_one_is_named(tmp_path):
    MODELS["vit"][0]().save_pretrained(tmp_path, max_shard_size="20KB")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1
    vision = recipe(tmp_path, 24).vision
    read_backbone_weights(vision)
    assert open_backbone(vision).dim == 24
    files[1].write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"backbone .* cannot be loaded") as caught:
        read_backbone_weights(vision)
    assert "\n" not in str(caught.value)
