"""`evaluate --gold`: stage 1's tokens against signs in files; the similarity is that of the report's alignment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from factories.ranks import run_ranks
from factories.training import make_language_folder, make_shards, tiny_recipe

from sage_scale.cli import main as command_line
from sage_scale.errors import UsageError
from sage_scale.models.sage.sign_similarity import gloss_similarity
from sage_scale.shards import open_dataset
from sage_scale.text.tokenizer import encode_texts, load_tokenizer
from sage_scale.training import distributed, evaluate_run
from sage_scale.training.alignment_scores import open_gold
from sage_scale.training.decode import split_batches
from sage_scale.training.stage import run_stage

PLAN = [("train", 12), ("dev", 5), ("test", 6)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with both stages, and the root of a corpus with gold signs: a sign a segment, its gloss the word."""
    root = tmp_path_factory.mktemp("aligned")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe("features", f"model.language_model={language}", "pretrain.max_steps=3",
                         "finetune.max_steps=1", "model.token_dim=24")  # fmt: skip
    data = make_shards(root / "shards", recipe, PLAN)
    for stage in ("pretrain", "finetune"):
        run_stage(stage, recipe, root / "run", data)
    dataset = open_dataset(data)
    table = dataset.samples("dev", "test")
    (root / "corpus" / "gold").mkdir(parents=True)
    for row in range(len(table)):
        sample = dataset.read(table, row)
        signs = [
            {"gloss": word.upper(), "start": int(start), "end": int(end)}
            for word, (start, end) in zip(sample.meta["pseudo_glosses"], sample.segments)
        ]
        path = root / "corpus" / "gold" / f"{sample.meta['id']}.json"
        path.write_text(json.dumps({"fps": 25, "signs": signs}))
    return root, recipe, data


def test_every_token_is_scored_and_the_entry_says_how(trained, capsys):
    root, _, data = trained
    arguments = ["--run", root / "run", "--data", data, "--no-controls", "--gold", root / "corpus"]
    assert command_line.run(["evaluate", *map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    entry = json.loads((root / "run" / "scores.json").read_text())["test"]["alignment"]
    rows = [
        json.loads(line) for line in (root / "run" / "predictions" / "test.jsonl").read_text().splitlines()
    ]
    tokens = sum(len(row["segments"]) for row in rows)
    assert entry["clips"] == 6 and entry["tokens"] == entry["signed"] == entry["scored"] == tokens
    chances = [
        row["pseudo_glosses"].count(word) / len(row["pseudo_glosses"])
        for row in rows
        for word in row["pseudo_glosses"]
    ]
    assert entry["chance"] == pytest.approx(100 * sum(chances) / tokens)
    assert 0 <= entry["accuracy"] <= 100 and f"of {tokens} tokens (chance {entry['chance']:.1f}%)" in printed


def test_the_similarity_is_that_of_the_reports_alignment(trained):
    """`alignment.json` has the cosines of tokens and subwords of dev clips; a pseudo-gloss has its best subword's."""
    root, recipe, data = trained
    ranks = distributed.initialise()
    of_run = gloss_similarity(root / "run", recipe, ranks.device)
    tokenizer = load_tokenizer(root / "language")
    found = {}
    for batch in split_batches(recipe, [open_dataset(data)], "dev", ranks):
        for key, meta, values in zip(batch.keys, batch.metas, of_run(batch)):
            found[key] = (meta, values)
    shown = json.loads((root / "run" / "alignment.json").read_text())
    assert shown
    for row in shown:
        meta, values = found[row["key"]]
        lengths = [len(ids) for ids in encode_texts(tokenizer, meta["pseudo_glosses"])]
        columns = np.split(np.array(row["similarity"]), np.cumsum(lengths)[:-1], axis=1)
        wanted = np.stack([column.max(1) for column in columns], 1)
        assert values == pytest.approx(wanted, abs=2e-3)


@pytest.mark.system
def test_all_scores_of_several_ranks_are_those_of_one(trained):
    root, _, data = trained
    one = json.loads(json.dumps(evaluate_run.run(root / "run", data, gold=root / "corpus")))
    texts = [
        (root / "run" / "predictions" / f"test.{ending}").read_text() for ending in ("txt", "tsv", "jsonl")
    ]
    arguments = ["evaluated", root / "run", data, root / "corpus"]
    for output in run_ranks(Path(__file__).with_name("rank_tasks.py"), 3, arguments):
        found = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
        assert found == one
    again = [
        (root / "run" / "predictions" / f"test.{ending}").read_text() for ending in ("txt", "tsv", "jsonl")
    ]
    assert again == texts


def test_a_run_without_stage_1_says_so_and_is_scored(trained, tmp_path, monkeypatch):
    root, _, data = trained
    (root / "run" / "pretrain" / "visual.safetensors").rename(tmp_path / "kept")
    said: list[str] = []
    try:
        entry = evaluate_run.run(root / "run", data, controls=False, say=said.append, gold=root / "corpus")
    finally:
        (tmp_path / "kept").rename(root / "run" / "pretrain" / "visual.safetensors")
    assert "alignment" not in entry and "bleu4" in entry
    assert any("gold signs is left out" in line and "no trained stage 1" in line for line in said)


def test_tables_and_wrong_places(trained, tmp_path):
    root, _, data = trained
    (tmp_path / "signs.csv").write_text("id,start_s,end_s,text\ntest-17,0,1,ROT\n")
    assert open_gold(tmp_path / "signs.csv")({"id": "test-17"}).signs[0].text == "ROT"
    (tmp_path / "signs.pt").write_bytes(b"x")
    for place, says in (
        (tmp_path / "none", "no such file"),
        (tmp_path / "signs.pt", "a folder of .json or .eaf"),
    ):
        with pytest.raises(UsageError, match=says):
            evaluate_run.run(root / "run", data, gold=place)
    (tmp_path / "empty").mkdir()
    said: list[str] = []
    with pytest.raises(UsageError, match="empty has no signs of any clip of the split 'test'"):
        evaluate_run.run(root / "run", data, controls=False, say=said.append, gold=tmp_path / "empty")
    assert not said, "before a split is translated"
