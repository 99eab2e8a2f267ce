"""`launch/ray/on_nodes.sh`: a Ray cluster of two hosts for one precompute, its token, its end and its exit code."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from factories.precompute import hashes, recipe_for, run_here, write_corpus
from faults.two_hosts import hosts, why_not

from sage_scale.config import LAUNCH_FOLDER, to_yaml

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.extras,
    pytest.mark.timeout(500),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "possible"),
]


def test_two_hosts_make_one_dataset_and_all_of_ray_ends_with_the_driver(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", clips=200)
    recipe = recipe_for(corpus)
    run_here(recipe, tmp_path / "undisturbed").execute()
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    out = tmp_path / "out"
    words = ["--corpus", "videos", "--root", corpus, "--out", out, "--recipe", tmp_path / "recipe.yaml"]
    environment = {
        "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "TMPDIR": str(tmp_path),
    }  # fmt: skip

    with hosts("host-a", "host-b", "host-c") as switch:

        def start(name: str, rank: int, *more: object, **changes: str):
            given = [LAUNCH_FOLDER / "ray" / "on_nodes.sh", 2, rank, switch.addresses["host-a"], 6399, *more]
            return switch.start(name, given, {**environment, **changes}, tmp_path / f"{name}.txt")

        def printed() -> str:
            return "".join(path.read_text() for path in sorted(tmp_path.glob("host-*.txt")))

        # The first run is stopped after two shards, the second one goes on. Another user's node has another token.
        log = Path(f"/tmp/sage-ray-{os.getuid()}-6399-2.log")
        refused = ""
        for stopped in (True, False):
            head, worker = start("host-a", 0, *words), start("host-b", 1)
            stranger = start("host-c", 2, RAY_AUTH_TOKEN="f" * 64)
            end = time.monotonic() + 200
            try:
                signalled = not stopped
                while head.poll() is None and time.monotonic() < end:
                    with contextlib.suppress(FileNotFoundError):  # before its start and after its end
                        refused += log.read_text()
                    if not signalled and len(list(out.glob("*.tar"))) >= 2:
                        _signal_script(head.pid)
                        signalled = True
                    time.sleep(0.2)
                assert head.poll() == (130 if stopped else 0), printed()
                assert worker.wait(90) == 0, printed()
            finally:
                for process in (head, worker, stranger):
                    process.kill()
                    process.wait()
                shutil.rmtree(log.with_suffix(""), ignore_errors=True)
                log.unlink(missing_ok=True)
        assert "InvalidAuthToken" in refused, printed()
        assert hashes(out) == hashes(tmp_path / "undisturbed")


def _signal_script(namespace: int) -> None:
    """SIGTERM to the script in a namespace whose first process is outside of it."""
    for process in psutil.Process(namespace).children(recursive=True):
        if "on_nodes.sh" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGTERM)
            return
