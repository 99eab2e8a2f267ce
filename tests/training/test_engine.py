"""The engine's ways to save memory and time change nothing of what is learnt; float16 finds its scale."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_stage import Toy

from sage_scale.config import Clcl, Stage, check, from_mapping
from sage_scale.errors import RecipeError
from sage_scale.losses import objective_of
from sage_scale.training import distributed
from sage_scale.training.engine import BUCKET_ELEMENTS, Engine, LossScale, deepspeed_config


def losses(**settings) -> tuple[list[float], Engine]:
    """Six steps of the toy network on one rank; a loss scale starts where nothing overflows."""
    ranks = distributed.initialise()
    torch.manual_seed(0)
    engine = Engine(Toy(), Stage(lr=0.05, clip=0.5, weight_decay=0.01, **settings), ranks)
    engine.loss_scale = LossScale(engine.loss_scale.enabled, 2.0**10)
    found = []
    for step in range(6):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(6, 5, generator=generator), torch.randn(6, 3, generator=generator)
        share = engine.forward(x, y, 6)
        engine.backward(share)
        engine.step(step / 6)
        found.append(float(share.detach()))
    return found, engine


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_offloaded_states_learn_the_same(monkeypatch, zero, optimizer):
    """With torch's own AdamW: DeepSpeed's is compiled by the first who uses it, for a minute."""
    monkeypatch.setattr("sage_scale.training.optimizer.can_compile", lambda builder: False)
    expected, _ = losses(zero_stage=0, optimizer=optimizer)
    found, engine = losses(zero_stage=zero, optimizer=optimizer, offload="cpu")
    assert found == pytest.approx(expected, rel=1e-4)
    for _, parameter in engine.trainable_parameters():
        value = torch.full(engine.full_shape(parameter), 0.25)
        engine.set_weight(parameter, value)
        assert torch.equal(engine.weight(parameter), value)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_clip_bounds_a_step_and_0_bounds_none(zero):
    """Plain SGD moves the weights by the rate times the gradient, whose norm is 40 times the bound here."""
    moved = {}
    for clip in (0.0, 0.5):
        torch.manual_seed(0)
        stage = Stage(lr=0.01, momentum=0.0, clip=clip, zero_stage=zero, schedule="constant")
        engine = Engine(Toy(), stage, distributed.initialise())
        before = [engine.weight(parameter).clone() for _, parameter in engine.trainable_parameters()]
        generator = torch.Generator().manual_seed(1)
        x, y = torch.randn(6, 5, generator=generator), torch.randn(6, 3, generator=generator)
        engine.backward(40 * engine.forward(x, y, 6))
        engine.step(0.0)
        after = [engine.weight(parameter) for _, parameter in engine.trainable_parameters()]
        moved[clip] = float(torch.stack([(a - b).norm() for a, b in zip(after, before)]).norm()) / 0.01
        norm = engine.gradient_norm()
    assert (
        norm > 5
        and moved[0.0] == pytest.approx(norm, rel=1e-3)
        and moved[0.5] == pytest.approx(0.5, rel=1e-3)
    )


class Clip(nn.Module):
    """Two towers of one layer under CLIP's loss, with the scale as SAGE holds it."""

    def __init__(self, start: float, most: float) -> None:
        super().__init__()
        self.visual, self.text = nn.Linear(8, 5), nn.Linear(8, 5)
        self.text.load_state_dict(self.visual.state_dict())
        self.log_scale = nn.Parameter(torch.tensor([math.log(start)]))
        self.bounds = {"log_scale": (-math.inf, math.log(most))}

    def forward(self, x_BC: torch.Tensor, y_BC: torch.Tensor) -> torch.Tensor:
        ones = torch.ones(len(x_BC), dtype=torch.int64)
        clip = objective_of(Clcl(loss="clip"))
        return clip.share(self.visual(x_BC), self.text(y_BC), ones, ones, self.log_scale.exp())


@pytest.mark.parametrize(
    ("zero", "offload"), [*((zero, "none") for zero in range(4)), (1, "cpu"), (2, "cpu"), (3, "cpu")]
)
@pytest.mark.parametrize(
    ("optimizer", "lr", "start", "most"),
    [("sgd", 0.03, 1 / 0.07, 100), ("sgd", 1e-3, 99.99, 100), ("adamw", 1e-2, 14.0, 15)],
)
def test_a_logit_scale_learns_as_clips_does(monkeypatch, zero, offload, optimizer, lr, start, most):
    """CLIP's own lines in plain torch: cross-entropies of exp(log) times the cosines, the data clamped after a step."""
    monkeypatch.setattr("sage_scale.training.optimizer.can_compile", lambda builder: False)
    stage = Stage(
        offload=offload,
        optimizer=optimizer,
        lr=lr,
        clip=0,
        weight_decay=0.1,
        schedule="constant",
        zero_stage=zero,
    )
    torch.manual_seed(0)
    engine = Engine(Clip(start, most), stage, distributed.initialise())
    torch.manual_seed(0)
    plain = Clip(start, most)
    weights = [plain.visual.weight, plain.text.weight]
    rest = [plain.visual.bias, plain.text.bias, plain.log_scale]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    if optimizer == "sgd":
        moved = torch.optim.SGD(groups, lr=lr, momentum=stage.momentum)
    else:
        moved = torch.optim.AdamW(groups, lr=lr, betas=stage.betas)
    generator = torch.Generator().manual_seed(1)
    found, wanted = [], []
    for step in range(30):
        x = torch.randn(6, 8, generator=generator)
        y = x if step < 15 else x.roll(1, 0)  # first of the same, which wants a large scale, then of others
        engine.backward(engine.forward(x, y))
        engine.step(0.0)
        found.append(engine.weight(engine.model.log_scale).exp().item())
        images, texts = F.normalize(plain.visual(x), dim=1), F.normalize(plain.text(y), dim=1)
        logits, own = plain.log_scale.exp() * images @ texts.T, torch.arange(6)
        moved.zero_grad()
        ((F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2).backward()
        moved.step()
        with torch.no_grad():
            plain.log_scale.clamp_(max=math.log(most))
        wanted.append(plain.log_scale.exp().item())
    assert found == pytest.approx(wanted, rel=1e-4)
    assert max(found) - min(found) > 0.1 and max(found) <= most + 1e-3
    if start > 0.9 * most:  # the bound is met, and left again
        assert most in [round(value, 3) for value in found] and found[-1] < most - 0.01


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_float16_is_near_float32_and_leaves_overflows_out(zero):
    expected, _ = losses(zero_stage=zero, precision="fp32")
    found, engine = losses(zero_stage=zero, precision="fp16")
    assert found == pytest.approx(expected, rel=1e-2) and found != expected
    assert engine.updated and engine.loss_scale.value == 2.0**10
    before = [engine.weight(parameter).clone() for _, parameter in engine.trainable_parameters()]
    engine.loss_scale.value = 2.0**40  # above what float16 can hold, times any error
    x, y = torch.randn(6, 5), torch.randn(6, 3)
    engine.backward(engine.forward(x, y, 6))
    engine.step(0.5)
    assert not engine.updated and engine.loss_scale.value == 2.0**39
    after = [engine.weight(parameter) for _, parameter in engine.trainable_parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after))


def test_scale_grows_after_patience_and_never_below_one():
    scale = LossScale(enabled=True, value=4.0, patience=3)
    values = []
    for finite in (True, True, True, False, True, True, True, False, False, False, False, False):
        scale.update(finite)
        values.append(scale.value)
    assert values == [4, 4, 8, 4, 4, 4, 8, 4, 2, 1, 1, 1]


def test_the_buffer_of_a_bucket_is_no_larger_than_what_is_trained():
    """DeepSpeed's own default takes 2 GB of every rank, be the model ever so small."""

    def numbers(*sizes: int) -> int:
        zero = deepspeed_config(Stage(), 2, sizes)["zero_optimization"]
        assert zero["allgather_bucket_size"] == zero["reduce_bucket_size"]
        return zero["reduce_bucket_size"]

    assert numbers(10, 300) == 310
    assert numbers(*[BUCKET_ELEMENTS // 4] * 8) == BUCKET_ELEMENTS
    assert numbers(2 * BUCKET_ELEMENTS, 5) == 2 * BUCKET_ELEMENTS  # a weight that is larger goes at once
    assert numbers(10, 301) == 312  # DeepSpeed wants an even number


def test_contradicting_settings_are_named():
    for settings, word in (
        ({"offload": "cpu", "zero_stage": 0}, "zero_stage"),
        ({"offload": "nvme", "zero_stage": 2, "offload_dir": "/x"}, "zero_stage=3"),
        ({"offload": "nvme", "zero_stage": 3}, "offload_dir"),
    ):
        with pytest.raises(RecipeError, match=word):
            check(from_mapping({"pretrain": settings}))
