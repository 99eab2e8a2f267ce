"""The card of a model folder: data, scores and identity, kept right by training and evaluation."""

from __future__ import annotations

import json
import shutil

import pytest
from factories.training import make_language_folder, make_shards, tiny_recipe

from sage_scale.errors import CheckpointError
from sage_scale.evaluation.stored import read_scores
from sage_scale.training import evaluate_run
from sage_scale.training.export import load_translator
from sage_scale.training.model_card import FILE, model_id, read_card
from sage_scale.training.stage import run_stage

PLAN = [("train", 12), ("dev", 4), ("test", 6), ("test_heldout", 2)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("card")
    language = make_language_folder(root / "language")
    changes = [f"model.language_model={language}", "finetune.init=none", "finetune.max_steps=2"]
    recipe = tiny_recipe("features", *changes)
    data = make_shards(root / "shards", recipe, PLAN)
    run_stage("finetune", recipe, root / "run", data)
    return root / "run", data


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "run")


def test_it_says_what_the_model_was_trained_on(run):
    card = read_card(run / "model")
    assert card.clips == dict(PLAN) and card.corpora == ("synthetic",) and card.invented
    assert card.languages == ("de",) and card.sign_languages == () and card.scores == {}
    line = card.line()
    assert card.id in line and "invented signs of no sign language" in line and "12 clips" in line
    assert "BLEU" not in line and "\n" not in line


def test_evaluate_adds_the_scores_and_the_hashes_hold(run, trained):
    before = read_card(run / "model")
    evaluate_run.run(run, trained[1])
    card, stored = read_card(run / "model"), read_scores(run)["test"]
    assert card.id == before.id and card.scores.keys() == {"test", "test_heldout"}
    assert card.scores["test"]["bleu4"] == stored["bleu4"]
    assert card.scores["test"]["signature"] == stored["signature"]
    assert card.scores["test"]["controls"].keys() == stored["controls"].keys()
    assert f"BLEU-4 {stored['bleu4']:.1f} on test" in card.line()
    load_translator(run)


@pytest.mark.parametrize("name", ["visual.safetensors", "language_model/model.safetensors"])
def test_scores_do_not_bless_a_file_that_was_damaged(run, name):
    from sage_scale.training.model_card import add_scores

    path = run / "model" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    add_scores(run / "model", "test", {"bleu4": 1.0})
    with pytest.raises(CheckpointError, match=name):
        load_translator(run)


def test_the_identity_is_of_the_weights_and_not_of_recipe_or_card(run):
    folder = run / "model"
    identity = model_id(folder)
    (folder / "recipe.yaml").write_text("edited", encoding="utf-8")
    (folder / FILE).write_text("{}", encoding="utf-8")
    assert model_id(folder) == identity == model_id(shutil.copytree(folder, run / "other"))
    table = json.loads((folder / "hashes.json").read_text())
    table["files"]["visual.safetensors"]["xxh3_128"] = "0" * 32
    (folder / "hashes.json").write_text(json.dumps(table))
    assert model_id(folder) != identity


def test_an_older_folder_has_none_and_a_damaged_one_is_named(run):
    (run / "model" / FILE).write_text('{"format": 1}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"card\.json is damaged \('id' is missing\)"):
        read_card(run / "model")
    (run / "model" / FILE).unlink()
    assert read_card(run / "model") is None


@pytest.mark.parametrize(
    "scores",
    [
        {"test": {}},
        {"test": {"bleu4": "<b>1</b>"}},
        {"test": []},
        {"test": {"bleu4": 1.0, "intervals": {"bleu4": [1.0]}}},
        {"test": {"bleu4": 1.0, "controls": {"empty": {}}}},
    ],
)
def test_scores_of_another_form_are_one_line(run, scores):
    stored = json.loads((run / "model" / FILE).read_text())
    (run / "model" / FILE).write_text(json.dumps(stored | {"scores": scores}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"card\.json is damaged"):
        read_card(run / "model")
