"""Ranks, ZeRO stage and resuming change no loss: a covering part of the grid, and one run under the launcher."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from factories.ranks import free_port
from factories.training import losses, make_language_folder, make_shards, tiny_recipe

from sage_scale.config import to_yaml
from sage_scale.training.stage import run_stage

ROOT = Path(__file__).resolve().parents[2]
SHARED = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
OWN_LINES = (
    r"pretrain: step \d+/8  loss [\d.]+  lr [\d.e-]+  \d+ clips/s  .*left",
    r"pretrain: dev at step 8: .*",
    r"pretrain: 8 steps in [\d:]+",
)
"""What a start that needs no warning prints."""


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("part", "runs"), [("--pairwise", 35), ("--models", 14)])
def test_losses_clips_and_frozen_weights_are_those_of_one_rank(part: str, runs: int):
    """Two parts of the matrix: every pair of settings of SAGE; Sign2GPT, an image model, and frames in chunks."""
    script = ROOT / "tests" / "campaigns" / "layouts_train.py"
    run = subprocess.run(
        [sys.executable, script, part, "--steps", "8"],
        env=SHARED, capture_output=True, text=True, timeout=580, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert f"{runs} of {runs} runs as one rank under ZeRO-0" in run.stdout


@pytest.mark.system
def test_the_covering_part_covers_every_pair():
    """Every two of: ranks, ZeRO stage, (stage, BatchNorm), ZeRO stage after the resume; and ranks after it."""
    asked = "import json, layouts_train as l; print(json.dumps([[r, l.dataclasses.asdict(a), l.dataclasses.asdict(b)]"
    asked += " for r, (a, b) in enumerate(l.pairwise())]))"
    found = subprocess.run(
        [sys.executable, "-c", asked], env={**SHARED, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'campaigns'}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [
        ((a["ranks"],), (a["zero"],), (a["stage"], a["norm"]), (b["zero"],), (b["ranks"],))
        for _, a, b in json.loads(found.stdout)
    ]
    assert len(rows) == 16
    for one in range(4):
        for other in range(one):
            assert len({(row[one], row[other]) for row in rows}) == 16, (one, other)
    assert {(row[0], row[4]) for row in rows} >= {((1,), (2,)), ((2,), (3,)), ((4,), (1,))}


@pytest.mark.system
@pytest.mark.timeout(300)
def test_a_launched_run_prints_its_own_lines_and_learns_as_one_process(tmp_path):
    language = make_language_folder(tmp_path / "language")
    changes = ["pretrain.max_steps=8", "pretrain.batch_size=5", "model.batchnorm=sync"]
    recipe = tiny_recipe("frames", f"model.language_model={language}", *changes)
    (tmp_path / "tiny.yaml").write_text(to_yaml(recipe))
    data = make_shards(tmp_path / "shards", recipe, [("train", 20), ("train", 9), ("dev", 6)])
    program = [
        str(Path(sys.executable).with_name("deepspeed")),
        "--quiet",
        "--num_gpus",
        "2",
        "--master_port",
    ]
    arguments = ["--run", tmp_path / "two", "--data", data, "--recipe", tmp_path / "tiny.yaml"]
    launched = subprocess.run(
        [*program, str(free_port()), ROOT / "launch" / "pretrain.py", *arguments, "pretrain.zero_stage=2"],
        env={**SHARED, "DS_ACCELERATOR": "cpu"}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr[-4000:]
    strange = [
        line
        for line in (launched.stdout + launched.stderr).splitlines()
        if line.strip() and not any(re.fullmatch(own, line) for own in OWN_LINES)
    ]
    assert not strange
    run_stage("pretrain", recipe, tmp_path / "one", data)
    two, one = (losses(tmp_path / name) for name in ("two", "one"))
    assert two == pytest.approx(one, rel=1e-4) and len(one) == 8
