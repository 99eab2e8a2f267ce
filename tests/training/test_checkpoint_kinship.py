"""A checkpoint of another model is refused by the keys that differ; harmless changes are told and allowed."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny_world import make_language_folder, make_shards, tiny_recipe

from sage_scale.config import override
from sage_scale.errors import CheckpointError
from sage_scale.training import pretrain
from sage_scale.training.saves.kinship import Identity

PLAN = [("train", 12), ("dev", 4)]


def state_of(identity: Identity) -> dict:
    """As it is read from state.json."""
    return json.loads(json.dumps({"recipe": identity.recipe, "frozen": identity.frozen}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["model.token_dim=32"], ["model.token_dim=32 (there: 24)"]),
        (
            ["model.backbone.widths=[8,32]", "pretrain.optimizer=adamw"],
            ["backbone.widths", "pretrain.optimizer=adamw"],
        ),
        (["text.target=sentence"], ["text.target"]),
    ],
)
def test_another_model_is_refused_by_its_keys(changes, named):
    recipe = tiny_recipe()
    state = state_of(Identity.of("pretrain", recipe))
    other = Identity.of("pretrain", override(recipe, changes))
    with pytest.raises(CheckpointError) as refused:
        other.compare(state, "there", lambda line: None)
    for name in named:
        assert name in str(refused.value)


def test_changes_that_a_user_may_make_are_told():
    recipe = tiny_recipe()
    state = state_of(Identity.of("pretrain", recipe))
    lines: list[str] = []
    Identity.of("pretrain", recipe).compare(state, "there", lines.append)
    assert lines == []
    changed = override(
        recipe, ["pretrain.lr=0.5", "pretrain.zero_stage=3", "finetune.optimizer=adamw", "name=x"]
    )
    Identity.of("pretrain", changed).compare(state, "there", lines.append)
    assert len(lines) == 1 and re.search(r"pretrain\.lr 0\.003 -> 0\.5", lines[0])
    assert "finetune" not in lines[0] and "name" not in lines[0]


def test_exchanged_frozen_weights_are_refused_wherever_the_run_lies(tmp_path):
    for name, content in (("one", b"weights"), ("moved", b"weights"), ("other", b"Weights")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    recipe = tiny_recipe()
    state = state_of(Identity.of("pretrain", recipe, [tmp_path / "one"]))
    Identity.of("pretrain", recipe, [tmp_path / "moved"]).compare(state, "there", lambda line: None)
    Identity.of("pretrain", recipe, [tmp_path / "a name on a hub"]).compare(state, "there", lambda line: None)
    with pytest.raises(CheckpointError, match=r"other frozen weights than .*other/model\.safetensors"):
        Identity.of("pretrain", recipe, [tmp_path / "other"]).compare(state, "there", lambda line: None)


def test_a_run_refuses_the_checkpoint_of_another_model(tmp_path):
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe("features", f"model.language_model={language}", "pretrain.max_steps=2")
    data = make_shards(tmp_path / "shards", tmp_path, recipe, PLAN)
    pretrain.run(recipe, tmp_path / "run", data)
    with pytest.raises(CheckpointError, match=r"model\.token_dim=48 \(there: 24\)"):
        pretrain.run(override(recipe, ["model.token_dim=48"]), tmp_path / "run", data)
