"""SIGINT and SIGTERM end a run and all its processes; the same command again finishes it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import precompute_kills
import pytest
from factories.processes import marked, wait_until

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    ("verb", "number", "files", "made"),
    [
        ("precompute", signal.SIGINT, "*.tar", 10),
        ("precompute", signal.SIGTERM, "*.tar", 10),
        ("keypoints", signal.SIGTERM, "**/*.pose", 29),
    ],
)
def test_an_interrupted_run_ends_its_processes_and_goes_on(
    tmp_path: Path, verb: str, number: int, files: str, made: int
) -> None:
    precompute_kills.write_corpus(tmp_path / "corpus", 30)
    out = tmp_path / "out"
    process = precompute_kills.run(verb, tmp_path / "corpus", str(out))
    until = time.monotonic() + 90
    while not list(out.glob(files)) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, number)
    assert process.wait(timeout=30) == 130
    assert wait_until(lambda: not marked(process.mark), 15, pause=0.2)
    stored = list(out.glob(files))
    assert 0 < len(stored) < made
    assert all(path.stat().st_size > 0 for path in stored)
    assert precompute_kills.run(verb, tmp_path / "corpus", str(out)).wait(timeout=120) == 0
    assert len(list(out.glob(files))) == made
