"""What stage 1 trains and what stage 2 takes over (SAGE, Table 5), row by row of the table `sage-5`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories.models import SENTENCES, features_recipe, small_mbart, small_tokenizer, video
from torch import Tensor, nn

from sage_scale.config import Recipe, load_recipe
from sage_scale.config.reading import changed
from sage_scale.errors import CheckpointError
from sage_scale.experiments.ablation_table import load_table
from sage_scale.models.sage.describe import describe
from sage_scale.models.sage.export import save_visual
from sage_scale.models.sage.finetuning import load_stage1
from sage_scale.models.sage.mbart import TextEncoder
from sage_scale.models.sage.model import SageAligner, SageTranslator
from sage_scale.training.stage import STAGE1

ROWS = {cell.name: cell for cell in load_table("sage-5").cells}
LAYERS = {"VLE, stage 2 from VLE": 0, "VLE + 3L TE, stage 2 from VLE": 3, "VLE + 12L TE, stage 2 from VLE": 12,
          "VLE + 12L TE, stage 2 from VLE and TE": 12}  # fmt: skip
"""Rows with a stage 1, and the layers of its context encoder."""


def row_recipe(name: str, base: Recipe | None = None) -> Recipe:
    return changed(base or features_recipe(dropout=0.0), ROWS[name].changes)


def stage1(recipe: Recipe, folder: Path) -> SageAligner:
    """Stage 1 with weights of its own, stored in a run's folder."""
    torch.manual_seed(5)
    model = SageAligner(recipe, small_mbart(encoder_layers=12))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    (folder / STAGE1).parent.mkdir(parents=True)
    save_visual(model, folder / STAGE1)
    return model


def translator(recipe: Recipe, layers: int = 12) -> SageTranslator:
    torch.manual_seed(6)
    return SageTranslator(recipe, small_mbart(encoder_layers=layers))


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """Names of tensors that are equal in both."""
    return {name for name in one.keys() & other.keys() if torch.equal(one[name], other[name])}


def test_the_rows_are_the_papers():
    assert set(ROWS) == {"no stage 1", *LAYERS}
    assert ROWS["no stage 1"].stages == ("finetune",)
    assert [cell.published["bleu4"] for cell in ROWS.values()] == [16.01, 21.70, 23.81, 23.43, 22.88]


@pytest.mark.parametrize("name", LAYERS)
def test_what_stage_1_trains(name):
    """All parameters of encoder, mapper and context move the loss; without layers the embedding level is all of it."""
    recipe, language_model = row_recipe(name), small_mbart(encoder_layers=12)
    model = SageAligner(recipe, language_model)
    assert len(model.context.layers if model.context else []) == LAYERS[name]
    text = TextEncoder(language_model, small_tokenizer()).encode(SENTENCES[:3], ["de"] * 3)
    share, parts = model(video(kind="features"), text)
    share.backward()
    levels = {"loss_embedding"} | ({"loss_hidden"} if LAYERS[name] else set())
    assert {part for part in parts if part.startswith("loss")} == levels
    still = {name for name, p in model.named_parameters() if not p.grad.abs().sum()}
    # The convolution's bias goes through BatchNorm, a key's bias through a softmax: rounding alone may be left.
    still -= {n for n in still if n == "visual.temporal.bias" or n.endswith("k_proj.bias")}
    assert still == (set() if LAYERS[name] else {"log_scale_hidden"})
    assert all(parameter.grad is None for parameter in language_model.parameters())


@pytest.mark.parametrize("name", ROWS)
def test_what_stage_2_takes_over(name, tmp_path):
    recipe = row_recipe(name)
    first = {} if name == "no stage 1" else values(stage1(recipe, tmp_path))
    model = translator(recipe)
    before = values(model)
    load_stage1(model, recipe, tmp_path)
    after = values(model)
    visual = {n for n in after if n.startswith(("visual.", "mapper."))}
    encoder = {n for n in after if n.startswith("language_model.model.encoder.")}
    tokens = {n for n in encoder if n.endswith("embed_tokens.weight")}
    if name == "no stage 1":
        assert same(before, after) == set(after)
        return
    assert visual <= same(after, first)
    taken = encoder - tokens if name.endswith("and TE") else set()
    assert same(before, after) >= set(after) - visual - taken
    found = {n.removeprefix("language_model.model.encoder."): value for n, value in after.items()}
    context = {n.removeprefix("context."): value for n, value in first.items() if n.startswith("context.")}
    assert len(same(found, context)) == len(taken)


def test_a_shallower_context_encoder_keeps_mbarts_last_norm_and_a_deeper_one_is_refused(tmp_path):
    recipe = changed(
        features_recipe(dropout=0.0), {"model.context_layers": 3, "finetune.init": "visual_context"}
    )
    first = values(stage1(recipe, tmp_path))
    model = translator(recipe)
    before = values(model.language_model.get_encoder())
    load_stage1(model, recipe, tmp_path)
    after = values(model.language_model.get_encoder())
    own = {n.removeprefix("context."): value for n, value in first.items() if n.startswith("context.")}
    norm = {"layer_norm.weight", "layer_norm.bias"}
    assert same(after, own) == set(own) - norm
    assert same(before, after) == set(after) - (set(own) - norm)
    with pytest.raises(CheckpointError, match="context encoder of 3 layers, the language model's encoder 2"):
        load_stage1(translator(recipe, layers=2), recipe, tmp_path)
    without = changed(recipe, {"model.context_layers": 0, "clcl.beta": 1.0})
    stage1(without, tmp_path / "without")
    with pytest.raises(CheckpointError, match="no context encoder to take over"):
        load_stage1(translator(without), without, tmp_path / "without")


@pytest.mark.parametrize("name", LAYERS)
def test_full_size_counts(name):
    """mBART-large's encoder without its token embeddings is the context encoder of 12 layers."""
    parts = {part.name: part for part in describe(row_recipe(name, load_recipe("sage-phoenix14t")))}
    context = parts.pop("context encoder (stage 1)", None)
    layer = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 2 * 2 * 1024
    around = 1026 * 1024 + 2 * 2 * 1024
    wanted = LAYERS[name] * layer + around if LAYERS[name] else 0
    assert (context.stage1 if context else 0) == wanted
    assert context is None or context.stage2 == 0
    resnet, conv, mapper = 21_284_672, 5 * 512 * 1024 + 3 * 1024, 3 * (3 * 1024 + 1024 * 1024)
    assert sum(part.stage1 for part in parts.values()) == resnet + conv + mapper + 2
    assert sum(part.stage2 for part in parts.values()) == resnet + conv + mapper + 610_879_488
