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
def test_the_control_has_the_time_of_both_stages_and_nothing_of_stage_1(name):
    recipe = load_recipe(name)
    control = load_recipe(name, control_overrides(recipe))
    assert control.finetune.max_minutes == recipe.pretrain.max_minutes + recipe.finetune.max_minutes
    assert (control.finetune.init, control.finetune.freeze) == ("none", "none")
    assert control.finetune.visual_lr_scale * control.finetune.lr == pytest.approx(recipe.pretrain.lr)
