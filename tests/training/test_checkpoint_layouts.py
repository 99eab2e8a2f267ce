"""Any ZeRO stage and number of ranks trains as one plain process does, and resumes any other's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from factories.ranks import run_ranks

TOY = Path(__file__).with_name("toy_stage.py")


def plain_losses(optimizer: str) -> list[float]:
    """The toy stage in plain torch: no DeepSpeed, no checkpoint, no ranks."""
    from toy_stage import Toy

    from sage_scale.config import Stage
    from sage_scale.training.optimizer import learning_rate_factor

    torch.manual_seed(0)
    model = Toy()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    if optimizer == "sgd":
        torch_optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    else:
        torch_optimizer = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.98))
    losses = []
    for step in range(12):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(6, 5, generator=generator), torch.randn(6, 3, generator=generator)
        loss = model(x, y, 6)
        torch_optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in torch_optimizer.param_groups:
            group["lr"] = 0.05 * learning_rate_factor(Stage(warmup=0.2), step / 12)
        torch_optimizer.step()
        model.scale.data.clamp_(1.49, 1.6)
        losses.append(float(loss.detach()))
    assert float(model.scale) == pytest.approx(1.49)  # the bound was met
    return losses


@pytest.mark.system
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("optimizer", "layouts"),
    [
        ("sgd", [(0, 1), (3, 2), (1, 3)]),
        ("adamw", [(2, 3), (0, 2), (3, 1)]),
        ("sgd", [(3, 3), (2, 2), (0, 1)]),
        ("adamw", [(1, 2), (3, 3), (2, 1)]),
    ],
)
def test_losses_equal_plain_torch_across_stages_and_ranks(tmp_path, optimizer, layouts):
    """Four steps under each (ZeRO stage, ranks) in turn, each resuming the one before."""
    losses = []
    for number, (zero, world) in enumerate(layouts):
        outputs = run_ranks(TOY, world, [tmp_path, zero, optimizer, number * 4, number * 4 + 4])
        losses += [json.loads(line)["loss"] for line in outputs[0].splitlines() if line.startswith("{")]
    assert losses == pytest.approx(plain_losses(optimizer), rel=1e-4)
