"""SIGKILL at random moments, and Ctrl-C: the same command again gives the undisturbed run's bytes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import precompute_kills
import pytest
from factories.processes import marked
from servers.ceph import missing_programs

pytestmark = pytest.mark.system
REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "tests" / "campaigns" / "precompute_kills.py"


@pytest.mark.timeout(600)
def test_eight_kills_of_driver_actors_and_raylet_beside_s3_faults_change_no_byte() -> None:
    """On Ceph's gateway, which dies and comes back as well; on moto, which only goes away, where there is no Ceph."""
    server = "moto" if missing_programs() else "ceph"
    command = [
        sys.executable,
        str(SCRIPT),
        "--kills",
        "8",
        "--clips",
        "30",
        "--seed",
        "4",
        "--server",
        server,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr
    # A run may end before it was killed eight times; then another round follows.
    said = re.fullmatch(
        r"8 kills beside (\d+) faults and (\d+) restarts of S3 in \d+ rounds: every file equal",
        done.stdout.splitlines()[-1],
    )
    assert said and int(said.group(1)) > 0, done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_processes_and_goes_on(tmp_path: Path, number: int) -> None:
    precompute_kills.write_corpus(tmp_path / "corpus", 30)
    out = tmp_path / "out"
    process = precompute_kills.run(tmp_path / "corpus", str(out))
    until = time.monotonic() + 90
    while not list(out.glob("*.tar")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, number)
    assert process.wait(timeout=30) == 130
    until = time.monotonic() + 15
    while marked(process.mark) and time.monotonic() < until:
        time.sleep(0.2)
    assert not marked(process.mark)
    stored = {path.name for path in out.glob("*.tar")}
    assert 0 < len(stored) < 10
    assert all((out / name).stat().st_size > 0 for name in stored)
    assert precompute_kills.run(tmp_path / "corpus", str(out)).wait(timeout=120) == 0
    assert len(list(out.glob("*.tar"))) == 10
