"""`sage-scale ablate`: what it repeats and what not, its figures against their definitions, its pages, its messages."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.training import make_language_folder, make_shards, tiny_recipe

from sage_scale.cli import main
from sage_scale.config import load_recipe
from sage_scale.errors import StorageError, UsageError
from sage_scale.evaluation import score
from sage_scale.experiments import ablation_data
from sage_scale.experiments.ablation import Ablation, Outcome
from sage_scale.experiments.ablation_data import alone_in
from sage_scale.experiments.ablation_measured import measure
from sage_scale.experiments.ablation_rows import Rows, digest
from sage_scale.experiments.ablation_run import Run, begun, make_run, needs_language_model
from sage_scale.experiments.ablation_table import Cell, Table
from sage_scale.reporting.ablation_chart import chart_file
from sage_scale.reporting.ablation_page import as_csv, as_markdown, as_page

REFERENCES = ["es regnet im norden am abend", "im süden scheint die sonne", "am tag weht ein starker wind"]
TABLE = Table(
    name="made",
    title="Two cells <b>",
    source="a paper",
    scores=("bleu4", "pretrain.r1"),
    cells=(
        Cell(name="one | a", published={"bleu4": 20.0}),
        Cell(name="two", changes={"clcl.loss": "clip"}),
        Cell(name="three", changes={"clcl.beta": 0.2}),
    ),
)


class FakePool:
    """Makes a run's row at once: the more words of the references it drops, the higher the seed."""

    def __init__(self, fails: tuple[str, int] | None = None) -> None:
        self.count, self.idle, self.made, self._fails = 2, 1, [], fails

    def language_model(self, recipe: Any, data: str, folder: Path) -> str:
        self.language = recipe
        return ""

    def start(self, run: Run) -> None:
        self.idle, self._run = 0, run

    def finished(self) -> list[Any]:
        run, self.idle = self._run, 1
        if (run.cell, run.seed) == self._fails:
            return [(run, {}, "the loss is inf", 1.0)]
        self.made.append((run.cell, run.seed))
        return [(run, made_row(run), "", 1.0)]


def made_row(run: Run) -> dict[str, Any]:
    cut = run.seed + (run.cell == "two")
    texts = [(" ".join(text.split()[: len(text.split()) - cut]), text, "de") for text in REFERENCES]
    found = score([text for text, _, _ in texts], REFERENCES, "de")
    return {
        "cell": run.cell, "seed": run.seed, "identity": run.identity, "recipe": "tiny", "split": run.split,
        "scores": {"bleu4": found["bleu4"], "pretrain.r1": 50.0 + cut}, "signature": found["signature"],
        "clips": 3, "hypotheses": digest([text for text, _, _ in texts]), "references": digest(REFERENCES),
        "steps": {"pretrain": 3, "finetune": 2}, "tokens": 90 + cut, "seconds": {"pretrain": 1.0}, "cpu_seconds": 1.5,
        "device": "CPU", "versions": {"torch": "2"}, "date": "2026-11-27", "texts": texts,
    }  # fmt: skip


@pytest.fixture
def run_table(tmp_path, monkeypatch):
    """Runs a table with a fake pool; neither corpus nor shards are made."""
    monkeypatch.setattr(ablation_data.Corpora, "make", lambda self, recipe: tmp_path / "corpus")
    monkeypatch.setattr(ablation_data.Corpora, "dataset", lambda self, recipe, placed, split: "shards")

    def run(table: Table = TABLE, pool: FakePool | None = None, seeds: int = 3, **more: Any):
        pool = pool or FakePool()
        given = {"cells": table.cells, "home": tmp_path, "rows": Rows(tmp_path / "rows", table.name)} | more
        ablation = Ablation(
            table=table, seeds=seeds, pool=lambda recipe, runs: contextlib.nullcontext(pool), **given
        )
        return ablation.execute(), pool

    return run


def test_finished_runs_are_not_repeated_and_run_seed_by_seed(run_table, tmp_path):
    outcome, pool = run_table()
    assert pool.made == [(cell.name, seed) for seed in range(3) for cell in TABLE.cells]
    assert outcome.left == 0 and not outcome.failed
    before = {path: path.read_bytes() for path in (tmp_path / "rows").rglob("*") if path.is_file()}
    again, idle = run_table()
    scores = [{run: row["scores"] for run, row in one.rows.items()} for one in (again, outcome)]
    assert idle.made == [] and scores[0] == scores[1]
    assert {path: path.read_bytes() for path in before} == before
    more, pool = run_table(seeds=4)
    assert pool.made == [(cell.name, 3) for cell in TABLE.cells] and len(more.rows) == 12


def test_a_failed_run_is_named_and_the_others_go_on(run_table, capsys):
    outcome, pool = run_table(pool=FakePool(fails=("two", 1)))
    assert len(outcome.rows) == 8 and list(outcome.failed) == [("two", 1)]
    assert (
        "the loss is inf (log: " in outcome.failed["two", 1]
        and "two, seed 1: failed" in capsys.readouterr().err
    )
    again, pool = run_table()
    assert pool.made == [("two", 1)] and len(again.rows) == 9


def test_no_run_starts_after_the_budget(run_table, monkeypatch):
    clock = iter(range(0, 10_000, 10))  # every look at the clock is ten seconds later
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    outcome, pool = run_table(budget_s=100.0)
    assert 0 < len(pool.made) < 9 and outcome.left == 9 - len(pool.made)
    assert "not run" in as_markdown(measure(TABLE, replace(outcome, rows={}), 3))


def test_a_row_is_reused_by_what_decides_its_scores(run_table, tmp_path, capsys):
    run_table()
    paths = replace(TABLE, cells=TABLE.cells[:1])
    assert run_table(paths, overrides=["precompute.actors=1", "watch.hang_timeout_s=9"])[1].made == []
    _, pool = run_table(paths, overrides=["pretrain.max_steps=9"])
    assert len(pool.made) == 3 and "not reused" in capsys.readouterr().err
    # The same run under another name in another table is the same row.
    other = replace(TABLE, name="other", cells=(replace(TABLE.cells[1], name="CLIP"),))
    outcome, pool = run_table(other)
    assert pool.made == [] and (tmp_path / "rows/other/clip-2.txt").is_file()
    assert (
        outcome.rows["CLIP", 0]["scores"]
        == json.loads((tmp_path / "rows/made/two-0.json").read_text())["scores"]
    )
    assert run_table(replace(TABLE, split="test"))[1].made  # another split is another run
    assert run_table(replace(other, scores=("bleu4", "best_control")))[1].made  # its row has no controls
    assert run_table(replace(other, cells=(replace(other.cells[0], stages=("finetune",)),)))[1].made


@pytest.mark.parametrize("damage", ["{", "{}", '{"identity": 3}', None])
def test_a_damaged_row_is_named_and_made_again(run_table, tmp_path, damage, capsys):
    run_table(seeds=1)
    row = tmp_path / "rows/made/two-0.json"
    if damage is None:
        row.with_suffix(".txt").write_text("something else\n")
    else:
        row.write_text(damage)
    _, pool = run_table(seeds=1)
    assert pool.made == [("two", 0)] and "two-0.json: " in capsys.readouterr().err


def test_the_language_model_is_of_one_seed(run_table):
    _, pool = run_table()
    assert pool.language.pretrain.seed == 0
    for recipe, stages, needed in (
        ("ablation", ("pretrain",), True),
        ("sign2gpt-ablation", ("pretrain",), False),
        ("sign2gpt-ablation", ("pretrain", "finetune"), True),
    ):
        assert needs_language_model(load_recipe(recipe), stages) == needed


def test_figures_are_their_definitions(run_table):
    outcome, _ = run_table()
    measured = measure(TABLE, outcome, 3)
    assert measured.reference == "one | a"
    for cell in measured.cells:
        values = [outcome.rows[cell.name, seed]["scores"]["bleu4"] for seed in range(3)]
        spread = cell.scores["bleu4"].spread
        assert spread.mean == pytest.approx(np.mean(values)) and spread.deviation == pytest.approx(
            np.std(values, ddof=1)
        )
        half = 4.302653 * np.std(values, ddof=1) / 3**0.5  # Student's t, two degrees of freedom
        assert (spread.low, spread.high) == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    two, three = measured.cells[1], measured.cells[2]
    apart = two.scores["bleu4"].spread.mean - measured.cells[0].scores["bleu4"].spread.mean
    assert two.scores["bleu4"].test.difference == pytest.approx(apart)
    assert three.scores["bleu4"].test.difference == 0 and three.scores["bleu4"].test.p == 1
    assert two.scores["pretrain.r1"].test.difference == 1 and two.scores["pretrain.r1"].test.p < 1e-6
    assert measured.cells[0].scores["bleu4"].test is None


def test_pages_keep_measured_and_published_apart(run_table):
    outcome, _ = run_table()
    measured = measure(TABLE, outcome, 3, ["pretrain.max_steps=3"])
    markdown = as_markdown(measured)
    head = next(line for line in markdown.splitlines() if line.startswith("| cell"))
    assert head.endswith("| published: BLEU-4 |") and head.count("published") == 1
    row = next(line for line in markdown.splitlines() if line.startswith("| one \\| a"))
    assert row.endswith("| 20 |") and "reference" in row
    for said in ("synthetic", "scored clips: 3", "tok:13a", "steps: pretrain 3, finetune 2", "seeds: 3", "split: dev",
                 "device: CPU", "pretrain.max_steps=3"):  # fmt: skip
        assert said in markdown
    table = list(csv.DictReader(io.StringIO(as_csv(measured))))
    assert len(table) == 6 and table[0]["published"] == "20.0" and table[2]["published"] == ""
    assert float(table[0]["seed_2"]) == pytest.approx(outcome.rows["one | a", 2]["scores"]["bleu4"])
    page = as_page(measured)
    assert "Two cells &lt;b&gt;" in page and "<b>" not in page.partition("<main")[0].partition("<h1")[2]
    assert page.count("<svg") == 1 and ">measured<" in page and ">published<" in page
    ET.fromstring(chart_file(measured))


def test_a_table_with_axes_draws_a_curve_over_each(run_table):
    cells = tuple(Cell(name=f"b{b}", changes={"clcl.beta": b}) for b in (0.2, 0.6, 0.8))
    table = replace(TABLE, cells=cells, axes=("clcl.beta", "tokens"))
    outcome, _ = run_table(table)
    measured = measure(table, outcome, 3)
    assert [cell.axes for cell in measured.cells] == [
        {"clcl.beta": b, "tokens": 91.0} for b in (0.2, 0.6, 0.8)
    ]
    drawn = ET.fromstring(chart_file(measured))
    labels = [node.get("aria-label", "") for node in drawn.iter("{http://www.w3.org/2000/svg}svg")]
    assert any("over clcl.beta" in label for label in labels) and any(
        "over tokens" in label for label in labels
    )


def test_a_run_leaves_a_row_with_all_that_a_table_needs(tmp_path):
    recipe = tiny_recipe("features", "pretrain.max_steps=2", "finetune.max_steps=2")
    data = make_shards(tmp_path / "shards", recipe, [("train", 12), ("dev", 5)])
    make_language_folder(tmp_path / "shared" / "language_model")
    (tmp_path / "shared" / "language_model" / "prepared.json").write_text('{"dev_gloss_to_text_bleu4": 70.5}')
    run = Run(
        cell="one", seed=0, recipe=recipe, stages=("pretrain", "finetune"), split="dev", identity="abc",
        folder=tmp_path / "run", data=data, language_model=tmp_path / "shared",
    )  # fmt: skip
    row = make_run(run)
    assert {"bleu4", "rouge_l", "pretrain.r1_v2t", "token_ratio"} <= row["scores"].keys()
    assert row["steps"] == {"pretrain": 2, "finetune": 2} and row["clips_seen"] == 24 and row["tokens"] > 0
    assert row["clips"] == 5 == len(row["texts"]) and row["ceiling"] == 70.5 and row["languages"] == ["de"]
    assert row["references"] == digest([reference for _, reference, _ in row["texts"]])
    rows = Rows(tmp_path / "rows", "made")
    rows.put(row)
    assert Rows(tmp_path / "rows", "made").find("one", 0, "abc")["scores"] == row["scores"]
    # A run of another recipe in the same folder begins anew.
    other = replace(
        run, recipe=tiny_recipe("features", "finetune.max_steps=1"), stages=("finetune",), identity="abd"
    )
    other = replace(other, recipe=replace(other.recipe, finetune=replace(other.recipe.finetune, init="none")))
    assert make_run(other)["steps"] == {"finetune": 1} and not (tmp_path / "run" / "pretrain").exists()


def test_paths_of_a_home_are_no_part_of_a_run(tmp_path):
    recipe = load_recipe("ablation", ["segmentation.tagger=precomputed", "segmentation.labels=$corpus/gold"])
    placed = ablation_data.in_place(recipe, tmp_path)
    assert (
        placed.segmentation.labels == f"{tmp_path}/gold"
        and placed.vision.keypoints == f"{tmp_path}/keypoints"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which table?"),
        (["ordering"], "did you mean 'orderings'?"),
        (["orderings", "--cells", "CLPI"], "has no cell 'CLPI' (did you mean 'CLIP'?)"),
        (["orderings", "clcl.bta=1"], "unknown key 'clcl.bta'"),
        (["orderings", "--rows", "s3://bucket/rows"], "must lie on this machine"),
    ],
)
def test_wrong_usage_is_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.run(["ablate", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (Outcome(), 0, ""),
        (Outcome(left=2), 4, "runs not begun within --budget: 2; the same command goes on"),
        (
            Outcome(left=2, failed={("CLIP", 1): "the loss is inf (log: x)"}),
            1,
            "failed: CLIP, seed 1: the loss is inf",
        ),
    ],
)
def test_the_exit_code_says_whether_all_was_made(outcome, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Ablation, "execute", lambda self: outcome)
    assert main.run(["ablate", "orderings", "--rows", str(tmp_path), "--home", str(tmp_path)]) == code
    printed = capsys.readouterr()
    assert said in printed.err and "not run" in printed.out and (tmp_path / "orderings.html").is_file()


def test_the_list_names_tables_and_cells(capsys):
    assert main.run(["ablate", "--list"]) == 0
    printed = capsys.readouterr().out
    assert "orderings: Stage 1" in printed and "  CLIP\n" in printed


def test_cells_and_seeds_that_were_not_asked_for_keep_their_figures(run_table):
    run_table()
    alone, pool = run_table(cells=TABLE.cells[1:2], seeds=4)
    assert pool.made == [("two", 3)] and {cell for cell, _ in alone.rows} == {"one | a", "two", "three"}
    assert {cell.name: cell.runs for cell in measure(TABLE, alone, 4).cells} == {
        "one | a": 3,
        "two": 4,
        "three": 3,
    }


def test_a_cell_without_a_dataset_fails_alone(run_table, tmp_path, monkeypatch):
    def dataset(self, recipe, placed, split):
        if recipe.clcl.loss == "clip":
            raise UsageError("segmentation.labels: there is no labels")
        return "shards"

    monkeypatch.setattr(ablation_data.Corpora, "dataset", dataset)
    outcome, pool = run_table()
    assert [cell for cell, _ in pool.made] == ["one | a", "three"] * 3
    assert outcome.failed == {("two", seed): "segmentation.labels: there is no labels" for seed in range(3)}
    with pytest.raises(UsageError, match="there is no labels"):
        run_table(cells=TABLE.cells[1:2])


@pytest.mark.parametrize("wrong", ["home", "rows"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_run(run_table, tmp_path, wrong):
    (tmp_path / "file").write_text("")
    paths = {"home": tmp_path / "home", "rows": Rows(tmp_path / "rows", "made")}
    paths[wrong] = tmp_path / "file" if wrong == "home" else Rows(tmp_path / "file", "made")
    pool = FakePool()
    with pytest.raises(StorageError, match=r"file.* is no folder that can be written"):
        run_table(pool=pool, **paths)
    assert pool.made == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("ceiling", ["x"]), ("steps", {"pretrain": {}}), ("versions", {"torch": []}), ("tokens", "many"),
     ("notice", {}), ("scores", {"bleu4": "high"}), ("references", "../rows")],
)  # fmt: skip
def test_an_edited_row_is_named_and_made_again(run_table, tmp_path, key, value, capsys):
    run_table(seeds=1)
    path = tmp_path / "rows/made/two-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    outcome, pool = run_table(seeds=1)
    assert pool.made == [("two", 0)] and "two-0.json: damaged" in capsys.readouterr().err
    assert as_markdown(measure(TABLE, outcome, 1))


def made_run(folder: Path, identity: str) -> Run:
    return Run(
        cell="one", seed=0, recipe=tiny_recipe("features"), stages=("pretrain",), split="dev", identity=identity,
        folder=folder, data="shards", language_model=None,
    )  # fmt: skip


def test_two_calls_never_train_in_one_folder(tmp_path):
    run = made_run(tmp_path / "run", "abc")
    with begun(run):
        (run.folder / "log").write_text("a step")
        for other in (run, made_run(run.folder, "abd")):
            with pytest.raises(UsageError, match="is in use"), begun(other):
                pass
        assert (run.folder / "log").read_text() == "a step"
    with begun(run):  # the same run goes on
        assert (run.folder / "log").is_file()
    with begun(made_run(run.folder, "abd")):  # another begins anew
        assert not (run.folder / "log").exists()


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("finished")
    with pytest.raises(UsageError, match="holds other files than a run's"), begun(made_run(tmp_path, "abc")):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "finished"


def test_a_second_call_waits_while_what_runs_share_is_made(tmp_path, monkeypatch, capsys):
    waited = []
    with alone_in(tmp_path):
        monkeypatch.setattr(time, "sleep", lambda seconds: waited.append(seconds) or 1 / 0)
        with pytest.raises(ZeroDivisionError), alone_in(tmp_path):
            pass
    assert waited and "waiting for another" in capsys.readouterr().err
    with alone_in(tmp_path):
        pass


def test_names_are_no_html_in_markdown(run_table):
    table = replace(TABLE, cells=(replace(TABLE.cells[0], name="<script>x</script>"), *TABLE.cells[1:]))
    outcome, _ = run_table(table)
    page = as_markdown(measure(table, outcome, 3))
    assert "&lt;script>" in page and "<script" not in page and "<b>" not in page and "p < 0.001" in page
