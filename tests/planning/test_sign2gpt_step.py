"""Operations of Sign2GPT's steps against what torch's counter sees of them, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories.models import SENTENCES
from factories.sign2gpt import language_model, recipe, video, xglm_tokenizer
from torch.utils.flop_counter import FlopCounterMode

from sage_scale.models.sign2gpt.decoder import make_texts
from sage_scale.models.sign2gpt.model import Sign2GptPretrainer, Sign2GptTranslator
from sage_scale.models.sign2gpt.operations import Sign2GptOperations
from sage_scale.planning.step import StepSize

CLIPS = (1, 1, 1)
"""Of one length: the decoder pads, which is no work that was asked for."""
SPATIAL = {
    "dinov2": {},
    "all of dinov2 frozen": {"vit_adapted": 0},
    "one block adapted": {"vit_adapted": 1},
    "resnet": {"spatial": "resnet"},
}
# Global attention, whose products are all needed; wide, so that what is not a product of weights does not show.
WIDE = {"window": 0, "vit_width": 48, "width": 48, "ffn": 96, "dropout": 0.0, "drop_path": 0.0, "lora_dropout": 0.0,
        "start_jitter": 0}  # fmt: skip


@pytest.fixture(autouse=True)
def attention_is_counted():
    """The fused attention of a CPU is not; the plain one is products that the counter sees."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


def size_of(clips, tokens, texts=0.0) -> StepSize:
    return StepSize(len(CLIPS), float(clips.segment_frames_N.sum()), float(tokens), float(texts))


@pytest.mark.parametrize("spatial", SPATIAL)
def test_stage_1(spatial):
    made = recipe(**WIDE, **SPATIAL[spatial])
    model = Sign2GptPretrainer(made, torch.randn(30, 6)).train()
    clips = video(CLIPS)
    with FlopCounterMode(display=False) as counter:
        loss, _ = model(clips, torch.tensor([1, 2, 5]), torch.tensor([1, 1, 1]))
        loss.backward()
    tokens = model.sign_encoder.token_lengths(clips.segment_frames_N).sum()
    counted = Sign2GptOperations(made, "pretrain", prototypes=30)(size_of(clips, tokens))
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("along", [0.0, 0.1])
@pytest.mark.parametrize("freeze", ["none", "visual"])
@pytest.mark.parametrize("form", ["xglm", "gpt_neox", "qwen2"])
def test_stage_2(form, freeze, along):
    made = recipe(**WIDE, language_lr_scale=along)
    made = replace(made, finetune=replace(made.finetune, freeze=freeze))
    model = Sign2GptTranslator(made, language_model(form)).train()
    clips = video(CLIPS)
    labels, inputs = make_texts(xglm_tokenizer(), [SENTENCES[0]] * len(CLIPS), 60)
    tokens_ND, lengths_B = model.encode(clips)
    with FlopCounterMode(display=False) as counter:
        if freeze == "none":
            tokens_ND, lengths_B = model.encode(clips)
        else:
            tokens_ND = tokens_ND.detach()
        loss, count = model.decoder(tokens_ND, lengths_B, labels, inputs)
        loss.backward()
    size = size_of(clips, lengths_B.sum(), count)
    counted = Sign2GptOperations(made, "finetune", model.decoder.language_model.config)(size)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_a_local_window_and_features_cost_less():
    size = StepSize(clips=4, frames=2000.0, visual_tokens=1000.0, text_tokens=60.0)
    counts = [
        Sign2GptOperations(made, "pretrain", prototypes=30)(size)
        for made in (recipe("features"), recipe(vit_adapted=1), recipe(), recipe(window=0))
    ]
    assert counts == sorted(counts) and len(set(counts)) == 4
