"""Sign2GPT as a whole: Table 1b's counts, both stages, what passes from one to the other, and padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories.models import SENTENCES
from factories.sign2gpt import language_model, moved, recipe, video, xglm_tokenizer
from typer.testing import CliRunner

from sage_scale.cli.models import app
from sage_scale.config import Stage, load_recipe
from sage_scale.errors import CheckpointError
from sage_scale.models.sign2gpt.decoder import make_texts
from sage_scale.models.sign2gpt.describe import describe
from sage_scale.models.sign2gpt.model import Sign2GptPretrainer, Sign2GptTranslator, load_signs
from sage_scale.training.optimizer import make_optimizer, parameter_groups

TABLE_1B = {
    "spatial": (22_328_448, 271_872),
    "sign encoder": (12_613_632, 12_613_632),
    "decoder": (1_736_710_528, 3_803_520),
}


def test_counts_of_the_ablations():
    """ResNet-18 has the published 11,176,512 parameters, all trained (Table 7: "11 million")."""
    resnet = ["model.sign2gpt.spatial=resnet", "model.backbone.depths=[2,2,2,2]"]
    spatial = describe(load_recipe("sign2gpt-phoenix14t", resnet))[0]
    assert spatial.parameters == spatial.stage2 == 11_176_512 + 512 * 512 + 512 + 2 * 512
    stored = ["vision.kind=features", "model.feature_dim=384"]
    spatial = describe(load_recipe("sign2gpt-phoenix14t", stored))[0]
    assert spatial.parameters == spatial.stage2 == 512 * 384 + 512 + 2 * 512
    signs = ["model.sign2gpt.spatial=signs", "vision.kind=features"]
    parts = describe(load_recipe("sign2gpt-phoenix14t", signs))
    assert [(part.name, part.stage2) for part in parts] == [("decoder", 3_803_520)]
    bare = ["model.sign2gpt.layers=0", "model.sign2gpt.downsample_after=0", "model.sign2gpt.vit_adapted=0"]
    without = describe(load_recipe("sign2gpt-phoenix14t", bare))
    assert [part.stage2 for part in without] == [512 * 384 + 512 + 2 * 512, 0, 3_803_520]


@pytest.mark.parametrize("name", ["sign2gpt-phoenix14t", "sign2gpt-csl-daily"])
def test_counts_are_those_of_table_1b(name):
    parts = describe(load_recipe(name))
    assert {part.name: (part.parameters, part.stage2) for part in parts} == TABLE_1B
    assert sum(part.parameters for part in parts) == 1_771_652_608
    assert sum(part.stage2 for part in parts) == 16_689_024


def test_describe_prints_them():
    shown = CliRunner().invoke(app, ["describe", "sign2gpt-phoenix14t"])
    assert shown.exit_code == 0
    for count in (22_328_448, 271_872, 12_613_632, 1_736_710_528, 3_803_520, 1_771_652_608, 16_689_024):
        assert f"{count:,}" in shown.stdout


def pretrainer(**changed) -> Sign2GptPretrainer:
    torch.manual_seed(0)
    return moved(Sign2GptPretrainer(recipe(**changed), torch.randn(9, 6))).eval()


def translator(**changed) -> Sign2GptTranslator:
    torch.manual_seed(1)
    return Sign2GptTranslator(recipe(**changed), language_model("xglm")).eval()


TARGETS = torch.tensor([0, 3, 3, 8]), torch.tensor([3, 1, 0])


def test_stage_1_learns_which_prototypes_occur_and_its_temperatures():
    model = pretrainer().train()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    losses = []
    for _ in range(12):
        loss, count = model(video(), *TARGETS)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append(loss.item())
    assert count == 27 and losses[-1] < 0.9 * losses[0]
    same = {name for name, parameter in model.named_parameters() if torch.equal(parameter, start[name])}
    assert same == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {"head.tau_time", "head.tau_class"} <= start.keys() - same


def test_temperatures_are_clamped():
    model = pretrainer()
    presence = []
    for value in (0.001, 0.01, 1.0, 5.0):
        for tau in (model.head.tau_time, model.head.tau_class):
            tau.data.fill_(value)
        presence.append(model.scores(video()).presence_BU)
    assert torch.equal(presence[0], presence[1]) and torch.equal(presence[2], presence[3])
    assert not torch.allclose(presence[1], presence[2])


@pytest.mark.parametrize(("start", "sign"), [(0.011, 1), (0.99, -1)])
def test_a_temperature_at_its_bound_comes_back(start, sign):
    """The gradient leads beyond the bound for some steps, then the other way; a clamp in the forward pass alone has no
    gradient there."""
    model = pretrainer()
    low, high = model.head.settings.tau_min, model.head.settings.tau_max
    stage = Stage(optimizer="sgd", lr=0.03, momentum=0.0)
    optimizer = make_optimizer(parameter_groups(model, stage), stage, torch.device("cpu"))
    taus = model.head.tau_time, model.head.tau_class
    for tau in taus:
        tau.data.fill_(start)
    for step in range(4):
        model(video(), *TARGETS)[0].backward()
        for tau in taus:
            assert tau.grad.abs().sum() > 0
        optimizer.zero_grad()
        for tau in taus:
            tau.grad = torch.full((1,), float(sign if step < 2 else -sign))
        optimizer.step()
        for tau in taus:
            assert low - 1e-8 <= tau.item() <= high
    for tau in taus:  # two steps back from the bound
        assert tau.item() == pytest.approx(low + 2 * 0.03 if sign > 0 else high - 2 * 0.03, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("padding", ["none", "released"])
def test_other_clips_change_a_clip_only_with_the_released_codes_padding(padding):
    model = pretrainer(padding=padding)
    together = model.scores(video()).presence_BU
    alone = torch.cat([model.scores(video((clip,))).presence_BU for clip in range(3)])
    assert torch.allclose(together, alone, atol=1e-5) == (padding == "none")


def test_stage_2_takes_over_what_was_trained_and_nothing_else():
    stage1, stage2 = pretrainer(), translator()
    trained = {name for name, parameter in stage1.named_parameters() if parameter.requires_grad}
    buffers = {name for name, _ in stage1.named_buffers()}
    state = {name: value for name, value in stage1.state_dict().items() if name in trained | buffers}
    load_signs(stage2, state)
    for name in trained:
        if not name.startswith("head."):
            assert torch.equal(stage2.get_parameter(name), stage1.get_parameter(name))
    assert torch.equal(stage2.spatial.norm.running_mean, stage1.spatial.norm.running_mean)
    del state["sign_encoder.layers.0.scale1"]
    with pytest.raises(CheckpointError, match=r"layers\.0\.scale1"):
        load_signs(stage2, state)


def test_stage_2_learns_and_translates():
    model = translator(dropout=0.0, drop_path=0.0, lora_dropout=0.0).train()
    labels_BL, inputs_BL = make_texts(xglm_tokenizer(), SENTENCES[:3])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.03)
    losses = []
    for _ in range(15):
        loss, count = model(video(), labels_BL, inputs_BL, 0.1)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    sentences = model.eval().generate(video(), xglm_tokenizer(), ["de"] * 3, beams=2, max_tokens=12)
    assert len(sentences) == 3 and all(isinstance(text, str) for text in sentences)
    assert model.generate(video(()), xglm_tokenizer()) == []


def test_frozen_signs_leave_the_decoders_adapters_alone():
    model = translator()
    for part in (model.spatial, model.sign_encoder):  # as with stored sign features (Sign(Z)2GPT, Table 2)
        part.requires_grad_(False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("decoder.") for name in trained)


def test_sign_features_that_were_written_once_give_the_same_loss_as_their_video():
    """Sign(Z)2GPT: Z of a stage-1 model as the dataset's features, the decoder alone behind them."""
    whole = moved(translator())
    Z_ND, lengths_B = whole.encode(video())
    stored = replace(video(), frames_FCHW=None, features_FC=Z_ND.detach(), segment_frames_N=lengths_B)
    signs = Sign2GptTranslator(
        recipe("features", spatial="signs", feature_dim=16), language_model("xglm")
    ).eval()
    decoder = {name: value for name, value in whole.state_dict().items() if name.startswith("decoder.")}
    signs.load_state_dict(decoder)
    texts = make_texts(xglm_tokenizer(), SENTENCES[:3])
    torch.testing.assert_close(signs(stored, *texts)[0], whole(video(), *texts)[0])
    with pytest.raises(ValueError, match="sign features"):
        signs(video(), *texts)


def test_without_sign_encoder_the_spatial_rows_are_the_tokens():
    model = pretrainer(layers=0, downsample_after=0)
    tokens_ND, lengths_B = model.encode(video())
    assert torch.equal(tokens_ND, model.spatial(video())) and lengths_B.tolist() == [7, 12, 1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_under_autocast_losses_and_gradients_are_near_those_of_float32(dtype):
    exact, rounded = (moved(translator(language_dtype=kind)).train() for kind in ("float32", dtype))
    texts = make_texts(xglm_tokenizer(), SENTENCES[:3])
    wanted = exact(video(), *texts, 0.1)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = rounded(video(), *texts, 0.1)[0]
    assert got.dtype == torch.float32 and got.item() == pytest.approx(wanted.item(), rel=0.03)
    for loss in (wanted, got):
        loss.backward()
    a, b = (
        torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        for model in (exact, rounded)
    )
    assert torch.cosine_similarity(a, b, dim=0) > 0.97


def test_biases_norms_gates_layer_scale_and_temperatures_are_not_decayed():
    stage = load_recipe("sign2gpt-phoenix14t").finetune
    for model in (translator(), pretrainer()):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for group in parameter_groups(model, stage):
            for parameter in group["params"]:
                name = names[id(parameter)]
                alone = (
                    name.endswith(("bias", "gate", "scale1", "scale2", "tau_time", "tau_class"))
                    or "norm" in name
                )
                assert (group["weight_decay"] == 0) == alone, name
