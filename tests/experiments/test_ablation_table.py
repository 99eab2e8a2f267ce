"""Ablation tables: the shipped ones are sound, and a wrong one is refused in one line that names cell and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage_scale.config import load_recipe
from sage_scale.errors import RecipeError, UsageError
from sage_scale.experiments.ablation import Outcome
from sage_scale.experiments.ablation_measured import measure
from sage_scale.experiments.ablation_table import load_table, table_names
from sage_scale.experiments.demo import control_overrides
from sage_scale.reporting.ablation_page import as_markdown

SMALL = """
name: small
recipe: ablation
changes: {pretrain.max_steps: 4}
scores: [bleu4, rouge_l]
cells:
  - name: one
    published: {bleu4: 20}
  - name: two
    changes: {clcl: {loss: clip, beta: 1}, finetune: {lr: 1e-3, init: none}}
    stages: [finetune]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", table_names())
def test_shipped_tables_are_sound(name):
    table = load_table(name)
    published = any(cell.published for cell in table.cells)
    assert table.name == name and table.title and (table.source or not published)


@pytest.mark.parametrize("name", ["demo", "sign2gpt-demo"])
def test_the_demos_without_stage_1_have_the_budget_of_its_control(name):
    table = load_table(name)
    without = table.recipe_of(table.chosen(["without stage 1"])[0])
    assert without == load_recipe(name, control_overrides(load_recipe(name)))


def test_a_cell_is_the_base_with_the_tables_changes_overrides_and_its_own(tmp_path):
    table = load_table(written(tmp_path, SMALL))
    one, two = table.cells
    assert one.published == {"bleu4": 20.0} and two.stages == ("finetune",)
    recipe = table.recipe_of(two, 3, ["clcl.beta=0.5", "finetune.lr=0.5", "finetune.max_steps=7"])
    assert (recipe.clcl.loss, recipe.clcl.beta) == ("clip", 1.0)  # a cell is what it says it is
    assert (recipe.finetune.lr, recipe.finetune.max_steps, recipe.pretrain.max_steps) == (1e-3, 7, 4)
    assert recipe.pretrain.seed == recipe.finetune.seed == recipe.stream.seed == 3
    assert table.recipe_of(one, 0).fingerprint() != table.recipe_of(two, 0).fingerprint()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cells:", "cellz:", "cells: must be a list"),
        ("scores:", "score:", "unknown key 'score' (did you mean 'scores'?)"),
        ("beta: 1", "bta: 1", "cell 'two': unknown key 'clcl.bta' (did you mean 'beta'?)"),
        ("loss: clip", "loss: clipp", "cell 'two': clcl.loss=clipp: must be one of"),
        ("[finetune]", "[finetuning]", "stages[0]=finetuning: must be one of pretrain, finetune"),
        ("[finetune]", "[finetune, pretrain]", "cell 'two': stages: must be"),
        ("name: two", "name: one", "two cells are named 'one'"),
        ("name: two", "name: One!", "two cells are named 'one', or alike"),
        ("{pretrain.max_steps: 4}", "{stream.seed: 4}", "stream.seed: a run's seed is set by the table"),
        ("name: small", "name: ../small", "name: must be of small letters"),
        ("{bleu4: 20}", "{bleu5: 20}", "published.bleu5 is no score of the table (did you mean 'bleu4'?)"),
        ("{bleu4: 20}", "{bleu4: much}", "cell 'one': published.bleu4=much: must be a finite number"),
        ("recipe: ablation", "recipe: ablations", "no recipe 'ablations' (did you mean 'ablation'?)"),
        ("name: small", "name: [small", "not YAML"),
        ("name: small", "reference: onne", "no cell 'onne' (did you mean 'one'?)"),
        ("{pretrain.max_steps: 4}", "[4]", "changes: must be a mapping"),
        ("rouge_l", "rogue_l", "scores: no score 'rogue_l' (did you mean 'rouge_l'?)"),
        ("rouge_l", "pretrian.loss", "scores: no score 'pretrian.loss'"),
        ("rouge_l", "bleu4", "scores: 'bleu4' occurs twice"),
        (
            "name: small",
            "axes: [stream.fracton]",
            "axes: no recipe key or figure 'stream.fracton' (did you mean",
        ),
        ("name: small", "seeds: 0", "seeds=0: must be 1 to 100"),
        ("init: none", "init: visual", "cell 'two': stages without pretrain need finetune.init=none"),
        ("name: one", f"name: {'漢' * 80}", "must have at most 200 bytes"),
        ("name: small", f"name: {'a' * 300}", "at most 200 bytes"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(tmp_path, old, new, said):
    with pytest.raises(RecipeError) as error:
        load_table(written(tmp_path, SMALL.replace(old, new, 1)))
    assert said in str(error.value) and "small.yaml" in str(error.value)
    assert "\n" not in str(error.value) and error.value.exit_code == 2


def test_a_cell_that_needs_weights_is_run_where_it_is_named(tmp_path):
    table = load_table(written(tmp_path, SMALL + "    needs: XGLM-1.7B (model.language_model)\n"))
    assert [cell.name for cell in table.chosen([])] == ["one"]
    assert [cell.name for cell in table.chosen(["two", "one"])] == ["one", "two"]
    said = as_markdown(measure(table, Outcome(), 3))
    assert "| two | not run: needs XGLM-1.7B (model.language_model) | not run |" in said
    assert "| one | not run | not run |" in said


def test_an_unknown_table_or_cell_names_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match=r"no table 'ordering' \(did you mean 'orderings'\?\)"):
        load_table("ordering")
    with pytest.raises(RecipeError, match="no table file"):
        load_table(tmp_path / "none.yaml")
    table = load_table(written(tmp_path, SMALL))
    assert [cell.name for cell in table.chosen(["two"])] == ["two"]
    with pytest.raises(UsageError, match=r"no cell 'twoo' \(did you mean 'two'\?\)"):
        table.chosen(["twoo"])


@pytest.mark.parametrize(("name", "seen"), [("batch-updates", {200}), ("batch-clips", {7168})])
def test_batch_sizes_are_compared_at_an_equal_number_of_updates_or_clips(name, seen):
    table, found, sizes = load_table(name), set(), set()
    for cell in table.cells:
        recipe = table.recipe_of(cell, 0)
        stage = recipe.pretrain
        sizes.add(stage.batch_size)
        found.add(stage.max_steps * (stage.batch_size if name == "batch-clips" else 1))
        assert (stage.micro_batch, recipe.model.batchnorm, cell.stages) == (
            16,
            "group",
            ("pretrain", "finetune"),
        )
        assert stage.batch_size * stage.max_steps < stage.epochs * recipe.corpus.train_clips
    assert sizes == {16, 64, 256} and found == seen
