"""Memory of Sign2GPT's stages against what torch's profiler sees of a step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories.memory import peak_bytes
from factories.sign2gpt import language_model, recipe
from test_counts import TOLERANCE
from typer.testing import CliRunner

from sage_scale.cli.main import app
from sage_scale.models.sign2gpt.model import Sign2GptPretrainer, Sign2GptTranslator
from sage_scale.models.sign2gpt.plan import SPATIAL, Sign2GptPlan
from sage_scale.planning.measure import autocast
from sage_scale.planning.step import ClipSize
from sage_scale.vision.packed import PackedVideo

CLIPS, FRAMES, WORDS = 6, 24, 20
WIDE = {"vit_width": 64, "width": 64, "ffn": 256, "heads": 4, "vit_heads": 4, "dropout": 0.1, "window": 7}


def wide_recipe(folder, kind="frames", precision="fp32", form="xglm", **changed):
    """A recipe whose language model is a small one of a form, saved in `folder`."""
    language_model(form).config.save_pretrained(folder)
    made = recipe(kind, feature_dim=48, **WIDE, **changed)
    stages = {name: replace(getattr(made, name), precision=precision) for name in ("pretrain", "finetune")}
    return replace(made, model=replace(made.model, language_model=str(folder)), **stages)


def clips_of(made) -> PackedVideo:
    frames = torch.randint(0, 256, (CLIPS * FRAMES, 3, 20, 20), dtype=torch.uint8)
    features = torch.randn(CLIPS * FRAMES, 48).half()
    kind = made.vision.kind
    return PackedVideo(
        segment_frames_N=torch.full((CLIPS,), FRAMES),
        clip_segments_B=torch.ones(CLIPS, dtype=torch.int64),
        frames_FCHW=frames if kind == "frames" else None,
        features_FC=features if kind == "features" else None,
        clip_seeds_B=torch.arange(CLIPS),
    )


def activations(step) -> float:
    """Of a plan, without weights; their copies in bfloat16 are made within a step."""
    return step.device_bytes - step.weights.total + step.weights.rounded


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "changed"),
    [("frames", {}), ("frames", {"vit_adapted": 1}), ("features", {}), ("frames", {"spatial": "resnet"})],
)
def test_stage_1(tmp_path, kind, changed, precision):
    made = wide_recipe(tmp_path, kind, precision, **changed)
    made = replace(made, model=replace(made.model, sign2gpt=replace(made.model.sign2gpt, start_jitter=0)))
    model, video = Sign2GptPretrainer(made, torch.randn(300, 6)).train(), clips_of(made)

    def step() -> None:
        with autocast(precision):
            loss, _ = model(video, torch.arange(CLIPS), torch.ones(CLIPS, dtype=torch.int64))
        loss.backward()

    step()  # gradients are there before
    plan = Sign2GptPlan(made, ClipSize(FRAMES, 1, WORDS), ranks=1, prototypes=300).plan("pretrain", CLIPS)
    stored = sum(x.nbytes for x in (video.frames_FCHW, video.features_FC) if x is not None)
    assert peak_bytes(step) == pytest.approx(activations(plan) - stored, rel=TOLERANCE)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("form", ["xglm", "gpt_neox", "qwen2"])
def test_stage_2_with_signs_as_they_are(tmp_path, form, precision):
    """The language model's side alone."""
    made = wide_recipe(tmp_path, "features", precision, form)
    made = replace(made, finetune=replace(made.finetune, freeze="visual"))
    model = Sign2GptTranslator(made, language_model(form)).train()
    vocabulary = model.decoder.language_model.config.vocab_size
    labels = torch.randint(4, vocabulary, (CLIPS, WORDS + 1))
    tokens, lengths = torch.randn(CLIPS * FRAMES // 2, 64), torch.full((CLIPS,), FRAMES // 2)

    def step() -> None:
        with autocast(precision):
            loss, _ = model.decoder(tokens, lengths, labels, labels.roll(1, 1), 0.1, torch.arange(CLIPS))
        loss.backward()

    step()
    plan = Sign2GptPlan(made, ClipSize(FRAMES, 1, WORDS), ranks=1).plan("finetune", CLIPS)
    assert peak_bytes(step) == pytest.approx(activations(plan), rel=TOLERANCE)


def test_the_published_recipe_and_what_makes_it_small(tmp_path):
    """By parts that can be counted by hand: 1.73 billion frozen numbers in bfloat16, 22 million in float32."""
    made = wide_recipe(tmp_path)
    chunked = replace(made, pretrain=replace(made.pretrain, chunk_frames=8))
    clip = ClipSize(200, 1, WORDS)
    whole, chunks = (Sign2GptPlan(one, clip, ranks=1) for one in (made, chunked))
    assert chunks.plan("pretrain", 16).parts[SPATIAL] < 0.1 * whole.plan("pretrain", 16).parts[SPATIAL]
    largest = whole.largest_batch("pretrain", 2e8)
    assert (
        whole.plan("pretrain", largest).device_bytes
        <= 0.92 * 2e8
        < whole.plan("pretrain", largest + 1).device_bytes
    )
    eight = Sign2GptPlan(made, clip, ranks=8).plan("finetune", 64)
    assert eight.operations == pytest.approx(whole.plan("finetune", 8).operations)
    assert eight.weights.frozen == whole.plan("finetune", 8).weights.frozen


def test_on_the_command_line():
    said = CliRunner().invoke(app, ["plan", "sign2gpt-demo", "--gpu", "rtx3090", "--batch", "64"])
    assert said.exit_code == 0, said.output
    for words in ("stage 1 on one rank", "stage 2 on one rank", "batch 64", "largest batch in 24 GB", "peak"):
        assert words in said.output
