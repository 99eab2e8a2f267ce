"""`recipe show` prints what a YAML reader reads back; `explain` knows every key and its docstring."""

from __future__ import annotations

import pytest
import yaml
from typer.testing import CliRunner

from sage_scale import config
from sage_scale.cli import recipe as verb
from sage_scale.config import load_recipe
from sage_scale.errors import RecipeError

FILE = "name: small\npretrain:\n  batch_size: 4\n"


def invoke(*arguments: str):
    return CliRunner().invoke(verb.app, list(arguments))


def test_show_prints_the_whole_recipe_with_overrides(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(FILE)
    result = invoke("show", str(path), "pretrain.lr=0.5", "segmentation.tagger=uniform")
    assert result.exit_code == 0
    values = yaml.safe_load(result.stdout)
    shown = config.from_mapping(values)
    assert shown == config.load_recipe(path, ["pretrain.lr=0.5", "segmentation.tagger=uniform"])
    assert (values["pretrain"]["batch_size"], values["pretrain"]["lr"]) == (4, 0.5)
    assert shown.fingerprint() in result.stdout.splitlines()[0]
    assert shown.dataset_fingerprint() in result.stdout.splitlines()[0]


def test_fingerprint_shown_follows_the_overrides(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(FILE)
    first = invoke("show", str(path)).stdout.splitlines()[0].split()
    second = invoke("show", str(path), "pretrain.lr=0.5").stdout.splitlines()[0].split()
    assert first[2] != second[2], "a training key changes the recipe"
    assert first[-1] == second[-1], "but not the dataset"


def test_list_names_every_shipped_recipe():
    listed = [line.split()[0] for line in invoke("list").stdout.splitlines()]
    assert listed == config.recipe_names()


def test_every_key_has_a_meaning_and_can_be_assigned_its_default():
    keys = verb.keys()
    without = [key.path for key in keys if not key.meaning]
    assert not without, f"no docstring under {without}"
    lines = invoke("keys").stdout.splitlines()
    assert len(lines) == len(keys) > 100
    assert config.override(config.Recipe(), lines) == config.Recipe()


def test_explain_gives_choices_default_and_docstring():
    out = invoke("explain", "clcl.variant").stdout
    assert "clcl.variant = paper" in out and "paper | one_direction" in out and "InfoNCE" in out
    assert invoke("explain", "clcl").stdout.count("clcl.") >= 8


def test_a_recipe_of_version_0_1_0_opens_with_todays_names(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text("clcl: {variant: released, tau: 0.1}\n")
    assert load_recipe(file).clcl.variant == "one_direction"
    assert load_recipe("demo", ["clcl.variant=released"]).clcl.variant == "one_direction"
    file.write_text("clcl: {loss: released}\n")
    with pytest.raises(RecipeError, match=r"clcl\.loss"):
        load_recipe(file)
