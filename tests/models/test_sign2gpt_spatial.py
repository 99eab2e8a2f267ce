"""The spatial model: LoRA on the joined projections, frozen blocks without a graph, chunks, no padding."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from factories.sign2gpt import moved, recipe, settings, video
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

from sage_scale.config import Stage
from sage_scale.errors import CheckpointError, RecipeError
from sage_scale.models.sign2gpt.spatial import SpatialModel
from sage_scale.models.sign2gpt.vit import VisionTransformer


def vit(seed: int = 0, **changed) -> VisionTransformer:
    torch.manual_seed(seed)
    return VisionTransformer(settings(**changed))


def pictures(count: int = 3) -> torch.Tensor:
    return 255 * torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def test_at_the_start_it_is_transformers_dinov2():
    model = vit(vit_adapted=0).eval()
    x = (pictures() / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    )[:, None, None]
    wanted = model.dino(x).pooler_output
    torch.testing.assert_close(
        vit().eval().adapted_blocks(vit().eval().frozen_blocks(pictures())), wanted, atol=1e-5, rtol=0
    )
    assert model.adapted_blocks(model.frozen_blocks(pictures())).shape == wanted.shape


def cubic(x: float) -> float:
    """Keys' cubic convolution kernel with a = -0.75, as torch's bicubic has it."""
    x = abs(x)
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


@pytest.mark.parametrize(("stored", "height", "width"), [(37, 16, 16), (7, 4, 4), (5, 3, 8), (4, 6, 6)])
def test_positions_are_interpolated_as_the_published_model_does(stored, height, width):
    """A patch's position is read at ((place + 1/2) stored / (patches + 0.1) - 1/2), 16 weights at once, edges repeated;
    transformers reads at (place + 1/2) stored / patches - 1/2."""
    patch = 4
    model = vit(vit_image=stored * patch, vit_patch=patch)
    table = model.dino.embeddings.position_embeddings.data.normal_(
        generator=torch.Generator().manual_seed(stored)
    )[0].double()
    grid = table[1:].view(stored, stored, -1)

    def weights(patches: int) -> torch.Tensor:
        found = torch.zeros(patches, stored, dtype=torch.float64)
        for place in range(patches):
            at = (place + 0.5) * stored / (patches + 0.1) - 0.5
            for tap in range(math.floor(at) - 1, math.floor(at) + 3):
                found[place, min(max(tap, 0), stored - 1)] += cubic(at - tap)
        return found

    wanted = torch.einsum("yh,xw,hwd->yxd", weights(height), weights(width), grid).flatten(0, 1)
    given = torch.zeros(1, height * width + 1, table.shape[1])
    found = model.dino.embeddings.interpolate_pos_encoding(given, height * patch, width * patch)[0]
    torch.testing.assert_close(found.double(), torch.cat([table[:1], wanted]), rtol=1e-4, atol=1e-4)
    theirs = Dinov2Embeddings.interpolate_pos_encoding(
        model.dino.embeddings, given, height * patch, width * patch
    )
    assert (theirs[0] - found).abs().max() > 0.01
    if height == width:
        below = model.frozen_blocks(torch.zeros(1, 3, height * patch, width * patch))
        assert below.shape == (1, height * width + 1, table.shape[1])


@torch.no_grad()
def test_joined_pair_equals_its_product_added_to_the_frozen_weights():
    """W + scale * B A in every adapted layer, rows of the joined pair dealt to queries, keys and values."""
    adapted = moved(vit()).eval()
    plain = vit(vit_adapted=0).eval()
    for block, merged in zip(adapted.dino.encoder.layer[1:], plain.dino.encoder.layer[1:]):
        parts = block.attention.qkv_lora.product().chunk(3)
        for name, part in zip(("q_proj", "k_proj", "v_proj"), parts):
            getattr(merged.attention, name).weight += part
        merged.attention.o_proj.weight += block.attention.o_proj.lora.product()
        merged.mlp.fc1.weight += block.mlp.fc1.lora.product()
        merged.mlp.fc2.weight += block.mlp.fc2.lora.product()
    x = pictures() * plain.scale + plain.shift
    wanted = plain.dino(x).pooler_output
    got = adapted.adapted_blocks(adapted.frozen_blocks(pictures()))
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=0)
    assert (wanted - vit(vit_adapted=0).eval().dino(x).pooler_output).abs().max() > 0.01


def test_only_adapters_projection_and_norm_train_and_frozen_blocks_have_no_graph():
    model = SpatialModel(recipe()).eval()
    below = model.backbone.frozen_blocks(pictures())
    assert not below.requires_grad
    model(video()).square().sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    lora = [name for name in trained if ".lora." in name or "qkv_lora" in name]
    assert len(lora) == 2 * 4 * 2 and trained - set(lora) == {
        f"{part}.{kind}" for part in ("project", "norm") for kind in ("weight", "bias")
    }


def test_chunks_change_neither_rows_nor_gradients():
    whole, chunked = (moved(SpatialModel(recipe(), Stage(chunk_frames=chunk))).double() for chunk in (0, 6))
    chunked.load_state_dict(whole.state_dict())
    rows = []
    for model in (whole.train(), chunked.train()):
        rows.append(model(video()))
        (rows[-1] * torch.arange(16)).square().sum().backward()
    torch.testing.assert_close(rows[1], rows[0])
    for name, parameter in whole.named_parameters():
        if parameter.requires_grad:
            other = dict(chunked.named_parameters())[name].grad
            torch.testing.assert_close(other, parameter.grad, atol=1e-8, rtol=1e-8, msg=name)
    with pytest.raises(ValueError, match="clip_seeds_B"):
        chunked(replace(video(), clip_seeds_B=None))


def test_clip_is_the_same_alone_and_with_others():
    model = moved(SpatialModel(recipe())).eval()
    together = model(video())
    alone = torch.cat([model(video((clip,))) for clip in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    train = model.train()
    train.norm.mode = "frozen"  # dropout alone is left to differ
    torch.testing.assert_close(train(video((1,))), train(video())[7:19], atol=1e-5, rtol=0)


def test_no_clips_give_no_rows_and_zero_gradients():
    for changed in ({}, {"spatial": "resnet"}):
        model = SpatialModel(recipe(**changed)).train()
        rows = model(video(()))
        rows.sum().backward()
        assert rows.shape == (0, 16)
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters() if p.requires_grad)


def test_resnet_and_stored_features_stand_in():
    resnet = SpatialModel(recipe(spatial="resnet")).eval()
    assert all(parameter.requires_grad for parameter in resnet.parameters())
    assert resnet(video()).shape == (20, 16)
    stored = SpatialModel(recipe("features")).eval()
    assert stored.backbone is None and stored(video(kind="features")).shape == (20, 16)
    with pytest.raises(ValueError, match="features"):
        stored(video())


def test_weights_come_from_the_published_file(tmp_path):
    """torch.hub's names, queries, keys and values joined; a file of another shape is named in one line."""
    source = vit(seed=4)
    state = {}
    for name, value in source.dino.state_dict().items():
        if ".attention." in name or ".mlp." in name:
            name = name.replace(".base.", ".")
        if name.endswith(("q_proj.weight", "q_proj.bias")):
            kind = name.rsplit(".", 1)[1]
            stem = name.rsplit(".", 2)[0]
            parts = [source.dino.get_parameter(f"{stem}.{part}_proj.{kind}") for part in "qkv"]
            state[f"blocks.{stem.split('.')[2]}.attn.qkv.{kind}"] = torch.cat(parts).detach()
        elif ("_proj." in name and "o_proj" not in name) or "lora" in name:
            continue
        else:
            name = name.replace("embeddings.position_embeddings", "pos_embed").replace(
                "encoder.layer.", "blocks."
            )
            name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
            name = name.removeprefix("embeddings.").replace("attention.o_proj", "attn.proj")
            name = name.replace("layer_scale1.lambda1", "ls1.gamma").replace(
                "layer_scale2.lambda1", "ls2.gamma"
            )
            state[name.replace("layernorm.", "norm.")] = value
    torch.save(state, tmp_path / "dinov2.pth")
    loaded = vit(seed=8, vit_weights=str(tmp_path / "dinov2.pth")).eval()
    with torch.no_grad():
        wanted = source.eval().adapted_blocks(source.frozen_blocks(pictures()))
        torch.testing.assert_close(loaded.adapted_blocks(loaded.frozen_blocks(pictures())), wanted)
    with pytest.raises(CheckpointError, match=r"dinov2\.pth"):
        vit(vit_weights=str(tmp_path / "dinov2.pth"), vit_width=32)


def test_recipe_refuses_what_cannot_be():
    for changed in (
        {"vit_patch": 5},
        {"window": 4},
        {"downsample_after": 4},
        {"heads": 3},
        {"vit_adapted": 9},
    ):
        with pytest.raises(RecipeError, match=r"model\.sign2gpt"):
            recipe(**changed)
