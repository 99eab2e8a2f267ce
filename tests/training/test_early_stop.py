"""A stage ends where dev no longer becomes better; a trace of a step; the same command does not go on."""

from __future__ import annotations

import json
import sys

import pytest
from factories.training import log_rows, make_language_folder, make_shards, tiny_recipe

from sage_scale.errors import RecipeError
from sage_scale.models.sage import pretraining as alignment
from sage_scale.reporting.page import write_report
from sage_scale.training.stage import run_stage


def test_patience_ends_a_stage_at_its_best_and_a_trace_is_left(tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 2.0, 2.5, 9.0, 9.0])
    monkeypatch.setattr(alignment, "dev_figures", lambda *_: ({"loss": 1.0}, next(scores)))
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe(
        "features", f"model.language_model={language}", "pretrain.evaluate_every=2", "pretrain.patience=2",
        "pretrain.profile_steps=1", "pretrain.max_steps=40",
    )  # fmt: skip
    data = make_shards(tmp_path / "shards", recipe, [("train", 20), ("dev", 4)])
    run = tmp_path / "run"
    assert run_stage("pretrain", recipe, run, data)["steps"] == 8  # best at 4, none better at 6 and 8
    rows = log_rows(run)
    early = [row for row in rows if row["event"] == "early_stop"]
    assert len(early) == 1 and (early[0]["step"], early[0]["best_step"]) == (8, 4)
    steps = [row for row in rows if row["event"] == "step"]
    assert all(row["tokens_per_s"] > 0 and 0 < row["mfu"] < 1.5 and row["memory_now_mb"] > 0 for row in steps)
    trace = json.loads((run / "pretrain" / "profile" / "trace.json").read_text())
    assert any("addmm" in str(event.get("name")) for event in trace["traceEvents"])
    monkeypatch.setattr(alignment, "dev_figures", lambda *_: ({"loss": 1.0}, 0.0))
    assert run_stage("pretrain", recipe, run, data)["steps"] == 8


@pytest.mark.parametrize("limit, steps", [(0, 6), (60, 6), (1e-6, 1)])
def test_a_limit_that_ends_a_stage_before_its_steps_is_told_in_log_and_report(tmp_path, capfd, limit, steps):
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe(
        "features", f"model.language_model={language}", "pretrain.max_steps=6", f"pretrain.max_minutes={limit:f}",
    )  # fmt: skip
    data = make_shards(tmp_path / "shards", recipe, [("train", 20), ("dev", 4)])
    assert run_stage("pretrain", recipe, tmp_path / "run", data)["steps"] == steps
    told = "1 of 6 steps: max_minutes=1e-06 ended it"
    assert (told in "".join(capfd.readouterr())) == (steps < 6)
    assert (told in write_report(tmp_path / "run").read_text(encoding="utf-8")) == (steps < 6)


def test_a_missing_logger_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    from sage_scale.training.stage_log import StageLog

    with pytest.raises(RecipeError, match=r"sage-scale\[wandb\]"):
        StageLog(tmp_path, "pretrain", wandb="signs", run="one")
