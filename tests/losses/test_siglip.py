"""SigLIP's sigmoid loss: transformers' own as a peer, its gradients, its start, half precision."""

from __future__ import annotations

import pytest
import torch
from made_tokens import Options, aligned_tokens, error, pairwise_sigmoid, random_lengths
from transformers import SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig

from sage_scale.config import Clcl
from sage_scale.losses import objective_of, sigmoid_loss


def test_the_loss_is_that_of_transformers():
    """Its model's loss from its own embeddings, scale and bias."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = SiglipTextConfig(
        vocab_size=32, max_position_embeddings=8, projection_size=16, bos_token_id=0, eos_token_id=1, **sizes
    )
    vision = SiglipVisionConfig(image_size=8, patch_size=4, **sizes)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        found = model(
            input_ids=torch.randint(0, 32, (5, 8)), pixel_values=torch.randn(5, 3, 8, 8), return_loss=True
        )
        Z = found.image_embeds @ found.text_embeds.T  # of unit length
        ours = sigmoid_loss(model.logit_scale.exp() * Z + model.logit_bias)
    torch.testing.assert_close(ours, found.loss)


@pytest.mark.parametrize("name", ["siglip", "siglip_tokens"])
def test_it_starts_where_the_paper_does_and_hardly_counts_negatives(name):
    """t = 10 and b = -10: at Z = 0 each negative costs log(1 + e^-10), each positive log(1 + e^10)."""
    objective = objective_of(Clcl(loss=name))
    assert (objective.scale_start, objective.bias_start) == (10.0, -10.0)
    Z = torch.zeros(64, 64, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    loss = objective.loss(Z, Z, 10 * one, bias=-10 * one)
    assert loss.item() == pytest.approx(torch.log1p(torch.exp(10 * one)).item() + 63 * 4.54e-5, rel=1e-4)
    assert objective_of(Clcl(loss=name, scale_init=20.0)).scale_start == 20


def test_pairs_of_the_same_text_have_no_term():
    options = Options(loss="siglip_tokens", same_text="masked")
    Zv, Zt = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([7, 8, 7, 7])
    found = objective_of(options).loss(Zv, Zt, 3.0, ids, bias=-1.0)
    torch.testing.assert_close(found, pairwise_sigmoid(Zv, Zt, 3.0, -1.0, options, ids))
    other = Zv.clone()
    other[0, 2] += 5  # of another clip with the same text
    torch.testing.assert_close(objective_of(options).loss(other, Zt, 3.0, ids, bias=-1.0), found)


@pytest.mark.parametrize("name", ["siglip", "siglip_tokens"])
def test_gradcheck_of_tokens_scale_and_bias(name):
    n, m = torch.tensor([3, 1, 2]), torch.tensor([2, 4, 1])
    visual, text = aligned_tokens(n.tolist(), m.tolist(), 3, 0)
    scale, bias = torch.tensor([4.0], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    objective = objective_of(Options(loss=name))
    inputs = [value.requires_grad_() for value in (visual, text, scale, bias)]

    def share(v, t, scale, bias):
        return objective.share(v, t, n, m, scale, bias=bias)

    assert torch.autograd.gradcheck(share, inputs, atol=1e-6)


def test_half_precision_is_right_to_a_hundredth():
    n, m = random_lengths(6, 12, 1), random_lengths(6, 9, 2)
    visual, text = aligned_tokens(n, m, 32, 3)
    objective, results = objective_of(Options(loss="siglip_tokens")), []
    for dtype in (torch.float64, torch.bfloat16):
        v = visual.bfloat16().to(dtype).requires_grad_()
        number = torch.float64 if dtype == torch.float64 else torch.float32
        bias = torch.tensor([-2.0], dtype=number, requires_grad=True)
        scale = torch.tensor([10.0], dtype=number)
        t = text.bfloat16().to(dtype)
        share = objective.share(v, t, torch.tensor(n), torch.tensor(m), scale, bias=bias)
        share.backward()
        results.append((share.detach(), v.grad, bias.grad))
    for exact, found in zip(*results):
        assert error(found, exact.double()) < 1e-2


def test_no_clips_cost_nothing():
    scale, bias = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    empty, none = torch.zeros(0, 6, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    share = objective_of(Options(loss="siglip")).share(empty, torch.zeros(0, 6), none, none, scale, bias=bias)
    share.backward()
    assert share.item() == scale.grad.item() == bias.grad.item() == 0
