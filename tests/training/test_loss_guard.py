"""A bad step leaves everything as it was, on every rank and in every ZeRO stage; then follows what the recipe says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import training as factory
from factories.ranks import run_ranks
from factories.training import log_rows, make_language_folder, make_shards, tiny_recipe
from hypothesis import given
from hypothesis import strategies as st
from toy_stage import Toy

from sage_scale.config import Stage
from sage_scale.errors import SageError
from sage_scale.training import distributed
from sage_scale.training.checkpoint.checkpoints import Checkpoints, TrainingProgress
from sage_scale.training.engine import Engine
from sage_scale.training.export import load_tensors
from sage_scale.training.loss_guard import FEWEST, LossGuard, fault_of_loss
from sage_scale.training.stage import STAGE1, run_stage

BAD_CLIP = 3


@given(
    recent=st.lists(st.floats(0.01, 100), max_size=64),
    loss=st.floats(allow_nan=True, allow_infinity=True),
    factor=st.sampled_from([0.0, 1.5, 3.0, 10.0]),
)
def test_a_loss_is_bad_where_it_is_no_number_or_a_multiple_of_the_median(recent, loss, factor):
    bad = not np.isfinite(loss)
    if not bad and factor and len(recent) >= FEWEST:
        bad = loss > factor * np.sort(recent)[[(len(recent) - 1) // 2, len(recent) // 2]].mean()
    assert bool(fault_of_loss(loss, recent, factor)) == bad


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("bad", ["loss", "gradient", "spike"])
def test_a_skipped_step_never_was(zero, bad):
    """Steps 0 to 9 with step 8 bad end in the weights of plain torch that never saw step 8."""
    stage = Stage(
        zero_stage=zero, optimizer="adamw", lr=0.05, clip=0.5, on_bad_loss="skip", spike_factor=50.0
    )
    torch.manual_seed(0)
    engine = Engine(Toy(), stage, distributed.initialise())
    guard, progress = LossGuard(engine, stage), TrainingProgress()
    torch.manual_seed(0)
    plain = Toy()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.05, betas=(0.9, 0.98), weight_decay=0.0)
    reasons = []
    for step in range(10):
        x, y = batch(step)
        guard.begin()
        if step == 8 and bad == "spike":
            y = y + 1000
        share = engine.forward(x, y, 6)
        if step == 8 and bad == "loss":
            share = share * math.nan
        if step == 8 and bad == "gradient":
            share = share + NoNumbers.apply(share)
        engine.backward(share)
        reason = guard.check_loss(float(share.detach()), progress)
        engine.step(0.0, skip_update=bool(reason))
        reason = reason or guard.check_gradient()
        if reason:
            guard.restore_buffers()
            reasons.append((step, reason))
        assert engine.updated == (not reason)
        if step != 8:
            optimizer.zero_grad()
            plain(x, y, 6).backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            optimizer.step()
    assert [step for step, _ in reasons] == [8]
    assert {"loss": "nan", "gradient": "gradient", "spike": "times the usual"}[bad] in reasons[0][1]
    for (name, parameter), expected in zip(engine.trainable_parameters(), plain.parameters()):
        assert torch.allclose(engine.weight(parameter), expected, rtol=1e-5, atol=1e-6), name
    assert float(engine.model.seen) == float(plain.seen) == 9


class NoNumbers(torch.autograd.Function):
    """Zero, with a gradient that is no number."""

    @staticmethod
    def forward(ctx, value):
        return value * 0

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(6, 5, generator=generator), torch.randn(6, 3, generator=generator)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One training clip has features that are no numbers; it comes once an epoch."""
    root = tmp_path_factory.mktemp("guard")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe(
        "features", f"model.language_model={language}", "pretrain.epochs=3", "pretrain.save_every=2"
    )
    whole = factory.make_sample

    def with_one_bad(number, split, kind):
        sample = whole(number, split, kind)
        if number == BAD_CLIP:
            sample.features[:] = np.nan
        return sample

    factory.make_sample = with_one_bad
    try:
        make_shards(root / "shards", recipe, [("train", 20), ("dev", 5)])
    finally:
        factory.make_sample = whole
    return root, recipe


def train(world, run: Path, *overrides: str) -> list[dict]:
    from sage_scale.config import override

    root, recipe = world
    try:
        run_stage("pretrain", override(recipe, overrides), run, str(root / "shards"))
    finally:
        rows = log_rows(run)
    return rows


@pytest.mark.parametrize("action", ["skip", "roll_back"])
def test_a_run_survives_a_clip_that_gives_no_numbers(world, tmp_path, action):
    rows = train(world, tmp_path, f"pretrain.on_bad_loss={action}")
    bad = [row for row in rows if row["event"] == "bad_step"]
    steps = [row for row in rows if row["event"] == "step"]
    assert len(bad) == 3 and all("nan" in row["reason"] for row in bad)
    assert [row["step"] for row in steps if row["loss"] is None] == [row["step"] for row in bad]
    assert sum(row["clips"] for row in steps) == 3 * 20
    assert {row["action"] for row in bad} <= {action, "skip"} and bad[-1]["action"] == action
    for name, value in load_tensors(tmp_path / STAGE1).items():
        assert torch.isfinite(value).all(), name


def test_rolling_back_gives_the_weights_of_the_last_checkpoint(world, tmp_path):
    """A run that ends with its bad step ends in the weights, Adam's tensors and statistics of the save before."""
    bad = [
        row["step"]
        for row in train(world, tmp_path / "skip", "pretrain.on_bad_loss=skip")
        if row["event"] == "bad_step"
    ]
    last = bad[1]
    rows = train(
        world, tmp_path / "back", "pretrain.on_bad_loss=roll_back", f"pretrain.max_steps={last}",
        "pretrain.optimizer=adamw",
    )  # fmt: skip
    assert [row["action"] for row in rows if row["event"] == "bad_step"][-1] == "roll_back"
    saves = {row["step"] for row in rows if row["event"] == "save"}
    before = max(step for step in saves if step < last)
    checkpoints = Checkpoints(tmp_path / "back" / "pretrain" / "checkpoints")
    one, other = checkpoints.tensors(before), checkpoints.tensors(last)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    progress = [checkpoints.state(step)["progress"] for step in (before, last)]
    assert progress[0]["updates"] == progress[1]["updates"] < progress[1]["step"] == last


def test_too_many_bad_steps_end_the_run_and_so_does_the_default(world, tmp_path):
    with pytest.raises(SageError, match=r"the loss is nan at step \d+ .*run the same command to resume"):
        train(world, tmp_path / "stop")
    with pytest.raises(SageError, match="bad steps so far: 2"):
        train(world, tmp_path / "two", "pretrain.on_bad_loss=skip", "pretrain.max_bad_steps=1")


@pytest.mark.system
@pytest.mark.timeout(200)
@pytest.mark.parametrize("zero", [0, 2])
def test_ranks_leave_out_a_step_that_is_bad_on_one_of_them(tmp_path, zero):
    outputs = run_ranks(Path(__file__).with_name("rank_tasks.py"), 2, ["one_bad", zero])
    results = [json.loads(line) for text in outputs for line in text.splitlines() if line.startswith("{")]
    assert [result["updated"] for result in results] == [[True, True, True, False, True]] * 2
    torch.manual_seed(0)
    plain = Toy()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    for step in (0, 1, 2, 4):
        optimizer.zero_grad()
        plain(*batch(step), 6).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
    for result in results:
        assert result["head"] == pytest.approx(plain.head.weight.flatten().tolist(), rel=1e-5, abs=1e-6)
