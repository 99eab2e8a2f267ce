"""The first hour on a machine with a GPU, on a CPU: shards are made beforehand, where Ray and PyAV are; all that
follows runs without them, in processes that find none of precompute's packages. Benchmarks do so in test_scripts.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from factories import gpu_machine
from factories.training import log_rows

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]
CORPUS = ["train_clips=8", "dev_clips=2", "test_clips=2", "heldout_clips=2"]
DATA = [*(f"corpus.{size}" for size in CORPUS), "shards.clips_per_unit=4", "precompute.actors=1"]
STAGES = [
    f"{stage}.{setting}"
    for stage in ("pretrain", "finetune")
    for setting in ("batch_size=4", "precision=bf16", "evaluate_every=-1", "save_every=-1")
]
SMALL = [
    "denoise.steps=4", "denoise.vocabulary=100", "finetune.frozen_views=1", "finetune.freeze=none",
    "evaluation.max_tokens=8", "prototypes.threshold=0.2",
]  # fmt: skip


def call(*arguments: object, environment: dict[str, str]) -> str:
    """What a verb printed."""
    command = [sys.executable, "-m", "sage_scale.cli.main", *map(str, arguments)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return run.stdout


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """The synthetic corpus, precomputed as everywhere."""
    place = tmp_path_factory.mktemp("made")
    common = ["--root", place / "corpus", "--recipe", "demo", *DATA]
    plain = {**os.environ, "OMP_NUM_THREADS": "1"}
    call("corpus", "make", *common, environment=plain)
    call("precompute", "--corpus", "synthetic", "--out", place / "shards", *common, environment=plain)
    return place / "shards"


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> dict[str, str]:
    return gpu_machine.environment(tmp_path_factory.mktemp("bare"))


def test_the_packages_are_absent_and_doctor_says_so(bare):
    for name in gpu_machine.FORBIDDEN:
        code = f"import importlib\ntry: importlib.import_module({name!r})\nexcept ModuleNotFoundError: print('no')"
        run = subprocess.run(
            [sys.executable, "-c", code], env=bare, capture_output=True, text=True, check=True
        )
        assert run.stdout == "no\n", name
    rows = {row["name"]: row for row in json.loads(call("doctor", "--json", environment=bare))}
    for name in ("ray", "boto3", "webdataset"):
        assert rows[name]["state"] != "ok" and rows[name]["cost"], rows[name]
    assert rows["deepspeed"]["state"] == rows["transformers"]["state"] == "ok"


@pytest.mark.parametrize("recipe", ["demo", "sign2gpt-demo"])
def test_both_stages_resume_under_another_zero_stage_and_are_scored(recipe, shards, bare, tmp_path):
    run = tmp_path / "run"
    place = ["--run", run, "--data", shards]
    for stage in ("pretrain", "finetune"):
        for zero, steps in ((1, 2), (2, 3)):
            changes = [*DATA, *STAGES, *SMALL, f"{stage}.zero_stage={zero}", f"{stage}.max_steps={steps}"]
            call(stage, *place, "--recipe", recipe, *changes, environment=bare)
        assert [row["step"] for row in log_rows(run, stage, "step")] == [1, 2, 3]
        starts = log_rows(run, stage, "start")
        assert [(row["step"], row["zero_stage"]) for row in starts] == [(0, 1), (2, 2)]
        assert {row["precision"] for row in starts} == {"bfloat16"}
    call("evaluate", *place, environment=bare)
    scores = json.loads((run / "scores.json").read_text())["test"]
    assert scores["clips"] == 2 and scores["controls"] and "content_f1" not in scores
