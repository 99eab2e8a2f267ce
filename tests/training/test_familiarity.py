"""Statistics of familiar signing: what they are computed from, what they say of other signing, and their file."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.training import make_language_folder, make_sample, make_shards, tiny_recipe

from sage_scale.config import override
from sage_scale.errors import CheckpointError
from sage_scale.models.sage.export import save_translator
from sage_scale.models.sage.mbart import load_language_model
from sage_scale.models.sage.model import SageTranslator
from sage_scale.streaming import SampleShape, open_datasets, open_evaluation, pack_sample
from sage_scale.training import evaluate_run
from sage_scale.training.distributed import Ranks
from sage_scale.training.export import load_translator
from sage_scale.training.familiarity import (
    FILE,
    TOKEN_MARGIN,
    Familiarity,
    measure_familiarity,
    read_familiarity,
    shrunk_covariance,
    write_familiarity,
)
from sage_scale.training.stage import run_stage
from sage_scale.untrusted.hashes import check_hashes
from sage_scale.vision.perturbation import perturbed

ALONE = Ranks(rank=0, world=1, local_rank=0, device=torch.device("cpu"))
PLAN = [("train", 60), ("dev", 24), ("test", 24)]


@dataclasses.dataclass
class World:
    """A run with an untrained model, and its data."""

    run: Path
    data: str
    kind: str

    def measured(self, *changes: str) -> Familiarity:
        model, tokenizer, recipe = load_translator(self.run)
        recipe = override(recipe, changes)
        found = measure_familiarity(
            recipe, model, tokenizer, open_datasets(self.data), ALONE, contextlib.nullcontext
        )
        assert found is not None
        return found

    def tokens(self, split: str) -> list[torch.Tensor]:
        model, _, recipe = load_translator(self.run)
        batches = list(open_evaluation(self.data, recipe, split, batch_size=1))
        with torch.no_grad():
            return [model.visual_tokens(batch.video)[0] for batch in batches]


@pytest.fixture(scope="module", params=["frames", "features"])
def world(tmp_path_factory, request) -> World:
    root = tmp_path_factory.mktemp(f"familiar-{request.param}")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe(request.param, "evaluation.beams=1", "evaluation.max_tokens=6")
    torch.manual_seed(1)
    language_model, tokenizer = load_language_model(language)
    model = SageTranslator(recipe, language_model)
    save_translator(model, tokenizer, recipe, root / "run" / "model")
    return World(root / "run", make_shards(root / "shards", recipe, PLAN), request.param)


@pytest.fixture(scope="module")
def familiarity(world) -> Familiarity:
    return world.measured()


def test_the_covariance_is_ledoit_and_wolfs():
    """Against their estimator written clip by clip; positive definite with fewer clips than columns."""
    rows = np.random.default_rng(0).standard_normal((20, 30)) * np.linspace(1, 4, 30)
    centred = rows - rows.mean(0)
    sample = centred.T @ centred / 20
    target = np.trace(sample) / 30 * np.eye(30)
    spread = sum(((np.outer(row, row) - sample) ** 2).sum() for row in centred) / 20**2
    share = min(spread, ((sample - target) ** 2).sum()) / ((sample - target) ** 2).sum()
    found = shrunk_covariance(torch.from_numpy(rows))
    np.testing.assert_allclose(found.numpy(), share * target + (1 - share) * sample)
    assert float(torch.linalg.eigvalsh(found)[0]) > 0
    same = shrunk_covariance(torch.ones(3, 4, dtype=torch.float64))
    assert float(torch.linalg.eigvalsh(same)[0]) > 0


def test_a_distance_is_mahalanobis_of_the_mean_direction_and_of_no_contrast(world, familiarity):
    tokens = world.tokens("test")
    covariance = torch.linalg.inv(familiarity.whitening_DD.T @ familiarity.whitening_DD)
    for tokens_ND in tokens[:4]:
        mean = (tokens_ND.double() / tokens_ND.double().norm(dim=1, keepdim=True)).mean(0)
        apart = mean - familiarity.mean_D
        expected = math.sqrt(float(apart @ torch.linalg.solve(covariance, apart)))
        assert familiarity.distance(tokens_ND) == pytest.approx(expected, rel=1e-6)
        assert familiarity.distance(3 * tokens_ND) == pytest.approx(expected, rel=1e-5)


def test_the_limit_holds_for_dev_and_its_false_alarms_are_those_of_the_warnings(world, familiarity):
    warned = [bool(familiarity.warnings(tokens)) for tokens in world.tokens("dev")]
    assert familiarity.false_alarms == pytest.approx(np.mean(warned)) and np.mean(warned) <= 0.05
    assert np.mean([bool(familiarity.warnings(tokens)) for tokens in world.tokens("test")]) <= 0.1


def test_other_signing_is_named_with_the_dev_clips_false_alarms(world, familiarity):
    _, _, recipe = load_translator(world.run)
    model = load_translator(world.run)[0]
    rng = np.random.default_rng(5)
    sample = make_sample(1, "test", world.kind)
    if world.kind == "features":
        sample = dataclasses.replace(sample, features=np.float16(-3 * sample.features[:, ::-1]))
        with torch.no_grad():
            tokens_ND, _ = model.visual_tokens(pack_sample(sample, SampleShape.of(recipe)).video)
    else:
        tokens_ND = torch.from_numpy(rng.random((5, len(familiarity.mean_D))))
    (line,) = familiarity.warnings(tokens_ND)
    assert "looks unlike the training data" in line and "of 24 dev clips)" in line


@pytest.mark.parametrize(
    ("count", "says"), [("many", "cut the video at pauses"), ("few", "no whole sentence")]
)
def test_a_number_of_tokens_beyond_training_is_named(familiarity, count, says):
    least, most = familiarity.token_limits
    quiet = dataclasses.replace(familiarity, limit=math.inf)
    inside = torch.ones(int(most * TOKEN_MARGIN), len(familiarity.mean_D))
    assert quiet.warnings(inside) == [] and quiet.warnings(inside[:least]) == []
    number = int(most * TOKEN_MARGIN) + 1 if count == "many" else 1
    (line,) = quiet.warnings(torch.ones(number, len(familiarity.mean_D)))
    assert says in line and f"training clips have {least} to {most}" in line


def test_percentiles_are_ranks_among_dev_sentences(familiarity):
    scores = familiarity.dev_scores.tolist()
    assert len(scores) == 24 and scores == sorted(scores) and scores[-1] <= 0
    assert familiarity.percentile(None) is None
    assert familiarity.percentile(scores[0] - 1) == 0 and familiarity.percentile(0.0) == 100
    assert familiarity.percentile(scores[11]) == pytest.approx(
        100 * sum(score <= scores[11] for score in scores) / 24
    )


def test_batches_do_not_change_the_statistics(world, familiarity):
    single = world.measured("evaluation.batch_size=1")
    assert single.limit == pytest.approx(familiarity.limit, rel=1e-3)
    torch.testing.assert_close(single.mean_D, familiarity.mean_D, rtol=1e-4, atol=1e-5)
    assert single.token_limits == familiarity.token_limits


def test_the_file_is_part_of_the_hashed_export(world, familiarity, tmp_path):
    (tmp_path / "model").mkdir()
    write_familiarity(tmp_path / "model", familiarity)
    check_hashes(tmp_path / "model")
    again = read_familiarity(tmp_path / "model")
    assert again is not None and again.limit == familiarity.limit
    assert again.token_limits == familiarity.token_limits
    torch.testing.assert_close(again.whitening_DD, familiarity.whitening_DD, rtol=0, atol=0)
    path = tmp_path / "model" / FILE
    path.write_bytes(path.read_bytes()[:-9] + bytes(9))
    with pytest.raises(CheckpointError, match=FILE):
        read_familiarity(tmp_path / "model")
    with pytest.raises(CheckpointError, match="another model"):
        familiarity.distance(torch.ones(3, 5))
    path.unlink()
    assert read_familiarity(tmp_path / "model") is None


def test_evaluate_measures_for_a_model_exported_without(world):
    said: list[str] = []
    evaluate_run.run(world.run, world.data, controls=False, say=said.append)
    found = read_familiarity(world.run / "model")
    assert found is not None and any("familiar" in line for line in said)
    check_hashes(world.run / "model")
    evaluate_run.run(world.run, world.data, controls=False, say=said.append)
    assert sum("familiar" in line for line in said) == 1


def test_other_recording_conditions_keep_shapes_and_depend_on_the_clip_alone(world):
    _, _, recipe = load_translator(world.run)
    (batch,) = open_evaluation(world.data, recipe, "test", batch_size=24)
    changed = perturbed(batch.video, batch.keys, 1)
    if world.kind == "features":
        assert changed is batch.video
        return
    assert changed.frames_FCHW.shape == batch.video.frames_FCHW.shape
    assert changed.frames_FCHW.dtype == torch.uint8
    assert not torch.equal(changed.frames_FCHW, batch.video.frames_FCHW)
    assert not torch.equal(changed.frames_FCHW, perturbed(batch.video, batch.keys, 2).frames_FCHW)
    last = batch.select(slice(23, 24))
    alone = perturbed(last.video, last.keys, 1).frames_FCHW
    assert torch.equal(alone, changed.frames_FCHW[-len(alone) :])


def test_a_damaged_sample_leaves_the_trained_model_and_says_so(tmp_path, capsys):
    """Training skips a damaged sample; the statistics that read it must not end a finished stage."""
    language = make_language_folder(tmp_path / "language")
    changes = [
        f"model.language_model={language}",
        "finetune.init=none",
        "finetune.max_steps=1",
        "stream.on_corrupt=skip",
    ]
    recipe = tiny_recipe("features", "evaluation.max_tokens=6", *changes)
    data = make_shards(tmp_path / "shards", recipe, PLAN)
    tar = tmp_path / "shards" / "000000.tar"
    damaged = bytearray(tar.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    tar.write_bytes(damaged)
    run_stage("finetune", recipe, tmp_path / "run", data)
    printed = capsys.readouterr()
    assert "familiar signing is not measured" in printed.out + printed.err
    assert read_familiarity(tmp_path / "run" / "model") is None
    load_translator(tmp_path / "run")
