"""Frozen backbones: the pretrained network computed another way, fixed batches, and safe loading."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.resnets import torchvision_forward, torchvision_state
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel

from sage_scale.config import Vision
from sage_scale.errors import CheckpointError, RecipeError
from sage_scale.vision.backbones import FeatureBatches, FrozenBackbone
from sage_scale.vision.pretrained_weights import (
    load_exactly,
    read_dinov2_weights,
    read_resnet_weights,
    read_state_dict,
)

RANDOM = Vision(kind="features", size=40, crop=32, allow_random_backbone=True, backbone_batch=8)


@pytest.mark.parametrize("depths", [(1, 1, 1, 1), (2, 2, 2, 2), (3, 4, 6, 3)], ids=["10", "18", "34"])
def test_torchvision_weights_compute_the_same_network(depths, tmp_path) -> None:
    widths = (8, 16, 24, 32)
    weights = torchvision_state(depths, widths)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=list(widths), depths=list(depths), layer_type="basic"
    )
    model = ResNetModel(config).eval()
    torch.save(weights, tmp_path / "weights.pth")
    load_exactly(model, read_resnet_weights(tmp_path / "weights.pth"), tmp_path / "weights.pth")
    x = torch.randn(2, 3, 70, 54)
    with torch.no_grad():
        ours, expected = (
            model(x).pooler_output.flatten(1),
            torchvision_forward(weights, depths, x).mean((2, 3)),
        )
    assert torch.allclose(ours, expected, atol=1e-4, rtol=1e-4)


def test_frozen_resnet34_from_a_torchvision_file(tmp_path) -> None:
    depths, widths = (3, 4, 6, 3), (64, 128, 256, 512)
    weights = torchvision_state(depths, widths)
    torch.save(weights, tmp_path / "resnet34.pth")
    vision = Vision(kind="features", size=48, crop=40, backbone_weights=str(tmp_path / "resnet34.pth"))
    frames = np.random.default_rng(0).integers(0, 255, (3, 48, 48, 3), dtype=np.uint8)
    features = FrozenBackbone(vision).pictures(frames)[0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((torch.from_numpy(frames[:, 4:44, 4:44]).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = torchvision_forward(weights, depths, x).mean((2, 3))
    assert features.shape == (3, 512) and features.dtype == np.float16
    assert np.abs(features - expected.numpy()).max() < 4e-3 * expected.abs().max()


def test_a_clips_features_do_not_depend_on_its_neighbours() -> None:
    backbone = FrozenBackbone(RANDOM)
    frames = np.random.default_rng(1).integers(0, 255, (19, 40, 40, 3), dtype=np.uint8)
    whole = backbone.pictures(frames)[0]
    assert whole.shape == (19, backbone.dim)
    assert np.array_equal(backbone.pictures(frames[:16])[0], whole[:16])
    assert np.array_equal(backbone.pictures(frames[16:])[0], whole[16:])
    assert np.array_equal(backbone.pictures(frames[16:17])[0], whole[16:17])
    assert np.array_equal(FrozenBackbone(RANDOM).pictures(frames)[0], whole)
    assert backbone.pictures(frames[:0]).shape == (1, 0, 512)


def test_published_dinov2_names(tmp_path) -> None:
    """The published .pth fuses q, k and v; splitting them back must give the model we started from."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=28
    )
    model = Dinov2Model(config).eval()
    published: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        new = name.replace("encoder.layer.", "blocks.").replace(
            "embeddings.patch_embeddings.projection", "patch_embed.proj"
        )
        new = new.replace("embeddings.position_embeddings", "pos_embed").replace("embeddings.", "")
        new = new.replace("layernorm.", "norm.").replace("attention.o_proj", "attn.proj")
        new = new.replace("layer_scale1.lambda1", "ls1.gamma").replace("layer_scale2.lambda1", "ls2.gamma")
        published[new] = value
    for layer in range(2):
        for kind in ("weight", "bias"):
            parts = [published.pop(f"blocks.{layer}.attention.{part}_proj.{kind}") for part in "qkv"]
            published[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(parts)
    torch.save(published, tmp_path / "dinov2.pth")
    twin = Dinov2Model(config).eval()
    load_exactly(twin, read_dinov2_weights(tmp_path / "dinov2.pth"), tmp_path / "dinov2.pth")
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(model(x).pooler_output, twin(x).pooler_output)


def test_unfit_weights_are_named_in_one_line(tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, layer_type="basic")

    def fails(values: dict[str, torch.Tensor], message: str) -> None:
        save_file(values, path)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_exactly(ResNetModel(config), read_resnet_weights(path), path)
        assert "\n" not in str(caught.value)

    good = torchvision_state((1, 1, 1, 1), (8, 8, 8, 8))
    fails(
        {name: value for name, value in good.items() if name != "layer4.0.bn2.bias"},
        "lacks .*layers.0.layer.1",
    )
    fails(good | {"layer4.3.conv1.weight": torch.zeros(1)}, "strange")
    fails(good | {"conv1.weight": torch.zeros(8, 3, 3, 3)}, "another shape")
    fails(good | {"layer1.0.conv3.weight": torch.zeros(1)}, "bottleneck")
    with pytest.raises(CheckpointError, match="there is no"):
        FrozenBackbone(Vision(kind="features", backbone_weights=str(tmp_path / "none")))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_pickle_is_run(tmp_path) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"conv1.weight": Hostile()}))
    torch.save({"conv1.weight": Hostile()}, tmp_path / "worse.pth")
    for name in ("bad.pth", "worse.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_state_dict(tmp_path / name)
    assert not (tmp_path / "run").exists()


def test_random_weights_and_unknown_backbones_are_refused() -> None:
    with pytest.raises(RecipeError, match="backbone_weights"):
        FrozenBackbone(Vision(kind="features"))
    with pytest.raises(RecipeError, match="resnet34"):
        FrozenBackbone(Vision(kind="features", backbone="resnet50"))
    with pytest.raises(RecipeError, match="multiple of 14"):
        FrozenBackbone(
            Vision(kind="features", backbone="dinov2-vits14", crop=220, allow_random_backbone=True)
        )


def test_a_transformers_folder_loads(tmp_path) -> None:
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic"
    )
    model = ResNetModel(config)
    model.save_pretrained(tmp_path)
    values = read_resnet_weights(tmp_path)
    assert {name: value.shape for name, value in values.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }


def test_dinov2_as_transformers_writes_it(tmp_path) -> None:
    """save_pretrained renames the attention's layers back to what the hub's files call them."""
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model, twin = Dinov2Model(config), Dinov2Model(config)
    model.save_pretrained(tmp_path)
    load_exactly(twin, read_dinov2_weights(tmp_path), tmp_path)
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backbone,size", [("resnet34", 64), ("dinov2-vits14", 56)])
def test_a_row_depends_on_its_picture_alone_bit_for_bit(backbone, size, dtype) -> None:
    """Wherever it stands in a batch and whatever stands beside it: so batches may hold several clips' frames."""
    vision = Vision(
        kind="features", backbone=backbone, size=size, crop=size, backbone_batch=8, backbone_dtype=dtype,
        allow_random_backbone=True,
    )  # fmt: skip
    network = FrozenBackbone(vision)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (8, size, size, 3), dtype=torch.uint8, generator=generator)
    rows = network.rows(pixels, None)
    assert len(np.unique(rows, axis=0)) == 8
    for shift in (1, 3, 6):
        assert np.array_equal(network.rows(pixels.roll(shift, 0), None), np.roll(rows, shift, 0))
    for place in (0, 5, 7):
        alone = torch.full_like(pixels, 255 * (place % 2))
        alone[place] = pixels[place]
        assert np.array_equal(network.rows(alone, None)[place], rows[place])


def test_mixed_batches_give_each_clip_what_it_gets_alone() -> None:
    network = FrozenBackbone(RANDOM)
    rng = np.random.default_rng(3)
    clips = [rng.integers(0, 256, (n, 40, 40, 3), dtype=np.uint8) for n in (3, 8, 1, 17, 5, 2, 1)]
    batches: FeatureBatches[int] = FeatureBatches(network)
    computed = 0
    whole = network.rows

    def counted(*arguments):
        nonlocal computed
        computed += 1
        return whole(*arguments)

    network.rows = counted  # type: ignore[method-assign]
    mixed = [pair for tag, frames in enumerate(clips) for pair in batches.add(tag, frames)]
    mixed += batches.flush()
    assert computed == 5  # 37 frames in batches of 8; alone they take 9
    assert [tag for tag, _ in mixed] == list(range(len(clips)))
    for tag, rows in mixed:
        assert rows.shape == (1, len(clips[tag]), 512)
        assert np.array_equal(rows, network.pictures(clips[tag]))


def test_where_rows_are_not_independent_each_clip_has_its_own_batches() -> None:
    """As a GPU's kernels might have it: here a network whose rows see the whole batch."""
    network = FrozenBackbone(RANDOM)
    whole = network.rows
    network.rows = lambda x, behind, seeds: whole(x, behind, seeds) + np.arange(8)[:, None].astype(np.float16)  # type: ignore
    network.device = torch.device("meta")  # not a CPU: it is tried out
    batches: FeatureBatches[int] = FeatureBatches(network)
    rng = np.random.default_rng(3)
    clips = [rng.integers(0, 256, (n, 40, 40, 3), dtype=np.uint8) for n in (3, 8, 2)]
    network.device = torch.device("cpu")
    for tag, frames in enumerate(clips):
        ((done, rows),) = batches.add(tag, frames)
        assert done == tag and np.array_equal(rows, network.pictures(frames))
    assert list(batches.flush()) == []


def test_bfloat16_is_near_float32() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)
    whole, half = (
        FrozenBackbone(Vision(**vars(RANDOM) | {"backbone_dtype": dtype})).pictures(frames)[0].astype(float)
        for dtype in ("float32", "bfloat16")
    )
    assert not np.array_equal(whole, half)
    cosine = (whole * half).sum(1) / np.linalg.norm(whole, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() > 0.999
