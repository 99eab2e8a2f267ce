"""Every script of benchmarks/, tests/campaigns/ and launch/ runs small; test_gpu_campaign.py runs those for GPUs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from common import MEANINGLESS
from factories import gpu_machine
from factories.training import make_language_folder, make_shards, tiny_recipe

from sage_scale.config import Corpus, to_yaml
from sage_scale.corpora.synthetic import make_corpus

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    path.name: path
    for folder in ("benchmarks", "tests/campaigns")
    for path in sorted((ROOT / folder).glob("*.py"))
}
RUN = [name for name, path in SCRIPTS.items() if "__main__" in path.read_text(encoding="utf-8")]
LAUNCHED = sorted(path.name for path in (ROOT / "launch").glob("*.py"))
HELPERS = {"common.py", "damage.py"}
"""Modules that scripts share."""
ELSEWHERE = {
    "loaders_peers.py",  # test_peers.py, in the peers' environment
    "familiarity.py",  # below, among the extras: it makes a corpus, a dataset and a run
    "launchers.py",  # faults/test_campaigns.py, which runs it whole
    "gpu_campaign.py",  # test_gpu_campaign.py, which runs the scripts for GPUs, too
    "gpu_stages.py", "gpu_backbone.py", "clcl_gpu.py", "train_gpu.py", "sign2gpt_gpu.py", "local_attention.py",
}  # fmt: skip
"""Scripts that other tests run."""


def test_every_file_is_a_script_or_a_known_helper():
    """A script without `if __name__ == "__main__"` would be looked over."""
    assert SCRIPTS.keys() - set(RUN) == HELPERS


def ended_well(command: list[object], folder: Path) -> str:
    """What a command printed, in `folder` and without a GPU."""
    environment = gpu_machine.environment(folder / "site", ())
    run = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=560, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout


@pytest.mark.system
@pytest.mark.parametrize("script", [name for name in RUN if name not in ELSEWHERE])
def test_a_benchmark_runs_at_toy_size_and_says_so(script, tmp_path):
    assert MEANINGLESS in ended_well([SCRIPTS[script], "--small"], tmp_path)


@pytest.mark.extras
def test_the_benchmark_of_familiar_signing_runs_at_toy_size(tmp_path):
    printed = ended_well([SCRIPTS["familiarity.py"], "--small"], tmp_path)
    assert MEANINGLESS in printed and "| test, held-out signers | 1 |" in printed


@contextlib.contextmanager
def private_ray() -> Iterator[None]:
    """A Ray that another program has started for itself."""
    start = "import ray; ray.init(address='local', num_cpus=0, include_dashboard=False, object_store_memory=80000000)"
    lines = [start, "print('ready', flush=True)", "input()"]
    other = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and any(line == "ready\n" for line in other.stdout)
        yield
    finally:
        other.communicate("\n", timeout=60)


@pytest.mark.system
@pytest.mark.parametrize("script", LAUNCHED)
def test_a_launched_script_runs_a_tiny_job(script, tmp_path):
    """A new script under launch/ has no job here, and fails."""
    assert script in {"preprocess.py", "pretrain.py", "finetune.py"}, f"give {script} a tiny job"
    if script == "preprocess.py":
        sizes = {"train_clips": 2, "dev_clips": 1, "test_clips": 1, "heldout_clips": 1}
        make_corpus(Corpus(name="synthetic", language="de", **sizes), tmp_path / "corpus")
        arguments = ["--corpus", "synthetic", "--root", "corpus", "--out", "shards", "--recipe", "demo"]
        settings = ["precompute.actors=1", *(f"corpus.{name}={value}" for name, value in sizes.items())]
        with private_ray():  # has no CPU: a job that joined it would wait for ever
            ended_well([ROOT / "launch" / script, *arguments, *settings], tmp_path)
        assert (tmp_path / "shards" / "index.json").is_file()
        return
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe(
        "features", f"model.language_model={language}", "pretrain.max_steps=2", "finetune.max_steps=2"
    )
    (tmp_path / "tiny.yaml").write_text(to_yaml(recipe))
    make_shards(tmp_path / "shards", recipe, [("train", 8), ("dev", 4)])
    arguments = ["--run", "run", "--data", "shards", "--recipe", "tiny.yaml"]
    for stage in ("pretrain.py", "finetune.py")[: 1 + (script == "finetune.py")]:
        ended_well([ROOT / "launch" / stage, *arguments], tmp_path)
    assert (tmp_path / "run" / script.removesuffix(".py") / "log.jsonl").is_file()
