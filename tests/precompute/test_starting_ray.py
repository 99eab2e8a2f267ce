"""Ray that is slow to start on a busy machine; clusters of `ray start` beside a Ray of another program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import psutil
import pytest
import ray

from sage_scale.config import Recipe, load_recipe
from sage_scale.errors import SageError, UsageError
from sage_scale.precompute.ray_session import ray_session, running_cluster

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_a_slow_start_is_tried_once_more(monkeypatch, slow: int) -> None:
    tried, ended = [], []

    def init(**settings) -> None:
        tried.append(settings)
        if len(tried) <= slow:
            raise Exception(SLOW)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    if slow == 2:
        with (
            pytest.raises(SageError, match=r"did not start .* twice: .*run the same command again") as told,
            ray_session(Recipe()),
        ):
            pass
        assert "\n" not in str(told.value)
    else:
        with ray_session(Recipe()):
            assert len(tried) == slow + 1 and len(ended) == slow
    assert all(settings["address"] == "local" for settings in tried)


def test_other_faults_are_told_as_they_are(monkeypatch) -> None:
    def init(**_) -> None:
        raise RuntimeError("no permission")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RuntimeError, match="no permission"), ray_session(Recipe()):
        pass


@pytest.fixture
def raylet(tmp_path, monkeypatch) -> Iterator[Callable[[str, str], None]]:
    """Starts a process with a raylet's command line in a temporary folder of its own, where an address is recorded."""
    started: list[subprocess.Popen] = []

    def start(address: str, recorded: str) -> None:
        folder = tmp_path / f"ray {len(started)}"
        folder.mkdir()
        if recorded:
            (folder / "ray_current_cluster").write_text(recorded)
        command = ["/where/ray/raylet", "-c", "input()", f"--temp_dir={folder}", f"--gcs-address={address}"]
        started.append(subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE))

    # Not the machine's other processes, of which some may be raylets.
    monkeypatch.setattr(psutil, "process_iter", lambda: [psutil.Process(one.pid) for one in started])
    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_only_a_running_cluster_of_ray_start_is_found(raylet, monkeypatch) -> None:
    assert running_cluster() == ""
    raylet("127.0.0.1:1", "")  # of `ray.init` in another program
    raylet("127.0.0.1:2", "127.0.0.1:9")  # the same, in a folder where a cluster was that has ended
    assert running_cluster() == ""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(UsageError, match=r"auto: no Ray cluster of `ray start` runs"),
        ray_session(load_recipe("demo", ["precompute.address=auto"])),
    ):
        pass
    raylet("127.0.0.1:3", "127.0.0.1:3\n")
    assert running_cluster() == "127.0.0.1:3"
    raylet("127.0.0.1:3", "127.0.0.1:3")  # a second node of it
    assert running_cluster() == "127.0.0.1:3"
    raylet("10.0.0.1:4", "10.0.0.1:4")
    with pytest.raises(UsageError, match=r"several .*10\.0\.0\.1:4, 127\.0\.0\.1:3.*RAY_ADDRESS"):
        running_cluster()
