"""Both stages of Sign2GPT as their user meets them: what they leave behind, what stays frozen, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.training import log_rows, losses, make_causal_folder, make_shards, sign2gpt_recipe
from safetensors.torch import load_file

from sage_scale.config import override
from sage_scale.errors import CheckpointError, RecipeError
from sage_scale.models.sign2gpt.sign_features import SignWriter, overrides_of, write_sign_features
from sage_scale.shards import open_dataset, verify_dataset
from sage_scale.streaming import open_datasets, open_evaluation
from sage_scale.training import evaluate_run, export
from sage_scale.training.monitor.stop_requests import Interrupted, StopRequest
from sage_scale.training.stage import STAGE1, run_stage

PLAN = [("train", 20), ("train", 9), ("dev", 6), ("test", 5)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("sign2gpt")
    recipe = sign2gpt_recipe("frames", f"model.language_model={make_causal_folder(root / 'language')}")
    make_shards(root / "shards", recipe, PLAN)
    return root, recipe


@pytest.fixture(scope="module")
def trained(world):
    root, recipe = world
    run_stage("pretrain", recipe, root / "run", str(root / "shards"))
    run_stage("finetune", recipe, root / "run", str(root / "shards"))
    return root / "run"


def test_both_stages_learn_and_the_export_translates(world, trained):
    root, recipe = world
    for stage in ("pretrain", "finetune"):
        found = losses(trained, stage)
        assert len(found) == 20 and np.mean(found[-5:]) < np.mean(found[:5]), stage
        assert all(0 < row["mfu"] < 1.5 for row in log_rows(trained, stage, "step"))
    scores = evaluate_run.run(trained, str(root / "shards"), controls=True)
    assert scores["clips"] == 5 and set(scores["controls"]) >= {"blank_videos", "prior_sentence"}
    model, _, loaded = export.load_translator(trained / "model")
    assert loaded.fingerprint() == recipe.fingerprint()
    stored = load_file(trained / "model" / "adapters.safetensors")
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains <= stored.keys() and not any(name.endswith("base.weight") for name in stored)


def test_only_what_trains_is_in_a_checkpoint(trained):
    newest = sorted((trained / "finetune" / "checkpoints").glob("step-*"))[-1]
    names = {name for file in newest.glob("*.safetensors") for name in load_file(file)}
    model, _, _ = export.load_translator(trained)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.removeprefix("weight/") for name in names if name.startswith("weight/")} == trains
    frozen = json.loads((newest / "state.json").read_text())["frozen"]
    assert {Path(path).name for path in frozen} == {"model.safetensors", "visual.safetensors"}


def test_stage_1_says_how_well_pseudo_glosses_are_found_and_where(trained):
    said = json.loads((trained / "prototypes.json").read_text())
    assert set(said["splits"]) == {"dev", "test"} and said["prototypes"] == 6
    for scores in said["splits"].values():
        assert 0 <= scores["f1"] <= 100 and scores["control"]["f1"] > 0
    maps = json.loads((trained / "localisation.json").read_text())
    assert len(maps) == 6
    for clip in maps:
        # Half of the stored frames, of which a presence is the sum.
        assert len(clip["times"]) == -(-len(range(0, clip["frames"], 2)) // 2)
        for row in clip["rows"]:
            assert len(row["values"]) == len(clip["times"])
            assert sum(row["values"]) == pytest.approx(row["presence"], abs=0.01)
        there = {row["gloss"] for row in clip["rows"] if row["there"]}
        assert there == set(clip["sentence"].split())
        assert clip["pictures"] and all(picture["frame"] < clip["frames"] for picture in clip["pictures"])


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_interrupted_stage_resumes_to_the_same_losses(world, trained, tmp_path, monkeypatch, stage):
    root, recipe = world
    if stage == "finetune":
        (tmp_path / "pretrain").mkdir()
        (tmp_path / STAGE1).write_bytes((trained / STAGE1).read_bytes())
    asked = iter([False] * 6 + [True])

    def asked_after_six_steps(self):
        return next(asked, False)

    monkeypatch.setattr(
        StopRequest, "asked", property(asked_after_six_steps, lambda self, value: None), raising=False
    )
    with pytest.raises(Interrupted):
        run_stage(stage, recipe, tmp_path, str(root / "shards"))
    monkeypatch.undo()
    run_stage(stage, recipe, tmp_path, str(root / "shards"))
    assert losses(tmp_path, stage) == pytest.approx(losses(trained, stage), rel=1e-5)


def test_micro_batches_are_the_batch(world, trained, tmp_path):
    """No clip is another's negative, so with frozen statistics any cut of the batch gives the same losses."""
    root, recipe = world
    whole = override(recipe, ["model.batchnorm=frozen", "pretrain.max_steps=6"])
    parts = override(whole, ["pretrain.micro_batch=2"])
    run_stage("pretrain", whole, tmp_path / "whole", str(root / "shards"))
    run_stage("pretrain", parts, tmp_path / "parts", str(root / "shards"))
    assert losses(tmp_path / "parts", "pretrain") == pytest.approx(
        losses(tmp_path / "whole", "pretrain"), rel=1e-4
    )


def test_with_the_visual_side_frozen_only_adapters_train(world, trained, tmp_path):
    root, recipe = world
    (tmp_path / "pretrain").mkdir()
    (tmp_path / STAGE1).write_bytes((trained / STAGE1).read_bytes())
    changed = override(recipe, ["finetune.freeze=visual", "finetune.frozen_views=2", "finetune.max_steps=12"])
    run_stage("finetune", changed, tmp_path, str(root / "shards"))
    before = load_file(tmp_path / STAGE1)
    after = load_file(tmp_path / "model" / "adapters.safetensors")
    visual = [name for name in after if name.startswith(("spatial.", "sign_encoder."))]
    assert visual
    for name in visual:
        assert torch.equal(before[name], after[name]), name
    gates = [value for name, value in after.items() if name.endswith(".gate")]
    assert gates and all(bool((value != 0).any()) for value in gates)


def test_a_language_model_trained_along_moves_at_its_own_rate_and_is_exported(world, trained, tmp_path):
    root, recipe = world
    language = Path(recipe.model.language_model)
    changes = [
        "finetune.init=none",
        "finetune.max_steps=3",
        "finetune.warmup=0",
        "model.sign2gpt.language_lr_scale=0.1",
    ]
    run_stage("finetune", override(recipe, changes), tmp_path / "run", str(root / "shards"))
    first = load_file(language / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "language_model" / "model.safetensors")
    assert first.keys() == after.keys()
    moved = {name: (after[name] - value).abs().max().item() for name, value in first.items()}
    rate = recipe.finetune.lr
    decay = rate * recipe.finetune.weight_decay
    # AdamW moves a weight by at most about its rate in a step.
    assert all(0 < move <= 3 * 0.1 * (rate + decay) * 1.1 for move in moved.values()), moved
    adapters = load_file(tmp_path / "run" / "model" / "adapters.safetensors")
    gates = [value.abs().max().item() for name, value in adapters.items() if name.endswith(".gate")]
    assert gates and max(gates) > 2 * 0.1 * rate
    model, tokenizer, _ = export.load_translator(tmp_path / "run")
    batch = next(iter(open_evaluation(str(root / "shards"), recipe, "test", batch_size=5)))
    assert len(model.generate(batch.video, tokenizer, ["de"] * 5, beams=1, max_tokens=8)) == 5
    newest = sorted((tmp_path / "run" / "finetune" / "checkpoints").glob("step-*"))[-1]
    assert json.loads((newest / "state.json").read_text())["frozen"] == {}
    with pytest.raises(CheckpointError, match="language_lr_scale"):
        run_stage("finetune", override(recipe, changes[:3]), tmp_path / "run", str(root / "shards"))
    with pytest.raises(RecipeError, match="language_dtype=float32"):
        override(recipe, [*changes, "model.sign2gpt.language_dtype=bfloat16"])


def test_all_words_of_the_sentence_may_be_prototypes(world, tmp_path):
    """text.target=sentence asks for words of the sentence, whatever the pseudo-glosses are (Table 9)."""
    root, recipe = world
    changed = override(
        recipe, ["text.target=sentence", "pretrain.max_steps=1", "prototypes.vectors=cooccurrence"]
    )
    run_stage("pretrain", changed, tmp_path, str(root / "shards"))
    said = json.loads((tmp_path / "pretrain" / "prototypes" / "prototypes.json").read_text())
    assert said["glosses"] == sorted(["rot", "blau", "grau", "weiss", "gold", "lila"])
    assert (tmp_path / "pretrain" / "prototypes" / "cooccurrence.vec").read_text().startswith("6 12\n")


def test_a_budget_of_tokens_ends_a_stage_and_is_kept_over_a_resume(world, tmp_path):
    root, recipe = world
    data = str(root / "shards")
    run_stage("pretrain", override(recipe, ["pretrain.max_steps=6"]), tmp_path / "whole", data)
    rows = log_rows(tmp_path / "whole", event="step")
    sums = np.cumsum([row["visual_tokens"] + row["text_tokens"] for row in rows])
    budget = override(recipe, [f"pretrain.max_tokens={int(sums[3]) - 1}"])
    assert run_stage("pretrain", budget, tmp_path / "budget", data)["steps"] == 4
    assert run_stage("pretrain", budget, tmp_path / "budget", data)["steps"] == 4
    more = override(recipe, [f"pretrain.max_tokens={int(sums[5]) - 1}"])
    assert run_stage("pretrain", more, tmp_path / "budget", data)["steps"] == 6


def test_sign_features_written_once_are_what_the_frozen_stage_1_gives(world, trained, tmp_path):
    """In the order of the dataset, as float16; from them stage 2 trains the decoder's adapters alone."""
    root, recipe = world
    data, signs = str(root / "shards"), str(tmp_path / "signs")
    made = write_sign_features(trained, data, signs)
    assert made.splits == open_dataset(data).splits and not verify_dataset(signs).problems
    again = [path.stat().st_mtime_ns for path in sorted((tmp_path / "signs").glob("*.tar"))]
    write_sign_features(trained, data, signs)
    assert again == [path.stat().st_mtime_ns for path in sorted((tmp_path / "signs").glob("*.tar"))]

    writer = SignWriter(trained)
    stored = override(recipe, ["finetune.max_steps=8", *overrides_of(recipe)])
    for split in ("train", "dev"):
        pairs = zip(
            open_evaluation(open_datasets(data), recipe, split, rank=0, world=1, batch_size=4),
            open_evaluation(open_datasets(signs), stored, split, rank=0, world=1, batch_size=4),
            strict=True,
        )
        for frames, features in pairs:
            expected, lengths = writer.model.encode(replace(frames.video, clip_seeds_B=None))
            assert frames.keys == features.keys
            assert lengths.tolist() == features.video.segment_frames_N.tolist()
            torch.testing.assert_close(features.video.features_FC.float(), expected, rtol=2e-3, atol=2e-3)
    run_stage("finetune", stored, tmp_path / "stored", signs)
    model, _, _ = export.load_translator(tmp_path / "stored")
    assert model.spatial is None and model.sign_encoder is None


def test_mistakes_are_named(world, trained, tmp_path):
    root, recipe = world
    run, data = tmp_path / "run", str(root / "shards")
    with pytest.raises(RecipeError, match="cooccurrence"):
        run_stage("pretrain", override(recipe, ["prototypes.vectors=fasttext"]), run, data)
    with pytest.raises(CheckpointError, match=r"cc\.xx\.bin: there is no such file"):
        vectors = ["prototypes.vectors=fasttext", "prototypes.fasttext=cc.xx.bin"]
        run_stage("pretrain", override(recipe, vectors), run, data)
    with pytest.raises(RecipeError, match=r"model\.language_model is empty.*XGLM"):
        run_stage("finetune", override(recipe, ["model.language_model="]), run, data)
    with pytest.raises(
        RecipeError, match=r"model\.language_model=.*would not be used.*denoise\.enabled=false"
    ):
        run_stage("finetune", override(recipe, ["denoise.enabled=true"]), run, data)
    assert not run.exists()  # nothing half-made is left behind
    with pytest.raises(CheckpointError, match=r"model\.sign2gpt\.window"):
        run_stage("pretrain", override(recipe, ["model.sign2gpt.window=5"]), trained, str(root / "shards"))
    with pytest.raises(RecipeError, match="visual_context"):
        override(recipe, ["finetune.init=visual_context"])
    with pytest.raises(CheckpointError, match="pretrain"):
        run_stage("finetune", recipe, tmp_path, str(root / "shards"))
