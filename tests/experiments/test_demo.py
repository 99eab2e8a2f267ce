"""The demos: what the recipes share, and where their data lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage_scale.config import load_recipe
from sage_scale.experiments.demo import control_overrides, home_of_data


def test_both_models_take_the_same_corpus_and_shards():
    """Only what decides clips and bytes may not differ; models, stages and evaluation do."""
    home = Path("runs") / "sign2gpt-demo"
    recipe = load_recipe("sign2gpt-demo")
    assert home_of_data(recipe, home) == Path("runs") / "demo"
    assert recipe.dataset_fingerprint() == load_recipe("demo").dataset_fingerprint()
    assert (
        home_of_data(load_recipe("sign2gpt-demo", ["model.sign2gpt.width=64"]), home) == Path("runs") / "demo"
    )


@pytest.mark.parametrize("change", ["vision.size=32", "corpus.train_clips=24", "segmentation.tagger=uniform"])
def test_another_dataset_lies_with_its_run(change):
    home = Path("runs") / "sign2gpt-demo"
    changes = [change, "vision.crop=32"] if change.startswith("vision") else [change]
    assert home_of_data(load_recipe("sign2gpt-demo", changes), home) == home


@pytest.mark.parametrize("name", ["demo", "sign2gpt-demo"])
def test_stages_end_by_steps_and_minutes_are_a_limit_far_above(name):
    """On an idle machine a stage takes an eighth of its limit (docs/results); no epoch ends one before its steps."""
    recipe = load_recipe(name)
    batches = recipe.corpus.train_clips / recipe.pretrain.batch_size
    for stage in (recipe.pretrain, recipe.finetune):
        assert 0 < stage.max_steps <= stage.epochs * batches and stage.max_minutes >= 14
    assert recipe.denoise.max_minutes >= 10


@pytest.mark.parametrize("name, steps", [("demo", 516), ("sign2gpt-demo", 590)])
def test_the_control_has_the_budget_of_both_stages_and_nothing_of_stage_1(name, steps):
    recipe = load_recipe(name)
    control = load_recipe(name, control_overrides(recipe))
    assert control.finetune.max_steps == steps
    assert control.finetune.max_minutes == recipe.pretrain.max_minutes + recipe.finetune.max_minutes
    assert (control.finetune.init, control.finetune.freeze) == ("none", "none")
    assert control.finetune.visual_lr_scale * control.finetune.lr == pytest.approx(recipe.pretrain.lr)


def test_a_control_without_steps_or_minutes_has_the_epochs_of_both():
    changes = ["pretrain.max_steps=0", "finetune.max_minutes=0"]
    recipe = load_recipe("demo", changes)
    control = load_recipe("demo", [*changes, *control_overrides(recipe)]).finetune
    assert (control.max_steps, control.max_minutes, control.epochs) == (0, 0.0, 28)
