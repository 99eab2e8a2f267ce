"""Evaluation leaves an entry a split and scores each language by its own rules; a foreign tokenizer is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from factories import training as factory
from factories.training import make_language_folder, make_shards, tiny_recipe

from sage_scale.config import override
from sage_scale.errors import RecipeError
from sage_scale.evaluation import score
from sage_scale.evaluation.hypotheses import read_sentences
from sage_scale.evaluation.stored import read_scores
from sage_scale.reporting.page import write_report
from sage_scale.reporting.runlog import read_run
from sage_scale.training import evaluate_run
from sage_scale.training.stage import run_stage

PLAN = [("train", 12), ("dev", 4), ("test", 6), ("test_heldout", 2)]


def made_with(monkeypatch, change) -> None:
    """Let the samples of the factory have other descriptions: `change(number, meta)` gives what differs."""
    make = factory.make_sample

    def changed(number, split, kind):
        sample = make(number, split, kind)
        return dataclasses.replace(sample, meta={**sample.meta, **change(number, sample.meta)})

    monkeypatch.setattr(factory, "make_sample", changed)


def chinese_of_odd_numbers(number: int, meta: dict) -> dict:
    return {"language": "zh-CN", "sentence": meta["sentence"].replace(" ", "，")} if number % 2 else {}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluated")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe("frames", f"model.language_model={language}", "finetune.init=none", "finetune.max_steps=2",
                         "model.token_dim=24")  # fmt: skip
    with pytest.MonkeyPatch.context() as monkeypatch:
        made_with(monkeypatch, chinese_of_odd_numbers)
        data = make_shards(root / "shards", recipe, PLAN)
    run_stage("finetune", recipe, root / "run", data)
    return root / "run", data


def test_each_split_keeps_its_scores_and_each_clip_its_language(trained):
    run, data = trained
    test = evaluate_run.run(run, data)
    kept = json.loads((run / "scores.json").read_text())
    assert list(kept) == ["test"] and kept["test"] == json.loads(json.dumps(test)) and "heldout" in test
    dev = evaluate_run.run(run, data, split="dev", controls=False)
    both = json.loads((run / "scores.json").read_text())
    assert (
        both["test"] == kept["test"]
        and both["dev"]["bleu4"] == dev["bleu4"]
        and "controls" not in both["dev"]
    )
    rows = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    assert {row["language"] for row in rows} == {"de", "zh-CN"}
    for tag in ("de", "zh-CN"):
        some = [row for row in rows if row["language"] == tag]
        alone = score([row["hypothesis"] for row in some], [row["reference"] for row in some], tag)
        found = test["languages"][tag]
        assert {name: found[name] for name in alone} == alone and alone["clips"] == 3
    assert "tok:13a+zh" in test["signature"] and set(test["controls"]["blank_videos"]["languages"]) == {
        "de",
        "zh-CN",
    }
    assert [row["hypothesis"] for row in rows] == read_sentences(run / "predictions" / "test.txt")
    assert [row["reference"] for row in rows] == read_sentences(run / "predictions" / "test.tsv", "reference")
    assert test["version"] == 2 and set(test["intervals"]) == {"bleu4", "rouge_l", "chrf"}
    record = read_run(run)
    assert record.split == "test" and {row["sentence"] for row in record.timelines} <= {
        r["reference"] for r in rows
    }
    page = write_report(run).read_text()
    assert "test, zh-CN" in page and 'lang="zh-CN"' in page and "dev" in page
    evaluate_run.run(run, data, controls=False)
    again = json.loads((run / "scores.json").read_text())
    assert again["dev"] == both["dev"] and "controls" not in again["test"], "an entry is replaced whole"


def test_scores_of_0_1_0_are_read_and_kept(trained):
    run, data = trained
    old = {"bleu4": 12.5, "rouge_l": 30.0, "split": "test", "clips": 6, "signature": "x", "controls": {}}
    (run / "scores.json").write_text(json.dumps(old))
    assert read_scores(run) == {"test": old}
    evaluate_run.run(run, data, split="dev", controls=False)
    assert set(read_scores(run)) == {"test", "dev"} and read_scores(run)["test"] == old
    said: list[str] = []
    (run / "scores.json").write_text('{"test": {"bleu4": 1')
    evaluate_run.run(run, data, split="dev", controls=False, say=said.append)
    assert set(read_scores(run)) == {"dev"} and any("scores.json is damaged" in line for line in said)


def test_exchanged_videos_are_of_the_same_language(trained):
    run, data = trained
    rows = [
        {"hypothesis": f"{tag}{n}", "reference": "x", "language": tag, "frames": 10}
        for n in range(3)
        for tag in ("de", "zh")
    ]
    recipe = read_run(run)
    assert recipe.setting("finetune.seed") is not None
    datasets = evaluate_run.open_datasets(data)
    exchanged = evaluate_run._controls(tiny_recipe("frames"), datasets, rows, rows)["exchanged_videos"]
    assert all(
        text[:2] == row["language"] and text != row["hypothesis"] for text, row in zip(exchanged, rows)
    )


@pytest.mark.parametrize(
    ("odd", "share"), [(1, "100.0%"), (2, "50")], ids=["every sentence", "every second sentence"]
)
def test_a_tokenizer_that_does_not_know_the_text_is_refused(tmp_path, monkeypatch, odd, share):
    made_with(monkeypatch, lambda number, meta: {} if number % odd else {"sentence": "明天 下雨 吗"})
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe(
        "features", f"model.language_model={language}", "finetune.init=none", "text.target=sentence"
    )
    data = make_shards(tmp_path / "shards", recipe, PLAN)
    for stage in ("pretrain", "finetune"):
        for trim in ("true", "false"):
            with pytest.raises(RecipeError, match="of the tokens of the training sentences are unknown"):
                run_stage(stage, override(recipe, [f"text.trim_vocabulary={trim}"]), tmp_path / "run", data)
            assert not (tmp_path / "run").exists()


def test_some_unknown_tokens_are_told_and_trained_with(tmp_path, monkeypatch, capsys):
    made_with(
        monkeypatch, lambda number, meta: {"sentence": meta["sentence"] + " 雨"} if number % 4 == 0 else {}
    )
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe(
        "features", f"model.language_model={language}", "finetune.init=none", "finetune.max_steps=1"
    )
    data = make_shards(tmp_path / "shards", recipe, PLAN)
    run_stage("finetune", recipe, tmp_path / "run", data)
    [line] = [line for line in capsys.readouterr().err.splitlines() if "unknown to the tokenizer" in line]
    assert "warning" in line and "training sentences" in line


def test_pseudo_glosses_count_as_well(tmp_path, monkeypatch):
    made_with(monkeypatch, lambda number, meta: {"pseudo_glosses": ["明天", "下雨"]})
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe("features", f"model.language_model={language}")
    data = make_shards(tmp_path / "shards", recipe, PLAN)
    with pytest.raises(RecipeError, match="of the training pseudo-glosses are unknown"):
        run_stage("pretrain", recipe, tmp_path / "run", data)
    assert not (tmp_path / "run").exists()
