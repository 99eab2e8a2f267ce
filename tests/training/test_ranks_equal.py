"""Both stages under the `deepspeed` launcher: the losses do not depend on ranks, ZeRO stage or micro-batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from launching import free_port
from tiny_world import make_language_folder, make_shards, tiny_recipe

from sage_scale.config import to_yaml

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
STEPS = 20
BATCH = 5  # odd: two or three ranks never get equal parts, and sometimes an empty one


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranks")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe("frames", f"model.language_model={language}", "model.batchnorm=sync")
    (root / "tiny.yaml").write_text(to_yaml(recipe))
    make_shards(root / "shards", root, recipe, [("train", 20), ("train", 9), ("dev", 6)])
    return root


def launch(root: Path, run: str, stage: str, ranks: int, *changes: str, code: int = 0) -> str:
    """Run a stage under the launcher with `ranks` processes and return what it printed."""
    program = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(ranks)]
    program += ["--master_port", str(free_port())]
    if ranks == 1:
        program = [sys.executable]
    finished = subprocess.run(
        [*program, str(LAUNCH / f"{stage}.py"), "--run", str(root / run), "--data", str(root / "shards"),
         "--recipe", str(root / "tiny.yaml"), f"{stage}.batch_size={BATCH}", f"{stage}.max_steps={STEPS}", *changes],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "DS_LOG_LEVEL": "error"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    output = finished.stdout + finished.stderr
    assert finished.returncode == code, output[-4000:]
    return output


def losses(root: Path, run: str, stage: str) -> list[float]:
    lines = (root / run / stage / "log.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["event"] == "step"]


@pytest.fixture(scope="module")
def reference(world):
    """One process, ZeRO-0, both stages."""
    launch(world, "one", "pretrain", 1, "pretrain.zero_stage=0")
    launch(world, "one", "finetune", 1, "finetune.zero_stage=0")
    return {stage: losses(world, "one", stage) for stage in ("pretrain", "finetune")}


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ranks", "zero"), [(2, 1), (2, 2), (3, 3)])
def test_pretrain_losses_equal_one_rank(world, reference, ranks, zero):
    run = f"pretrain-{ranks}-{zero}"
    launch(world, run, "pretrain", ranks, f"pretrain.zero_stage={zero}")
    assert len(reference["pretrain"]) == STEPS
    assert losses(world, run, "pretrain") == pytest.approx(reference["pretrain"], rel=1e-4)
    assert reference["pretrain"][-1] < reference["pretrain"][0]


@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("ranks", "zero", "micro"), [(2, 1, 0), (2, 2, 2)])
def test_finetune_losses_equal_one_rank(world, reference, ranks, zero, micro):
    """Micro-batches see BatchNorm's statistics of themselves alone, so that case runs frozen against frozen."""
    run = f"finetune-{ranks}-{zero}-{micro}"
    changes = ["model.batchnorm=frozen"] if micro else []
    expected = reference["finetune"]
    for name, count in ((run + "-one", 1), (run, ranks)):
        if name.endswith("-one") and not micro:
            continue
        (world / name / "pretrain").mkdir(parents=True)
        stage1 = (world / "one" / "pretrain" / "visual.safetensors").read_bytes()
        (world / name / "pretrain" / "visual.safetensors").write_bytes(stage1)
        extra = [f"finetune.micro_batch={micro}"] if count > 1 else []
        launch(world, name, "finetune", count, f"finetune.zero_stage={zero}", *changes, *extra)
        if count == 1:
            expected = losses(world, name, "finetune")
    assert losses(world, run, "finetune") == pytest.approx(expected, rel=1e-4)


@pytest.mark.system
@pytest.mark.timeout(600)
def test_stopped_run_resumes_at_another_size(world, reference):
    """Stopped after 7 steps on one rank, resumed mid-epoch on two: the same losses as undisturbed."""
    launch(world, "resumed", "pretrain", 1, "pretrain.max_steps=20", "pretrain.save_every=7", "pretrain.zero_stage=1",
           "pretrain.schedule=constant", "pretrain.keep_checkpoints=5")  # fmt: skip
    whole = losses(world, "resumed", "pretrain")
    for step in (14, 20):
        for path in (world / "resumed" / "pretrain" / "checkpoints" / f"step-{step:08d}").glob("*"):
            path.unlink()
    launch(world, "resumed", "pretrain", 2, "pretrain.zero_stage=2", "pretrain.schedule=constant")
    rows = losses(world, "resumed", "pretrain")
    assert rows[:STEPS] == whole
    assert rows[STEPS:] == pytest.approx(whole[7:], rel=1e-4)
