"""The watchdog over real training: gloo ranks under `sage-scale pretrain --ranks 2`, stopped, killed, left alone."""

from __future__ import annotations

import contextlib
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
from sage_scale.training.restarts import last_step

SAVE_EVERY = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("watched")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe("features", f"model.language_model={language}", "pretrain.max_steps=100000",
                         f"pretrain.save_every={SAVE_EVERY}")  # fmt: skip
    (root / "tiny.yaml").write_text(to_yaml(recipe))
    make_shards(root / "shards", recipe, [("train", 20), ("dev", 6)])
    return root


class Training:
    """The command and its processes."""

    def __init__(self, root: Path, run: Path, *words: str):
        self.run, self.output = run, run.with_suffix(".txt")
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sage_scale.cli.main", "pretrain", "--run", str(run), "--data",
                 str(root / "shards"), "--recipe", str(root / "tiny.yaml"), "--ranks", "2", *words],
                env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait_for(self, what, within: float = 200):
        end = time.monotonic() + within
        while not what():
            assert time.monotonic() < end and self.process.poll() is None, self.output.read_text()
            time.sleep(0.1)

    def step(self) -> int:
        return last_step(self.run, "pretrain")

    def below(self, name: str) -> list[psutil.Process]:
        """Processes of this run whose command line has `name`."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if str(self.run) in words and any(word.endswith(name) for word in words):
                    found.append(process)
        return found

    def trainer(self, local_rank: int) -> psutil.Process:
        """The process that trains as a rank: the child of its rank monitor."""
        ranks = self.below("launch/pretrain.py")
        both = [p for p in ranks if p.environ()["LOCAL_RANK"] == str(local_rank)]
        return next(p for p in both if p.ppid() in {other.pid for other in both})

    def kill(self):
        for process in [*self.below("launch/pretrain.py"), self.process]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()


@pytest.mark.system
@pytest.mark.timeout(600)
def test_a_stopped_rank_is_named_and_the_run_restarted_and_a_killed_launcher_leaves_nobody_behind(
    world, tmp_path
):
    training = Training(world, tmp_path / "run", "--restarts", "1", "watch.hang_timeout_s=8")
    try:
        training.wait_for(lambda: training.step() >= 8)
        rank = training.trainer(1)
        rank.send_signal(signal.SIGSTOP)
        time.sleep(1)
        while training.step() % SAVE_EVERY == 0:  # within a save the watchdog has, rightly, more patience
            rank.send_signal(signal.SIGCONT)
            time.sleep(0.2)
            rank.send_signal(signal.SIGSTOP)
            time.sleep(1)
        stopped = time.monotonic()
        log = tmp_path / "run" / "restarts.jsonl"
        training.wait_for(log.exists, within=90)
        print(f"stopped rank: restart announced after {time.monotonic() - stopped:.1f} s (hang_timeout_s=8)")
        row = json.loads(log.read_text())
        assert (row["kind"], row["rank"]) == ("stalled", 1) and "the system has stopped it" in row[
            "reason"
        ], row
        assert row["at"].startswith("step ")
        training.wait_for(lambda: training.step() >= row["reached_step"] + 4)

        training.process.kill()
        killed = time.monotonic()
        while training.below("launch/pretrain.py"):
            assert time.monotonic() - killed < 90, [p.cmdline() for p in training.below("launch/pretrain.py")]
            time.sleep(0.1)
        print(f"killed launcher: nobody left after {time.monotonic() - killed:.1f} s")
    finally:
        training.kill()
    saved = sorted(
        path.parent.name for path in (tmp_path / "run").glob("pretrain/checkpoints/step-*/state.json")
    )
    assert int(saved[-1].removeprefix("step-")) == training.step(), "the ranks save before they end"
    assert (
        sum(
            line.startswith("sage-scale pretrain: rank 1 on")
            for line in training.output.read_text().splitlines()
        )
        == 1
    )


@pytest.mark.system
@pytest.mark.timeout(400)
def test_sigterm_to_one_rank_saves_on_all(world, tmp_path):
    training = Training(world, tmp_path / "run")
    try:
        training.wait_for(lambda: training.step() >= 3)
        training.trainer(1).send_signal(signal.SIGTERM)
        assert training.process.wait(90) == 130, training.output.read_text()
    finally:
        training.kill()
    saved = sorted(
        path.parent.name for path in (tmp_path / "run").glob("pretrain/checkpoints/step-*/state.json")
    )
    assert int(saved[-1].removeprefix("step-")) == training.step()
