"""Training on two hosts (namespaces) under DeepSpeed's launcher: what is cut, dead or away ends the run, explained.

The times waited are what the recipe states (`watch`), with room for a busy machine; docs/results/watchdog.md has those
seen.
"""

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
from two_hosts import Switch, hosts, start_s3, start_sshd, why_no_ssh, why_not

from sage_scale.config import to_yaml

TESTS = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "possible"),
]
LAUNCH = TESTS.parent / "launch" / "pretrain.py"
CONTACT_S = 10
STEPS = 100_000
"""More than any test lets it make."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("hosts")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe("features", f"model.language_model={language}", f"watch.contact_timeout_s={CONTACT_S}",
                         f"pretrain.max_steps={STEPS}")  # fmt: skip
    (root / "tiny.yaml").write_text(to_yaml(recipe))
    make_shards(root / "shards", recipe, [("train", 20), ("dev", 6)])
    (root / "hostfile").write_text("host-a slots=1\nhost-b slots=1\n")
    return root


class Run:
    """A stage on host-a and host-b, a rank on each."""

    def __init__(self, switch: Switch, root: Path, name: str, only: str = "", broken: str = "", **more: str):
        self.folder, self.name = root / name, name
        self.outputs = {host: root / f"{name}-{host}.txt" for host in ("host-a", "host-b")}
        self.processes: dict[str, subprocess.Popen] = {}
        overrides = more.pop("overrides", "").split()
        for number, host in enumerate(self.outputs):
            if only and host != only:
                continue
            environment = {
                "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "eth0", "DS_LOG_LEVEL": "error",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONWARNINGS": "ignore", **more,
                "PYTHONPATH": os.pathsep.join([broken if host == "host-b" else "", str(TESTS.parent)]).strip(":"),
            }  # fmt: skip
            command = [Path(sys.executable).with_name("deepspeed"), "--log_level", "critical", "--hostfile",
                       root / "hostfile", "--no_ssh", "--node_rank", number, "--master_addr",
                       switch.addresses["host-a"], "--master_port", 29500, LAUNCH, "--run", self.folder, "--data",
                       root / "shards", "--recipe", root / "tiny.yaml", *overrides]  # fmt: skip
            self.processes[host] = switch.start(host, command, environment, self.outputs[host])

    def step(self) -> int:
        """The last step logged."""
        path = self.folder / "pretrain" / "log.jsonl"
        rows = path.read_text().splitlines() if path.is_file() else []
        steps = [0]
        for row in rows:
            if row.endswith("}"):
                event = json.loads(row)
                steps += [event["step"]] if event["event"] == "step" else []
        return max(steps)

    def wait_for_step(self, step: int, within: float = 400) -> None:
        end = time.monotonic() + within
        while self.step() < step:
            assert time.monotonic() < end and all(p.poll() is None for p in self.processes.values()), (
                self.said()
            )
            time.sleep(0.1)

    def end(self, within: float) -> dict[str, float]:
        """Seconds until each host's launcher ended, by host; fails where one runs on."""
        started, seconds = time.monotonic(), {}
        while len(seconds) < len(self.processes):
            for host, process in self.processes.items():
                if host not in seconds and process.poll() is not None:
                    seconds[host] = time.monotonic() - started
                    assert process.returncode not in (0, None), self.said()
            if time.monotonic() - started > within:
                self.kill()
                pytest.fail(f"after {within} s only {list(seconds)} ended:\n{self.said()}")
            time.sleep(0.05)
        print(f"{self.name}: ended after " + ", ".join(f"{host} {s:.1f} s" for host, s in seconds.items()))
        print(self.said())
        return seconds

    def lines(self, host: str) -> list[str]:
        """What the watchdog said on a host's terminal."""
        return [
            line for line in self.outputs[host].read_text().splitlines() if line.startswith("sage-scale ")
        ]

    def said(self) -> str:
        return "\n".join(
            f"[{host}]\n{path.read_text()}" for host, path in self.outputs.items() if path.exists()
        )

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture
def switch():
    with hosts("host-a", "host-b", "host-s3") as made:
        yield made


@pytest.mark.system
def test_a_cut_link_ends_both_hosts_which_name_each_other(world, switch):
    run = Run(switch, world, "cut")
    try:
        run.wait_for_step(2)
        time.sleep(2.5)  # rank monitors tell each other once a second where their ranks are
        switch.pull("host-b")
        run.end(within=CONTACT_S + 30)
    finally:
        run.kill()
    there, here = run.lines("host-a"), run.lines("host-b")
    assert len(there) == 1 and "rank 1 on host-b has been silent" in there[0] and "in step " in there[0], (
        there
    )
    assert (
        len(here) == 1 and "rank 0 on host-a has been silent to host-b" in here[0] and "in step " in here[0]
    ), here
    assert "Traceback" not in run.said()


@pytest.mark.system
def test_a_rank_that_fails_before_the_group_forms_ends_the_other_host(world, switch, tmp_path):
    (tmp_path / "transformers.py").write_text("raise ImportError('transformers is of another Python')\n")
    run = Run(switch, world, "import", broken=str(tmp_path))
    try:
        run.end(within=60)
    finally:
        run.kill()
    lines = run.lines("host-a")
    assert (
        len(lines) == 1
        and "rank 1 on host-b failed: ImportError: transformers is of another Python" in lines[0]
    ), lines
    assert run.lines("host-b") == []


@pytest.mark.system
def test_a_host_that_never_starts_is_named(world, switch):
    run = Run(switch, world, "absent", only="host-a", overrides="watch.start_timeout_s=6")
    try:
        run.end(within=60)
    finally:
        run.kill()
    lines = run.lines("host-a")
    assert (
        len(lines) == 1 and "rank 1 of 2 did not start within 6 s (there are rank 0 on host-a)" in lines[0]
    ), lines


@pytest.mark.system
def test_s3_away_during_a_save_is_told_at_once_and_ends_the_run_in_the_stated_time(world, switch, tmp_path):
    give_up_s = 8
    s3, keys = start_s3(switch, tmp_path)
    settings = (
        f"pretrain.checkpoints=s3://bucket/runs pretrain.save_every=3 stream.give_up_after_s={give_up_s}"
    )
    run = Run(switch, world, "away", overrides=settings, **keys)
    try:
        run.wait_for_step(4)  # a checkpoint is there, and more are under way
        switch.pull("host-s3")
        run.end(within=give_up_s + 90)
    finally:
        run.kill()
        s3.kill()
    lines = run.lines("host-a")
    assert len(lines) == 1 and "s3://bucket/runs/away/pretrain" in lines[0], run.said()


@pytest.fixture
def reachable(switch, tmp_path):
    """sshd on both hosts, and the environment with which pdsh gets in."""
    with start_sshd(switch, tmp_path) as ssh:
        yield {**ssh, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent),
               "DS_LOG_LEVEL": "error"}  # fmt: skip


@pytest.mark.extras
@pytest.mark.skipif(bool(why_no_ssh()), reason=why_no_ssh() or "possible")
def test_a_hostfile_run_is_restarted_after_a_kill_and_saves_when_told_to_stop(
    world, switch, reachable, tmp_path
):
    """`sage-scale pretrain --hostfile` on host-a, over pdsh and ssh; the trainer on host-b is killed once."""
    hostfile = tmp_path / "hosts"
    hostfile.write_text("".join(f"{switch.addresses[host]} slots=1\n" for host in ("host-a", "host-b")))
    run = Run(switch, world, "pdsh", only="none")
    command = [sys.executable, "-m", "sage_scale.cli.main", "pretrain", "--run", run.folder, "--data", world / "shards",
               "--recipe", world / "tiny.yaml", "--hostfile", hostfile, "--restarts", 2,
               "pretrain.save_every=5"]  # fmt: skip
    cli = run.processes["host-a"] = switch.start("host-a", command, reachable, run.outputs["host-a"])
    try:
        run.wait_for_step(7)
        victim = trainers(run.folder)[-1]
        assert "--local_rank=0" in victim.cmdline()
        victim.kill()
        end = time.monotonic() + 60
        while not (run.folder / "restarts.jsonl").exists():
            assert time.monotonic() < end, run.said()
            time.sleep(0.1)
        row = json.loads((run.folder / "restarts.jsonl").read_text())
        assert row["kind"] == "killed" and row["reached_step"] >= 7 and row["host"].startswith("host-"), row
        run.wait_for_step(row["reached_step"] + 3)
        child = next(
            p
            for p in psutil.Process(cli.pid).children(recursive=True)
            if "sage_scale.cli.main" in p.cmdline()
        )
        child.send_signal(signal.SIGTERM)
        assert cli.wait(90) == 130, run.said()
    finally:
        run.kill()
    print(run.said())
    saved = sorted(
        path.parent.name for path in (run.folder / "pretrain" / "checkpoints").glob("step-*/state.json")
    )
    assert int(saved[-1].removeprefix("step-")) == run.step(), "the last step made is the one that was saved"
    assert "was killed (SIGKILL)" in run.said() and "starting again from the last checkpoint" in run.said()
    assert not trainers(run.folder)


def trainers(folder: Path) -> list[psutil.Process]:
    """The processes that train in a run folder, below their rank monitors, by process id."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            parent = process.parent()
            if (
                str(LAUNCH) in words
                and str(folder) in words
                and parent is not None
                and parent.cmdline() == words
            ):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)
