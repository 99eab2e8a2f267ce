"""Layers computed again in the backward pass: the same gradients, dropout included, from less memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories.models import SENTENCES, moved_norms, recipe, small_mbart, small_tokenizer, video
from torch.autograd.graph import saved_tensors_hooks

from sage_scale.models.sage.mbart import TextEncoder, make_labels
from sage_scale.models.sage.model import SageAligner, SageTranslator


def gradients_and_kept(stage: str, recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of one step with dropout, and bytes that autograd kept between forward and backward."""
    made = recipe(context_layers=8, context_init="random", dropout=0.3, batchnorm="frozen")
    made = replace(made, **{stage: replace(getattr(made, stage), recompute=recompute)})
    torch.manual_seed(0)
    language_model = small_mbart()
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    clips = video([0, 1, 2], background=True)
    if stage == "pretrain":
        model = moved_norms(SageAligner(made, language_model)).train()
        text = TextEncoder(language_model, small_tokenizer()).encode(SENTENCES[:3], ["de"] * 3)
        with saved_tensors_hooks(note, lambda tensor: tensor):
            loss, _ = model(clips, text)
    else:
        language_model.config.dropout = 0.3
        model = moved_norms(SageTranslator(made, language_model)).train()
        labels, inputs = make_labels(small_tokenizer(), SENTENCES[:3], ["de"] * 3)
        with saved_tensors_hooks(note, lambda tensor: tensor):
            loss, _ = model(clips, labels, inputs, 0.1)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    total = sum(size for place, size in kept.items() if place not in weights)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, total


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_gradients_are_equal_and_less_is_kept(stage):
    whole, much = gradients_and_kept(stage, False)
    again, less = gradients_and_kept(stage, True)
    assert whole.keys() == again.keys() and whole
    for name, gradient in whole.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    assert less < 0.85 * much
