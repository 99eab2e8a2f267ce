"""A model and an objective from outside the package run through every verb, registered by their names alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories.training import log_rows, losses, make_shards, tiny_recipe
from factories.videos import write_signing

from sage_scale import Translator, registry
from sage_scale.cli import main
from sage_scale.config import Recipe, extension, load_recipe, override, to_yaml
from sage_scale.errors import CheckpointError, RecipeError
from sage_scale.losses.objectives import OBJECTIVES
from sage_scale.training.stage import run_stage

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
PLAN = [("train", 18), ("dev", 6), ("test", 5)]


@pytest.fixture
def plugin(monkeypatch) -> Iterator[None]:
    """The plug-in, as the environment names it; afterwards nothing of it is left."""
    monkeypatch.syspath_prepend(PLUGINS)
    monkeypatch.setenv(extension.PLUGINS, "toy_model")
    for holder, name in (
        (extension, "sections"), (extension, "checks"), (extension, "_choices"), (registry, "_registered"),
    ):  # fmt: skip
        monkeypatch.setattr(holder, name, dict(getattr(holder, name)))
    monkeypatch.setattr(extension, "_imported", set(extension._imported))
    before = dict(OBJECTIVES)
    yield
    OBJECTIVES.clear()
    OBJECTIVES.update(before)
    sys.modules.pop("toy_model", None)


def toy_recipe(*changes: str) -> Recipe:
    return override(
        tiny_recipe(),
        [
            "model.kind=toy",
            "clcl.loss=toy_pooled",
            "pretrain.optimizer=adamw",
            "pretrain.lr=0.03",
            "finetune.optimizer=adamw",
            "finetune.lr=0.03",
            *changes,
        ],
    )


def command_line(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main.main(arguments)
    return int(ended.value.code or 0)


@pytest.mark.usefixtures("plugin")
def test_every_verb_knows_the_model(tmp_path, capsys):
    data, run = make_shards(tmp_path / "shards", toy_recipe(), PLAN), tmp_path / "run"
    settings = ["pretrain.save_every=2", "model.toy.width=12", "pretrain.epochs=100"]
    run_stage("pretrain", toy_recipe(*settings, "pretrain.max_steps=4"), run, data)
    with pytest.raises(CheckpointError, match=r"model\.toy\.width=16 \(there: 12\)"):
        run_stage("pretrain", toy_recipe(*settings, "model.toy.width=16", "pretrain.max_steps=8"), run, data)
    run_stage("pretrain", toy_recipe(*settings, "pretrain.max_steps=40", "pretrain.zero_stage=2"), run, data)
    log = log_rows(run, "pretrain", "step")
    assert [row["step"] for row in log] == list(range(1, 41)) and log[-1]["loss"] < log[0]["loss"] - 0.1
    run_stage("finetune", toy_recipe(*settings, "finetune.max_steps=60", "finetune.epochs=100"), run, data)
    assert log_rows(run, "finetune", "step")[-1]["loss"] < log_rows(run, "finetune", "step")[0]["loss"] - 0.3
    assert load_recipe(run / "recipe.yaml").model.toy.width == 12

    assert command_line(["evaluate", "--run", str(run), "--data", data]) == 0, capsys.readouterr()
    scores = json.loads((run / "scores.json").read_text())["test"]
    assert scores["clips"] == 5 and scores["token_ratio"] > 0 and "exchanged_videos" in scores["controls"]
    video = write_signing(tmp_path / "clip.mp4", seed=1, frames=48)
    capsys.readouterr()
    assert command_line(["translate", str(video), "--model", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["segments_s"]
    sentence = Translator(run).translate(video).sentence
    assert command_line(["models", "export", str(run), "--out", str(tmp_path / "given")]) == 0
    assert Translator.from_pretrained(tmp_path / "given").translate(video).sentence == sentence
    assert "# given" in (tmp_path / "given" / "README.md").read_text()
    assert command_line(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Stage 1: colours" in page and "dev loss" in page and "toy figures" not in page
    assert command_line(["models", "describe", str(run / "recipe.yaml")]) == 0
    assert "toy visual" in capsys.readouterr().out
    for verb in (
        ["plan", str(run / "recipe.yaml")],
        ["models", "merge", str(run), "--out", str(tmp_path / "m")],
    ):
        assert command_line(verb) == 2 and "Toy2Text" in capsys.readouterr().err


@pytest.mark.usefixtures("plugin")
def test_its_recipe_is_checked(tmp_path):
    with pytest.raises(RecipeError, match="width must be even"):
        toy_recipe("model.toy.width=3")
    with pytest.raises(RecipeError, match=r"unknown key 'model\.toy\.wide'.*width"):
        toy_recipe("model.toy.wide=4")
    with pytest.raises(RecipeError, match="toy_pooled"):
        toy_recipe("clcl.loss=toy_pool")


def test_without_the_plugin_its_run_is_refused_by_name(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text("model: {kind: toy}\n")
    with pytest.raises(RecipeError, match="must be one of sage, sign2gpt"):
        load_recipe(path)


@pytest.mark.system
@pytest.mark.usefixtures("plugin")
def test_launched_ranks_know_it_and_two_of_them_learn_as_one(tmp_path):
    recipe = toy_recipe("pretrain.max_steps=6", "pretrain.zero_stage=1")
    data = make_shards(tmp_path / "shards", recipe, PLAN)
    (tmp_path / "toy.yaml").write_text(to_yaml(recipe))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(PLUGINS), os.environ.get("PYTHONPATH", "")]),
    }
    for ranks in (1, 2):
        command = [
            sys.executable, "-m", "sage_scale.cli.main", "pretrain", "--run", tmp_path / str(ranks), "--data", data,
            "--recipe", tmp_path / "toy.yaml", "--ranks", str(ranks),
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=240, env=environment)
    one, two = (losses(tmp_path / ranks) for ranks in ("1", "2"))
    assert two == pytest.approx(one, rel=1e-4)
