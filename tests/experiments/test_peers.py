"""The loaders' benchmark beside its real peers, in the environment of their own that it makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from common import peers_python

ROOT = Path(__file__).resolve().parents[2]
PEERS = Path(os.environ.get("SAGE_SCALE_PEERS", ROOT / ".peers"))
"""A checkout keeps what it has installed; the variable names an environment that is there already."""

pytestmark = [pytest.mark.system, pytest.mark.extras, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def peers() -> Path:
    try:
        peers_python(PEERS)
    except SystemExit as refused:
        pytest.skip(str(refused))
    return PEERS


def test_every_loader_gives_the_samples_that_were_written(peers):
    script = ROOT / "benchmarks" / "loaders.py"
    run = subprocess.run(
        [sys.executable, script, "--small", "--peers", peers, "--workers", "0", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    for name in ("sage_scale", "webdataset", "mosaicml-streaming", "litdata", "litdata, batch_decode=0"):
        assert f"{name}: each of 512 samples once, equal to what was written" in run.stdout


def test_our_environment_is_left_as_it_was(peers):
    """The peers want an older transformers, which went into theirs."""
    asked = [
        PEERS / "bin" / "python",
        "-c",
        "import importlib.metadata as m; print(m.version('transformers'))",
    ]
    theirs = subprocess.run(
        asked, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    )
    import transformers

    assert theirs.stdout.startswith("4.") and int(transformers.__version__.split(".")[0]) >= 5


def test_the_segmenter_on_pictures_answers(tmp_path):
    """signlang-segmenter in an environment of its own: a row of the table beside ours."""
    script = ROOT / "benchmarks" / "segmentation_peer.py"
    run = subprocess.run(
        [sys.executable, script, "--small", "--peer", PEERS / "segmentation"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if "pip cannot install" in run.stderr:
        pytest.skip(run.stderr.strip().splitlines()[-1])
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    rows = [line.split(" | ")[0].strip("| ") for line in run.stdout.splitlines() if line.startswith("| ")]
    assert rows == ["tagger", "motion", "uniform", "signlang-segmenter 0.2.1"]
