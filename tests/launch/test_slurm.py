"""The batch scripts on a real Slurm of one node: submitted, stopped by SIGTERM, queued again, resumed and done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from factories.precompute import hashes, recipe_for, run_here, write_corpus
from factories.training import log_rows, make_language_folder, make_shards, tiny_recipe
from servers.slurm import slurm, why_no_slurm

from sage_scale.config import LAUNCH_FOLDER, to_yaml

pytestmark = [
    pytest.mark.extras,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_no_slurm()), reason=why_no_slurm() or "possible"),
]
SCRIPTS = LAUNCH_FOLDER / "slurm"
HERE = ["--gpus-per-node=0", "--cpus-per-task=2", "--time=30"]
"""Options for a node without GPUs; those of the command line win over the script's."""


class Queue:
    """Commands of Slurm, as a user gives them."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        others = ("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")
        known = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        self.environment = {**known, **environment, **own}
        self.folder = folder

    def call(self, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*map(str, words)], env={**self.environment, **variables}, cwd=self.folder, capture_output=True, text=True,
            check=False, timeout=400,
        )  # fmt: skip

    def submit(self, script: str, *words: object, options: list[str] = HERE, **variables: str) -> str:
        """Submit a batch script; returns the job's number."""
        sent = self.call("sbatch", "--parsable", *options, SCRIPTS / script, *words, **variables)
        assert sent.returncode == 0, sent.stderr
        return sent.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """The job's fields: JobState, ExitCode, Restarts."""
        return dict(re.findall(r"(\w+)=(\S*)", self.call("scontrol", "show", "job", number).stdout))

    def output(self, number: str) -> str:
        """What the job has printed in all its starts."""
        return "".join(path.read_text() for path in self.folder.glob(f"*-{number}.log"))

    def until(self, number: str, there: Callable[[], object]) -> None:
        """Wait until something is true. Fails with the job's output where the job has ended before."""
        end = time.monotonic() + 300
        while not there():
            state = self.job(number).get("JobState", "")
            over = state in ("FAILED", "COMPLETED", "CANCELLED", "TIMEOUT", "NODE_FAIL") and not there()
            assert not over and time.monotonic() < end, f"{state}\n{self.output(number)[-4000:]}"
            time.sleep(0.5)

    def ended(self, number: str) -> tuple[str, str]:
        """(state, exit code) at the end of the job."""
        self.until(number, lambda: self.job(number).get("JobState") in ("FAILED", "COMPLETED"))
        job = self.job(number)
        return job["JobState"], job["ExitCode"]


@pytest.fixture(scope="module")
def queue(tmp_path_factory) -> Iterator[Queue]:
    with slurm() as environment:
        yield Queue(environment, tmp_path_factory.mktemp("slurm"))


@pytest.fixture(scope="module")
def given(queue) -> list[str]:
    """Options of a stage of 60 steps, whose ranks have a loader worker each."""
    root = queue.folder
    language = make_language_folder(root / "language")
    recipe = tiny_recipe(
        "features", f"model.language_model={language}", "pretrain.max_steps=60", "pretrain.epochs=1000",
        "stream.workers=1",
    )  # fmt: skip
    (root / "tiny.yaml").write_text(to_yaml(recipe))
    make_shards(root / "shards", recipe, [("train", 20), ("dev", 6)])
    return ["--data", "shards", "--recipe", "tiny.yaml"]


def steps(run: Path) -> list[int]:
    return (
        [row["step"] for row in log_rows(run, event="step")]
        if (run / "pretrain" / "log.jsonl").exists()
        else []
    )


def test_a_stage_is_stopped_queued_again_and_ends_with_the_steps_of_one_run(queue, given):
    run = queue.folder / "run"
    number = queue.submit("train.sbatch", "pretrain", "--run", "run", *given, RANKS="2")
    queue.until(number, lambda: len(steps(run)) >= 3)
    # To all processes of the step, as Slurm does before the end of a job's time: loader workers, too.
    queue.call("scancel", "--signal=TERM", number)
    queue.until(number, lambda: queue.job(number).get("Restarts") == "1")
    assert "the same command resumes" in queue.output(number)
    assert queue.ended(number) == ("COMPLETED", "0:0"), queue.output(number)
    starts = log_rows(run, event="start")
    assert [row["ranks"] for row in starts] == [2, 2]
    assert steps(run) == list(range(1, 61)), queue.output(number)


def test_wrong_usage_ends_the_job_which_is_not_queued_again(queue, given):
    number = queue.submit(
        "train.sbatch", "pretrain", "--run", "wrong", *given, "pretrain.no_such_key=1", RANKS="2"
    )
    assert queue.ended(number) == ("FAILED", "2:0")
    assert queue.job(number)["Restarts"] == "0" and "no_such_key" in queue.output(number)
    assert not (queue.folder / "wrong").exists()


def test_two_tasks_of_srun_without_rank_are_one_run(queue, given):
    for entry in (["sage-scale", "pretrain"], ["python", LAUNCH_FOLDER / "pretrain.py"]):
        run = queue.folder / Path(str(entry[-1])).name
        done = queue.call("srun", "--ntasks=2", *entry, "--run", run, *given, "pretrain.max_steps=2")
        assert done.returncode == 0, done.stdout + done.stderr
        assert [row["ranks"] for row in log_rows(run, event="start")] == [2]


def test_precompute_is_stopped_queued_again_and_ends_with_the_bytes_of_one_run(queue):
    corpus = write_corpus(queue.folder / "corpus", clips=200)
    recipe = recipe_for(corpus)
    run_here(recipe, queue.folder / "undisturbed").execute()
    (queue.folder / "videos.yaml").write_text(to_yaml(recipe))
    out = queue.folder / "shards_made"
    words = ["--corpus", "videos", "--root", corpus, "--out", out, "--recipe", queue.folder / "videos.yaml"]
    number = queue.submit("preprocess.sbatch", *words, "precompute.actors=1", options=["--time=30"])
    queue.until(number, lambda: len(list(out.glob("*.tar"))) >= 2)
    queue.call("scancel", "--batch", "--signal=TERM", number)
    queue.until(number, lambda: queue.job(number).get("Restarts") == "1")
    assert not (out / "index.json").exists()
    assert queue.ended(number) == ("COMPLETED", "0:0"), queue.output(number)
    assert hashes(out) == hashes(queue.folder / "undisturbed")


def test_apptainer_is_given_image_and_command_and_its_code_counts(queue, tmp_path):
    """A stand-in: Apptainer itself is in no package of Debian or PyPI."""
    program = tmp_path / "apptainer"
    program.write_text('#!/bin/sh\necho "apptainer $*"\nexit $CODE\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{queue.environment['PATH']}"
    words = ["train-apptainer.sbatch", "finetune", "--run", "r", "--data", "d"]
    for code, ends in (("0", ("COMPLETED", "0:0")), ("2", ("FAILED", "2:0"))):
        number = queue.submit(*words, IMAGE="sage.sif", RANKS="2", CODE=code, PATH=path)
        assert queue.ended(number) == ends
        printed = queue.output(number)
        assert (
            "--nv" in printed
            and printed.count("sage.sif sage-scale finetune --run r --data d --ranks 2") == 1
        )
    number = queue.submit(*words, PATH=path)
    assert queue.ended(number)[0] == "FAILED" and "IMAGE: is not set" in queue.output(number)
