"""The verbs of a run in the order of the work, as a person types them, on a tiny dataset."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from factories.training import make_language_folder, make_shards, tiny_recipe

from sage_scale.config import to_yaml

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
PROGRAM = [sys.executable, "-m", "sage_scale.cli.main"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("verbs")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe(
        "frames", f"model.language_model={language}", "pretrain.max_steps=12", "finetune.max_steps=8"
    )
    (root / "tiny.yaml").write_text(to_yaml(recipe))
    make_shards(root / "shards", recipe, [("train", 20), ("dev", 6), ("test", 7)])
    return root


def call(*arguments: object, code: int = 0) -> str:
    result = subprocess.run(
        [*PROGRAM, *map(str, arguments)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout


def steps(run: Path, stage: str) -> list[int]:
    log = run / stage / "log.jsonl"
    rows = map(json.loads, log.read_text().splitlines()) if log.is_file() else []
    return [row["step"] for row in rows if row["event"] == "step"]


def test_a_run_from_stage_1_to_its_report(world):
    run = world / "run"
    data = ["--run", run, "--data", world / "shards"]
    call("pretrain", *data, "--recipe", world / "tiny.yaml", "--ranks", "2")
    assert steps(run, "pretrain") == list(range(1, 13))
    call("pretrain", *data)  # a finished stage, with the run's own recipe: nothing is trained again
    assert steps(run, "pretrain") == list(range(1, 13))
    call("finetune", *data)
    assert steps(run, "finetune") == list(range(1, 9))
    printed = call("evaluate", *data)
    scores = json.loads((run / "scores.json").read_text())["test"]
    assert f"BLEU-4 {scores['bleu4']:.2f}" in printed and "7 clips" in printed
    assert call("report", run).strip() == str(run / "report.html")
    page = (run / "report.html").read_text()
    for part in ("scores", "examples", "curves", "alignment", "timelines", "cost", "recipe"):
        assert f'<section id="{part}"' in page, part
    assert "12 steps" in page and "8 steps" in page
    assert "Not in this report" not in page


def test_ctrl_c_saves_both_ranks_and_the_same_command_goes_on(world):
    run = world / "interrupted"
    command = ["pretrain", "--run", run, "--data", world / "shards", "--recipe", world / "tiny.yaml", "--ranks", "2",
               "pretrain.max_steps=100000"]  # fmt: skip
    child = subprocess.Popen(
        [*PROGRAM, *map(str, command)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    family = psutil.Process(child.pid)
    deadline = time.monotonic() + 120
    while len(steps(run, "pretrain")) < 5:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    members = family.children(recursive=True)
    child.send_signal(signal.SIGINT)
    _, printed = child.communicate(timeout=120)
    assert child.returncode == 130, printed[-3000:]
    assert printed.strip().splitlines()[-1] == "sage-scale: interrupted; run the same command again to go on"
    assert "Traceback" not in printed
    _, left = psutil.wait_procs(members, timeout=20)
    assert not left, "a rank was left behind"
    trained = max(steps(run, "pretrain"))
    command[-1] = f"pretrain.max_steps={trained + 3}"
    call(*command)
    assert steps(run, "pretrain") == list(range(1, trained + 4)), "no step lost, none trained twice"
