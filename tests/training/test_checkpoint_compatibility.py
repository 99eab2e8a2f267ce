"""A checkpoint of another model is refused by the keys that differ; harmless changes are told and allowed."""

from __future__ import annotations

import json
import re

import pytest
import torch
from factories.training import log_rows, make_language_folder, make_shards, tiny_recipe
from safetensors.torch import load_file

from sage_scale.config import Recipe, override
from sage_scale.config.recipe import flat, to_mapping
from sage_scale.errors import CheckpointError
from sage_scale.training.checkpoint.checkpoints import Checkpoints
from sage_scale.training.checkpoint.compatibility import RunIdentity
from sage_scale.training.engine import Engine
from sage_scale.training.stage import run_stage

PLAN = [("train", 12), ("dev", 4)]


def state_of(identity: RunIdentity) -> dict:
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
    state = state_of(RunIdentity.of("pretrain", recipe))
    other = RunIdentity.of("pretrain", override(recipe, changes))
    with pytest.raises(CheckpointError) as refused:
        other.compare(state, "there", lambda line: None)
    for name in named:
        assert name in str(refused.value)


def test_changes_that_a_user_may_make_are_told():
    recipe = tiny_recipe()
    state = state_of(RunIdentity.of("pretrain", recipe))
    lines: list[str] = []
    RunIdentity.of("pretrain", recipe).compare(state, "there", lines.append)
    assert lines == []
    changed = override(
        recipe, ["pretrain.lr=0.5", "pretrain.zero_stage=3", "finetune.optimizer=adamw", "name=x"]
    )
    RunIdentity.of("pretrain", changed).compare(state, "there", lines.append)
    assert len(lines) == 1 and re.search(r"pretrain\.lr 0\.003 -> 0\.5", lines[0])
    assert "finetune" not in lines[0] and "name" not in lines[0]


@pytest.mark.parametrize("key", ["model.token_dim", "pretrain.spike_factor", "vision.backbone_dtype"])
def test_a_key_that_an_older_version_did_not_have_counts_as_its_default(key):
    """Breaking keys and others: silent at the default, reported or refused elsewhere."""
    default = flat(to_mapping(Recipe()))
    recipe = override(Recipe(), ["pretrain.lr=0.5"])
    state = state_of(RunIdentity.of("pretrain", recipe))
    section, name = key.split(".")
    del state["recipe"][section][name]
    lines: list[str] = []
    RunIdentity.of("pretrain", recipe).compare(state, "there", lines.append)
    assert lines == []
    other = {"model.token_dim": "32", "pretrain.spike_factor": "7.0", "vision.backbone_dtype": "bfloat16"}[
        key
    ]
    changed = RunIdentity.of("pretrain", override(recipe, [f"{key}={other}"]))
    try:
        changed.compare(state, "there", lines.append)
    except CheckpointError as refused:
        assert f"{key}={other} (there: {default[key]})" in str(refused)
    else:
        assert len(lines) == 1 and f"{key} {default[key]} -> {other}" in lines[0]


def test_exchanged_frozen_weights_are_refused_wherever_the_run_lies(tmp_path):
    for name, content in (("one", b"weights"), ("moved", b"weights"), ("other", b"Weights")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    recipe = tiny_recipe()
    state = state_of(RunIdentity.of("pretrain", recipe, [tmp_path / "one"]))
    RunIdentity.of("pretrain", recipe, [tmp_path / "moved"]).compare(state, "there", lambda line: None)
    RunIdentity.of("pretrain", recipe, [tmp_path / "a name on a hub"]).compare(
        state, "there", lambda line: None
    )
    with pytest.raises(CheckpointError, match=r"other frozen weights than .*other/model\.safetensors"):
        RunIdentity.of("pretrain", recipe, [tmp_path / "other"]).compare(state, "there", lambda line: None)


def test_a_run_refuses_the_checkpoint_of_another_model(tmp_path):
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe("features", f"model.language_model={language}", "pretrain.max_steps=2")
    data = make_shards(tmp_path / "shards", recipe, PLAN)
    run_stage("pretrain", recipe, tmp_path / "run", data)
    with pytest.raises(CheckpointError, match=r"model\.token_dim=48 \(there: 24\)"):
        run_stage("pretrain", override(recipe, ["model.token_dim=48"]), tmp_path / "run", data)


@pytest.mark.parametrize(
    ("zero", "optimizer", "scale", "becomes"),
    [(0, "sgd", 14.47, 14.47), (0, "adamw", 250.0, 100.0), (1, "adamw", 14.47, 14.47), (2, "sgd", -1.0, 1.0),
     (3, "adamw", 3.5, 3.5)],
)  # fmt: skip
def test_a_checkpoint_of_version_0_1_0_is_converted(tmp_path, capsys, zero, optimizer, scale, becomes):
    """It holds each scale itself, which its forward pass clamped at 100, and the scale's own moments."""
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe(
        "features", f"model.language_model={language}", "pretrain.max_steps=2", "pretrain.batch_size=4",
        f"pretrain.zero_stage={zero}", f"pretrain.optimizer={optimizer}", "pretrain.save_every=1",
    )  # fmt: skip
    data = make_shards(tmp_path / "shards", recipe, PLAN)
    run_stage("pretrain", recipe, tmp_path / "run", data)
    checkpoints = Checkpoints(tmp_path / "run" / "pretrain" / "checkpoints")
    for step in checkpoints.steps():
        as_version_0_1_0(checkpoints, step, scale)
    kinds = {"sgd": ["momentum_buffer"], "adamw": ["exp_avg", "exp_avg_sq"]}[optimizer]
    with pytest.MonkeyPatch.context() as patch:
        engines: list[Engine] = []
        load = Checkpoints.load

        def seen(self, engine, step, say=lambda line: None):
            progress = load(self, engine, step, say)
            engines.append(engine)
            for name, parameter in engine.trainable_parameters():
                moments = [engine.optimizer_state(parameter, kind) for kind in kinds]
                if name.startswith("log_scale"):
                    assert engine.weight(parameter).exp().item() == pytest.approx(becomes, rel=1e-6)
                    assert all(moment.abs().sum() == 0 for moment in moments)
                elif name.startswith("mapper"):
                    assert any(moment.abs().sum() > 0 for moment in moments)
            return progress

        patch.setattr(Checkpoints, "load", seen)
        capsys.readouterr()
        run_stage("pretrain", override(recipe, ["pretrain.max_steps=4"]), tmp_path / "run", data)
    assert engines
    said = [line for line in capsys.readouterr().err.splitlines() if "0.1.0" in line]
    assert len(said) == 1 and "logarithms" in said[0] and "moments" in said[0]
    scales = [row["scale_embedding"] for row in log_rows(tmp_path / "run", event="step")][-2:]
    assert scales[0] == pytest.approx(becomes, rel=1e-5) and len(scales) == 2
    assert "weight/log_scale_hidden" in checkpoints.tensors(4)


def as_version_0_1_0(checkpoints: Checkpoints, step: int, scale: float) -> None:
    """Write a checkpoint again as that version did, with its scales at `scale` and moments that are not zero."""
    state = checkpoints.state(step)
    files = {}
    for number, name in enumerate(state["files"]):
        tensors = load_file(checkpoints.store.local_path(f"step-{step:08d}/{name}"))
        for key in [key for key in tensors if "log_scale" in key]:
            tensors[key.replace("log_scale", "scale")] = torch.full_like(
                tensors.pop(key), scale if key.startswith("weight/") else 0.5
            )
        new = f"tensors-00000-{number:03d}-00000000.safetensors"
        files[new] = checkpoints.write_file(step, new, tensors)
    checkpoints.identity = RunIdentity("pretrain", state["recipe"], state["frozen"])
    shaped = {name.replace("log_scale", "scale"): shape for name, shape in state["shapes"].items()}
    checkpoints.write_state(state["progress"], files, shaped)
