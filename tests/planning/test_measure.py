"""Bytes that a forward pass keeps are the same on fake tensors as on real ones, whatever the size of the model."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import XGLMConfig

from sage_scale.config import load_recipe
from sage_scale.models.sign2gpt.plan import Sign2GptPlan
from sage_scale.planning.measure import REST, autocast, fake_tensor, kept_bytes, kept_per_clip, without_memory
from sage_scale.planning.step import ClipSize


def test_each_piece_of_memory_counts_once_and_weights_do_not():
    x, linear = torch.randn(10, 100, requires_grad=True), nn.Linear(100, 7, bias=False)
    assert kept_bytes(lambda: linear(x).sum(), linear, {}) == {REST: 10 * 100 * 4}
    # x, and its exponential
    assert kept_bytes(lambda: (x * x + x.exp()).sum(), nn.Module(), {}) == {REST: 2 * 10 * 100 * 4}


def test_a_part_is_the_innermost_named_module():
    inner, outer = nn.Linear(8, 16), nn.Sequential()
    outer.extend([nn.Linear(4, 8), inner])
    found = kept_bytes(
        lambda: outer(torch.randn(3, 4)).exp(), outer, {"outer": [outer], "inner": [inner, None]}
    )
    assert found == {"outer": 3 * 4 * 4, "inner": 3 * 8 * 4, REST: 3 * 16 * 4}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fake_tensors_keep_what_real_ones_do(precision):
    def make() -> nn.Module:
        return nn.Sequential(
            nn.Linear(6, 12), nn.GELU(), nn.LayerNorm(12), nn.Dropout(0.5), nn.Linear(12, 3)
        ).train()

    found = []
    for model, input_of in ((make(), torch.randn), (without_memory(make), fake_tensor)):

        def forward(clips: int, model=model, input_of=input_of):
            with autocast(precision):
                rows = model(input_of(clips * 5, 6))
                return rows[torch.arange(clips * 5) % 2 == 0].log_softmax(-1)  # rows that a mask names

        found.append(kept_per_clip(forward, model, {"layers": [model]}))
    assert found[0] == found[1] and found[0]["layers"] > 0 and found[0][REST] > 0


def test_a_language_model_of_1_7_billion_is_planned_in_seconds_without_weights(tmp_path):
    """From its configuration alone: 24 layers of 2,048, 256,008 subwords."""
    XGLMConfig(d_model=2048, ffn_dim=8192, num_layers=24, attention_heads=16).save_pretrained(tmp_path)
    recipe = load_recipe("sign2gpt-phoenix14t")
    recipe = replace(recipe, model=replace(recipe.model, language_model=str(tmp_path)))
    started = time.process_time()
    step = Sign2GptPlan(recipe, ClipSize(58, 1, 12), ranks=1).plan("finetune", 8)
    assert time.process_time() - started < 10
    # 1.73 billion in bfloat16 and DINOv2's 22 million in float32.
    assert step.weights.frozen == pytest.approx(2 * 1.7329e9 + 4 * 22e6, rel=0.01)
    # 24 layers of 13 subwords: some 60 values of 2,048 and four of 8,192, in two bytes or four.
    assert 8 * 24 * 13 * 2048 * 2 * 30 < step.parts["language model's layers"] < 8 * 24 * 13 * 2048 * 4 * 60
