"""What the model asks of the loss, in one process; ranks are in test_ring.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from made_tokens import Options, reference_loss

from sage_scale.losses import objective_of

VISUAL = [3, 1, 4, 2, 5]
TEXT = [2, 6, 1, 3, 3]
IDS = [5, 9, 5, 7, 9]
CASES = {
    "paper": Options(),
    "one-direction": Options(variant="one_direction"),
    "masked": Options(same_text="masked"),
    "clip": Options(loss="clip"),
    "maxsim": Options(loss="maxsim"),
    "siglip": Options(loss="siglip"),
    "siglip-masked": Options(loss="siglip_tokens", same_text="masked"),
    "siglip-reference": Options(loss="siglip_tokens", implementation="reference"),
}


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    make = lambda rows: torch.randn(rows, 6, dtype=torch.float64, generator=generator)  # noqa: E731
    return make(sum(VISUAL)), make(sum(TEXT))


def whole(options: Options) -> tuple[torch.Tensor | None, ...]:
    """Loss and gradients of visual tokens, scale and bias, in one process, from the reference."""
    visual, text = tokens()
    visual.requires_grad_()
    scale = torch.tensor([14.0], dtype=torch.float64, requires_grad=True)
    n, m, ids = torch.tensor(VISUAL), torch.tensor(TEXT), torch.tensor(IDS)
    bias = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    loss = reference_loss(visual, text, scale, n, m, options, ids, bias)
    loss.backward()
    return loss.detach(), visual.grad, scale.grad, bias.grad


@pytest.mark.parametrize("name", CASES)
def test_one_process_gives_the_whole_loss(name):
    visual, text = tokens()
    visual.requires_grad_()
    scale = torch.tensor([14.0], dtype=torch.float64, requires_grad=True)
    objective = objective_of(CASES[name])
    bias = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    given = {} if objective.bias_start is None else {"bias": bias}
    share = objective.share(
        visual, text, torch.tensor(VISUAL), torch.tensor(TEXT), scale, text_ids_B=torch.tensor(IDS), **given
    )
    share.backward()
    wanted = whole(CASES[name])
    for found, value in zip((share.detach(), visual.grad, scale.grad, bias.grad), wanted):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


def test_masking_needs_ids_and_no_clips_cost_nothing():
    scale = torch.ones(1, requires_grad=True)
    empty = torch.zeros(0, 6, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    share = objective_of(Options()).share(empty, torch.zeros(0, 6), none, none, scale)
    share.backward()
    assert share.item() == 0 and scale.grad.item() == 0 and empty.grad.shape == (0, 6)
    with pytest.raises(ValueError, match="needs text_ids_B"):
        objective_of(replace(Options(), same_text="masked")).share(
            empty, torch.zeros(0, 6), none, none, scale
        )
