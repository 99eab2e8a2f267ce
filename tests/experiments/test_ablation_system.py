"""Two cells with two seeds on a Ray of its own, killed in the middle: the same command makes the same rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sage_scale.cli import main
from sage_scale.experiments.demo import sage

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
SMALL = [
    "corpus.train_clips=12", "corpus.dev_clips=4", "corpus.test_clips=1", "corpus.heldout_clips=1",
    "segmentation.tagger=uniform", "precompute.actors=1", "denoise.steps=4", "denoise.vocabulary=100",
    "denoise.width=16", "pretrain.max_steps=3", "pretrain.batch_size=4", "finetune.max_steps=2",
    "finetune.batch_size=4", "evaluation.max_tokens=8", "evaluation.beams=1",
]  # fmt: skip
TABLE = """
name: two
title: Two losses
source: a paper
cells:
  - name: CLCL
    published: {bleu4: 20}
  - name: CLIP
    changes: {clcl.loss: clip}
  - name: broken
    changes: {pretrain.lr: 1.0e+30}
"""


def ended(command: list[str], number: int, when: Callable[[], bool], log: Path) -> int:
    """Exit code of a command that got a signal as soon as `when` was true."""
    with log.open("w") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        while not when() and child.poll() is None:
            time.sleep(0.05)
        (os.killpg if number == signal.SIGKILL else os.kill)(child.pid, number)
        return child.wait()


def test_a_killed_table_goes_on_with_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TABLE)
    command = sage("ablate", tmp_path / "two.yaml", "--seeds", 2, "--home", tmp_path / "home", *SMALL)
    rows = tmp_path / "home" / "rows" / "two"
    assert (
        ended(command, signal.SIGTERM, lambda: (tmp_path / "home/language").is_dir(), tmp_path / "first")
        == 130
    )
    ended(command, signal.SIGKILL, lambda: bool(list(rows.glob("*.json"))), tmp_path / "second")
    before = {path.name: path.read_bytes() for path in rows.glob("*.json")}
    assert before and len(before) < 4, (tmp_path / "second").read_text()

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "failed: broken, seed 1: pretrain: " in done.stderr, done.stderr
    assert "failed runs: 2;" in done.stderr and (tmp_path / "home/two/broken-1/ablate.log").is_file()
    assert len(list(rows.glob("*.json"))) == 4
    assert {name: (rows / name).read_bytes() for name in before} == before
    table = (rows.parent / "two.md").read_text()
    assert (
        table.count("| 2 of 2 |") == 2
        and "| broken | not run, 2 failed |" in table
        and "published: BLEU-4" in table
    )

    # The rows alone are enough: a third call makes nothing, in a home that holds nothing else.
    other = tmp_path / "other"
    given = [tmp_path / "two.yaml", "--cells", "CLCL", "--cells", "CLIP", "--seeds", 2, "--home", other]
    assert main.run(["ablate", *map(str, [*given, "--rows", rows.parent, *SMALL])]) == 0
    assert not other.exists() and (rows.parent / "two.md").read_text() == table.replace(", 2 failed", "")
    scores = json.loads((rows / "clip-1.json").read_text())["scores"]
    assert scores["pretrain.loss"] > 0 and "bleu4" in scores
