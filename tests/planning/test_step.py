"""Operations of a step against what torch's counter sees of one."""

from __future__ import annotations

import pytest
from factories.models import SENTENCES, recipe, small_mbart, small_tokenizer, video
from torch.utils.flop_counter import FlopCounterMode

from sage_scale.models.sage.mbart import make_labels
from sage_scale.models.sage.model import SageTranslator
from sage_scale.models.sage.operations import StepOperations
from sage_scale.planning.step import GPUS, StepSize, gpu_named


def test_stage_2_counts_what_torch_counts():
    """Forward and backward; no gradient leaves the first convolution."""
    made = recipe(context_layers=1, dropout=0.0, batchnorm="frozen")
    language_model = small_mbart()
    language_model.set_attn_implementation("eager")  # the fused attention of a CPU is not counted
    model = SageTranslator(made, language_model).train()
    clips = video([0, 0, 0])
    labels, inputs = make_labels(small_tokenizer(), [SENTENCES[0]] * 3, ["de"] * 3)
    with FlopCounterMode(display=False) as counter:
        model(clips, labels, inputs)[0].backward()
    size = StepSize(
        clips=3,
        frames=float(clips.segment_frames_N.sum()),
        visual_tokens=float(clips.clip_segments_B.sum()),
        text_tokens=float((labels != -100).sum()),
    )
    counted = StepOperations(made, "finetune", language_model.config)(size)
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_frozen_parts_and_losses_count_less_and_more():
    from dataclasses import replace

    made, config = recipe(context_layers=1, dropout=0.0, batchnorm="frozen"), small_mbart().config
    size = StepSize(clips=4, frames=200.0, visual_tokens=40.0, text_tokens=30.0)
    counts = []
    for freeze in ("visual", "backbone", "none"):
        frozen = replace(made, finetune=replace(made.finetune, freeze=freeze))
        counts.append(StepOperations(frozen, "finetune", config)(size))
    assert counts == sorted(counts) and len(set(counts)) == 3
    twice = StepSize(clips=8, frames=400.0, visual_tokens=80.0, text_tokens=60.0)
    first = StepOperations(made, "pretrain", config)
    pairs = 40.0 * 30.0 * 6 * config.d_model * 2  # two levels
    assert first(twice) - 2 * first(size) == pytest.approx(2 * pairs, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "key"),
    [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA GeForce RTX 4090", "rtx4090")],
)
def test_devices_are_known_by_their_drivers_name(name, key):
    assert gpu_named(name) is GPUS[key]
    assert gpu_named("Radeon 9000") is None
