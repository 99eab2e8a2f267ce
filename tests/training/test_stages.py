"""A stage as its user meets it: what it leaves behind, how it stops, and what it says of a mistake."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import training as factory
from factories.ranks import run_ranks
from factories.training import log_rows, losses, make_language_folder, make_shards, tiny_recipe

from sage_scale.config import override
from sage_scale.errors import CheckpointError, DatasetError, RecipeError, UsageError
from sage_scale.models.sage.pretraining import AlignmentTask
from sage_scale.training import evaluate_run, export, throughput
from sage_scale.training.checkpoint.saving import Saver
from sage_scale.training.evaluate_run import derangement
from sage_scale.training.export import load_tensors
from sage_scale.training.monitor.stop_requests import Interrupted, StopRequest
from sage_scale.training.optimizer import learning_rate_factor
from sage_scale.training.stage import STAGE1, run_stage

PLAN = [("train", 20), ("train", 9), ("dev", 6), ("test", 5)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("stages")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe("features", f"model.language_model={language}")
    make_shards(root / "shards", recipe, PLAN)
    return root, recipe


def dev_losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in log_rows(run, event="dev")}


def test_a_fraction_of_the_clips_is_said_and_logged(world, tmp_path, capsys):
    root, recipe = world
    changes = [
        "stream.fraction=0.5",
        "pretrain.max_steps=1",
        "pretrain.evaluate_every=-1",
        "pretrain.checkpoints=",
    ]
    run_stage("pretrain", override(recipe, changes), tmp_path / "half", str(root / "shards"))
    (start,) = log_rows(tmp_path / "half", event="start")
    assert 0 < start["clips"] < 29
    said = capsys.readouterr()
    line = f"pretrain: {start['clips']} of 29 training clips (stream.fraction=0.5)"
    assert line in said.out + said.err


def test_interrupted_stage_resumes_to_the_same_losses(world, tmp_path, monkeypatch):
    """A stop request mid-epoch saves; the repeated command goes on as if nothing had happened, evaluations included."""
    root, recipe = world
    recipe = override(recipe, ["pretrain.evaluate_every=7"])
    run_stage("pretrain", recipe, tmp_path / "whole", str(root / "shards"))
    whole = losses(tmp_path / "whole", "pretrain")

    asked = iter([False] * 6 + [True])

    def asked_after_six_steps(self):
        return next(asked, False)

    monkeypatch.setattr(
        StopRequest, "asked", property(asked_after_six_steps, lambda self, value: None), raising=False
    )
    with pytest.raises(Interrupted):
        run_stage("pretrain", recipe, tmp_path / "parts", str(root / "shards"))
    monkeypatch.undo()
    assert len(losses(tmp_path / "parts", "pretrain")) == 7
    run_stage("pretrain", recipe, tmp_path / "parts", str(root / "shards"))
    assert losses(tmp_path / "parts", "pretrain") == pytest.approx(whole, rel=1e-5)
    one, other = (dev_losses(tmp_path / run) for run in ("whole", "parts"))
    assert list(one) == list(other) == [7, 14, 20]
    assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("moment", ["evaluation", "save"])
def test_a_stop_within_the_last_evaluation_or_save_loses_no_step(world, tmp_path, monkeypatch, moment):
    """The stage is saved at its last step and ends as interrupted; the repeated command makes no step again."""
    root, recipe = world
    recipe = override(recipe, ["pretrain.max_steps=3"])
    place = (AlignmentTask, "evaluate") if moment == "evaluation" else (Saver, "save")
    work = getattr(*place)

    def with_signal(*arguments):
        signal.raise_signal(signal.SIGINT if moment == "save" else signal.SIGTERM)
        return work(*arguments)

    monkeypatch.setattr(*place, with_signal)
    with pytest.raises(Interrupted, match="stopped at step 3 and saved"):
        run_stage("pretrain", recipe, tmp_path, str(root / "shards"))
    monkeypatch.undo()
    assert (tmp_path / "pretrain" / "checkpoints" / "step-00000003" / "state.json").is_file()
    assert run_stage("pretrain", recipe, tmp_path, str(root / "shards"))["steps"] == 3
    assert len(losses(tmp_path, "pretrain")) == 3 and (tmp_path / STAGE1).is_file()


def test_export_opens_and_translates_as_the_trained_model(world, tmp_path):
    """The export holds what was trained: `from_pretrained` opens it, and its weights are the run's."""
    root, recipe = world
    data = str(root / "shards")
    run_stage("pretrain", recipe, tmp_path, data)
    before = load_tensors(tmp_path / STAGE1)
    run_stage("finetune", recipe, tmp_path, data)
    model, tokenizer, loaded = export.load_translator(tmp_path)
    assert loaded.fingerprint() == recipe.fingerprint()
    exported = load_tensors(tmp_path / "model" / "visual.safetensors")
    trained = [name for name in exported if name.startswith("mapper.") and name.endswith("weight")]
    assert any(not torch.equal(exported[name], before[name]) for name in trained)
    from transformers import MBartForConditionalGeneration

    plain = MBartForConditionalGeneration.from_pretrained(tmp_path / "model" / "language_model")
    ids = tokenizer("rot blau", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(
            plain.eval()(ids, decoder_input_ids=ids).logits,
            model.language_model(ids, decoder_input_ids=ids).logits,
        )


def test_export_of_a_trimmed_vocabulary_says_which_rows_it_kept(tmp_path):
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe(
        "features", f"model.language_model={language}", "text.trim_vocabulary=true", "finetune.init=none",
        "finetune.max_steps=1",
    )  # fmt: skip
    data = make_shards(tmp_path / "shards", recipe, [("train", 3), ("dev", 2)])
    run_stage("finetune", recipe, tmp_path / "run", data)
    folder = tmp_path / "run" / "model" / "language_model"
    from transformers import AutoTokenizer, MBartForConditionalGeneration

    kept = json.loads((folder / "vocabulary.json").read_text())["kept_ids"]
    before, after = (AutoTokenizer.from_pretrained(place) for place in (language, folder))
    assert len(kept) == len(after) < len(before)
    assert MBartForConditionalGeneration.from_pretrained(folder).config.vocab_size == len(kept)
    assert [after.convert_ids_to_tokens(i) for i in range(len(kept))] == before.convert_ids_to_tokens(kept)


def test_frozen_backbone_is_untouched_byte_for_byte(tmp_path):
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe(
        "frames",
        f"model.language_model={language}",
        "finetune.freeze=backbone",
        "finetune.frozen_views=2",
        "finetune.max_steps=12",
        "pretrain.max_steps=3",
    )
    data = make_shards(tmp_path / "shards", recipe, PLAN)
    run_stage("pretrain", recipe, tmp_path / "run", data)
    run_stage("finetune", recipe, tmp_path / "run", data)
    before = load_tensors(tmp_path / "run" / STAGE1)
    after = load_tensors(tmp_path / "run" / "model" / "visual.safetensors")
    frozen = [name for name in after if name.startswith("visual.backbone.")]
    assert frozen
    for name in frozen:
        assert torch.equal(before[name], after[name]), name
    trained = [name for name in after if name.startswith("visual.temporal.") and name.endswith("weight")]
    assert trained and not torch.equal(before[trained[0]], after[trained[0]])


def test_damaged_checkpoint_is_named_and_an_unfinished_one_is_none(world, tmp_path):
    root, recipe = world
    run_stage("pretrain", recipe, tmp_path, str(root / "shards"))
    newest = sorted((tmp_path / "pretrain" / "checkpoints").glob("step-*"))[-1]
    path = next(newest.glob("tensors-*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=path.name):
        run_stage("pretrain", recipe, tmp_path, str(root / "shards"))
    (newest / "state.json").unlink()
    from sage_scale.training.checkpoint.checkpoints import Checkpoints

    assert int(newest.name.removeprefix("step-")) not in Checkpoints(newest.parent).steps()


def test_mistakes_leave_nothing_behind(world, tmp_path):
    root, recipe = world
    with pytest.raises(DatasetError, match="nowhere"):
        run_stage("pretrain", recipe, tmp_path / "run", str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()
    for change, says in (
        ("vision.frame_stride=4", "vision.frame_stride=2"),
        ("vision.feature_views=2", "holds 1 views"),
    ):
        with pytest.raises(DatasetError, match=says):
            run_stage("pretrain", override(recipe, [change]), tmp_path / "run", str(root / "shards"))
        assert not (tmp_path / "run").exists()  # told before the language model is made
    for change, error in (
        ("model.language_model=", RecipeError),
        (f"model.language_model={tmp_path}/nothing", CheckpointError),
        (f"model.language_model={root}", CheckpointError),  # a folder without a model
    ):
        for stage in ("pretrain", "finetune"):
            with pytest.raises(error, match=r"language.model"):
                run_stage(stage, override(recipe, [change]), tmp_path / "run", str(root / "shards"))
            assert not (tmp_path / "run").exists()
    with pytest.raises(CheckpointError, match="pretrain"):
        run_stage("finetune", recipe, tmp_path / "other", str(root / "shards"))
    with pytest.raises(RecipeError, match="freeze"):
        tiny_recipe("frames", "finetune.freeze=backbone", "finetune.init=none")


def test_a_split_that_is_not_there_is_told_with_those_that_are(world, tmp_path):
    with pytest.raises(UsageError, match="no clip in split 'dusk'; it has dev, test, train"):
        evaluate_run.run(tmp_path, str(world[0] / "shards"), split="dusk")


def test_a_language_without_a_code_is_refused_before_the_run_is_there(world, tmp_path, monkeypatch):
    _, recipe = world
    made = factory.make_sample

    def one_foreign(number, split, kind):
        sample = made(number, split, kind)
        sample.meta["language"] = "xx" if number == 1 else "de"
        return sample

    monkeypatch.setattr(factory, "make_sample", one_foreign)
    make_shards(tmp_path / "shards", recipe, PLAN)
    for stage in ("pretrain", "finetune"):
        with pytest.raises(DatasetError, match="1 sentences in 'xx'"):
            run_stage(stage, recipe, tmp_path / "run", str(tmp_path / "shards"))
    assert not (tmp_path / "run").exists()


def test_a_sentence_longer_than_the_language_model_is_cut(tmp_path, monkeypatch):
    """The tiny mBART has 64 positions; the longest sentences here want 125."""
    make = factory.make_sample

    def wordy(*place):
        sample = make(*place)
        words = sample.meta["sentence"].split()
        return dataclasses.replace(sample, meta={**sample.meta, "sentence": " ".join(words * 25)})

    monkeypatch.setattr(factory, "make_sample", wordy)
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe("features", f"model.language_model={language}", "finetune.init=none",
                         "finetune.max_steps=2", "evaluation.max_tokens=100")  # fmt: skip
    make_shards(tmp_path / "shards", recipe, PLAN[:3])
    run_stage("finetune", recipe, tmp_path / "run", str(tmp_path / "shards"))
    assert len(losses(tmp_path / "run", "finetune")) == 2


@pytest.mark.parametrize("count", [2, 3, 10, 97])
def test_exchanged_videos_never_keep_their_own(count):
    order = derangement(count, seed=count)
    assert sorted(order) == list(range(count))
    assert all(place != other for place, other in enumerate(order))


def test_cosine_schedule_follows_its_formula():
    from sage_scale.config import Stage

    stage = Stage(schedule="cosine", warmup=0.0, final_lr=0.1)
    for progress in np.linspace(0, 1, 11):
        expected = 0.1 + 0.9 * (1 + np.cos(np.pi * progress)) / 2
        assert learning_rate_factor(stage, float(progress)) == pytest.approx(expected)


@pytest.mark.system
def test_ranks_wait_for_a_first_rank_that_is_slower_than_the_time_out():
    for output in run_ranks(Path(__file__).with_name("rank_tasks.py"), 2, ["slow_first"]):
        assert "got it" in output


@pytest.mark.parametrize(
    ("stage", "peak", "limit", "line"),
    [
        ("pretrain", 1e3, 60.0, r"pretrain: no GPU: about \d{3,} s a step, 2 steps to go \(Ctrl-C saves"),
        ("pretrain", None, 1e-9, r"pretrain: no GPU: the first step took 0 s, 1 step to go"),
        ("pretrain", 1e3, 1e12, ""),
    ],
)
def test_a_step_of_more_than_a_minute_is_said_once(
    world, tmp_path, capsys, monkeypatch, stage, peak, limit, line
):
    """Before the first step by its operations, or else after it: no progress is seen meanwhile."""
    root, recipe = world
    monkeypatch.setattr(throughput, "peak_rate", lambda *_: (peak, "given"))
    monkeypatch.setattr(throughput, "LONG_STEP_S", limit)
    changes = [f"{stage}.max_steps=2", f"{stage}.evaluate_every=-1", f"{stage}.checkpoints="]
    run_stage(stage, override(recipe, changes), tmp_path / "run", str(root / "shards"))
    said = "".join(capsys.readouterr())
    assert len(re.findall("no GPU", said)) == bool(line) and re.search(line, said)
