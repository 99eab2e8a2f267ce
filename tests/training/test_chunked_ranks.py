"""Frames in chunks under the launcher: the losses are those of one process that holds all frames at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from factories.ranks import free_port
from factories.training import make_language_folder, make_shards, tiny_recipe

from sage_scale.config import to_yaml

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("chunked")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe(
        "frames",
        f"model.language_model={language}",
        "model.batchnorm=frozen",
        "pretrain.batch_size=5",
        "pretrain.max_steps=8",
        "pretrain.augment.rotation=15",
        "pretrain.augment.brightness=0.2",
    )
    (root / "tiny.yaml").write_text(to_yaml(recipe))
    make_shards(root / "shards", recipe, [("train", 20), ("train", 9), ("dev", 6)])
    return root


def losses(root: Path, run: str, ranks: int, *changes: str) -> list[float]:
    """The losses of stage 1 with so many processes."""
    program = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(ranks)]
    program += ["--master_port", str(free_port())]
    if ranks == 1:
        program = [sys.executable]
    finished = subprocess.run(
        [*program, str(LAUNCH / "pretrain.py"), "--run", str(root / run), "--data", str(root / "shards"),
         "--recipe", str(root / "tiny.yaml"), *changes],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "DS_LOG_LEVEL": "error"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-4000:]
    lines = (root / run / "pretrain" / "log.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["event"] == "step"]


@pytest.mark.system
@pytest.mark.timeout(600)
def test_chunks_do_not_change_the_losses(world):
    wanted = losses(world, "one", 1, "pretrain.zero_stage=0")
    assert len(wanted) == 8 and wanted[-1] != wanted[0]
    for ranks, zero, more in (
        (2, 1, ()),
        (2, 3, ()),
        (1, 2, ("pretrain.micro_batch=2",)),  # chunks of frames within chunks of the embedding cache
    ):
        run = f"{ranks}-{zero}-{len(more)}"
        found = losses(world, run, ranks, f"pretrain.zero_stage={zero}", "pretrain.chunk_frames=7", *more)
        assert found == pytest.approx(wanted, rel=1e-4), run
