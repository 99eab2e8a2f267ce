"""Rank monitors and their ranks as processes: however a rank ends, all end soon, with one line that says why."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from factories.ranks import free_port

from sage_scale.training.monitor.heartbeat import request_stop

SCRIPT = Path(__file__).with_name("monitored_rank.py")


class Job:
    """Ranks of monitored_rank.py, as a launcher starts them."""

    def __init__(
        self, run: Path, world: int = 2, steps: int = 400, started: tuple[int, ...] = (), **given: object
    ):
        self.run, self.world, self.port = run, world, free_port()
        (run / "pretrain").mkdir(exist_ok=True)
        self.since = time.monotonic()
        self.processes: dict[int, subprocess.Popen] = {}
        limits = {name: value for name, value in given.items() if name.islower()}
        self.environment = {
            **os.environ,
            **{name: str(value) for name, value in given.items() if name.isupper()},
            "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port),
            "LIMITS": json.dumps(limits),
        }  # fmt: skip
        for rank in started or range(world):
            environment = {**self.environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            self.processes[rank] = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(run), str(steps)],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )

    def pid(self, rank: int, who: str = "pid") -> int:
        """Process id of a rank (or of its `monitor`), once it makes steps."""
        path = self.run / f"{who}-{rank}"
        end = time.monotonic() + 20
        while not (path.is_file() and path.read_text()):
            assert time.monotonic() < end
            time.sleep(0.02)
        return int(path.read_text())

    def end(self, within: float) -> tuple[list[int], list[str]]:
        """Exit codes and what was said, over all ranks; fails where one is still there after `within` seconds."""
        end = time.monotonic() + within
        said = []
        try:
            for process in self.processes.values():
                said += process.communicate(timeout=max(0.1, end - time.monotonic()))[1].splitlines()
        finally:
            for process in self.processes.values():
                process.kill()
        for rank in self.processes:
            assert not runs(self.pid(rank)), f"rank {rank} was left behind"
        return [process.returncode for process in self.processes.values()], said


def runs(pid: int) -> bool:
    """Whether a process is there, and not only its entry in the table that nobody has cleared."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_undisturbed_ranks_say_nothing_and_end_with_0(tmp_path):
    codes, said = Job(tmp_path, world=3, steps=10).end(within=20)
    assert codes == [0, 0, 0]
    assert said == []


@pytest.mark.system
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("kill", "rank 1 on HOST was killed (SIGKILL) (in step 6)"),
        ("crash", "rank 1 on HOST crashed (SIGSEGV) (in step 6); see"),
        ("import", "rank 1 on HOST failed: ImportError: no module named x (while starting); see"),
        ("exit", "rank 1 on HOST ended with exit code 7 and no word (while starting)"),
        ("damaged", "shard 000042.tar is damaged (rank 1 on HOST, in step 6)"),
    ],
)
def test_a_rank_that_ends_ends_all_with_one_line(tmp_path, fault, words):
    codes, said = Job(tmp_path, FAULT=fault).end(within=20)
    assert codes == [1, 1]
    assert len(said) == 1, said
    assert said[0].startswith("sage-scale pretrain: " + words.replace("HOST", os.uname().nodename))
    ended = json.loads((tmp_path / "pretrain" / "ended.json").read_text())
    assert ended["rank"] == 1 and ended["permanent"] == (fault == "damaged")


def test_a_hanging_rank_is_found_among_those_that_wait_for_it(tmp_path):
    codes, said = Job(tmp_path, FAULT="stop", FAULTY=1, hang_timeout_s=2).end(within=30)
    assert codes == [1, 1]
    assert len(said) == 1 and "rank 1" in said[0] and "the system has stopped it" in said[0], said
    assert "in step 6" in said[0]


@pytest.mark.system
def test_stacks_of_a_hanging_rank_say_where_it_is(tmp_path):
    codes, said = Job(tmp_path, FAULT="hang", FAULTY=0, hang_timeout_s=2).end(within=30)
    assert codes == [1, 1]
    assert (
        len(said) == 1 and "rank 0" in said[0] and "sleep_for_ever, training/monitored_rank.py" in said[0]
    ), said
    stacks = Path(said[0].rpartition("see ")[2]).read_text()
    assert "sleep_for_ever" in stacks and "most recent call first" in stacks


@pytest.mark.system
def test_a_rank_that_saves_for_long_is_waited_for(tmp_path):
    codes, said = Job(tmp_path, FAULT="save", steps=8, hang_timeout_s=1.5, long_timeout_s=30).end(within=30)
    assert (codes, said) == ([0, 0], [])


@pytest.mark.system
def test_a_rank_that_never_starts_is_named(tmp_path):
    job = Job(tmp_path, world=4, started=(0, 2), start_timeout_s=3)
    codes, said = job.end(within=20)
    assert codes == [1, 1]
    assert (
        len(said) == 1 and "ranks 1 and 3 of 4 did not start within 3 s (there are ranks 0 and 2" in said[0]
    ), said


@pytest.mark.system
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_monitor_takes_its_rank_along_and_ends_the_others(tmp_path, rank):
    job = Job(tmp_path, steps=4000)
    job.pid(0), job.pid(1)
    time.sleep(1.5)  # until both have met
    os.kill(job.pid(rank, "monitor"), signal.SIGKILL)
    codes, said = job.end(within=20)
    assert sorted(codes) == [-9, 1]
    assert len(said) == 1 and f"rank {rank}" in said[0] and "died without a word" in said[0], said


@pytest.mark.system
def test_a_silent_host_is_lost_after_the_contact_time_out(tmp_path):
    """A stopped monitor is as silent as a host whose link is cut."""
    job = Job(tmp_path, contact_timeout_s=3, steps=4000)
    job.pid(1)
    job.pid(0)
    time.sleep(1.5)  # until both have met
    os.kill(job.pid(1, "monitor"), signal.SIGSTOP)
    said = job.processes[0].communicate(timeout=20)[1].splitlines()
    assert len(said) == 1 and "rank 1 on" in said[0] and "has been silent for" in said[0], said
    os.kill(job.pid(1, "monitor"), signal.SIGCONT)
    codes, _ = job.end(within=10)
    assert codes == [1, 1]


def test_sigterm_to_one_monitor_reaches_its_rank_which_saves(tmp_path):
    job = Job(tmp_path, world=1, steps=4000)
    job.pid(0)
    time.sleep(0.5)
    job.processes[0].terminate()
    codes, said = job.end(within=20)
    assert (codes, said) == ([130], [])
    assert (tmp_path / "saved-0").exists()


@pytest.mark.system
def test_rank_0s_monitor_takes_requests_to_stop_of_its_own_run_only(tmp_path):
    job = Job(tmp_path, world=2, steps=4000)
    job.pid(0)
    assert not request_stop("127.0.0.1", job.port, world=3, timeout_s=1)
    assert request_stop("127.0.0.1", job.port, world=2)
    end = time.monotonic() + 10
    while not (tmp_path / "saved-0").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(job.pid(1), signal.SIGTERM)  # here nobody shares the request in a collective
    codes, said = job.end(within=20)
    assert (codes, said) == ([130, 130], [])


@pytest.mark.system
def test_ranks_of_a_dead_launcher_save_and_end(tmp_path):
    """The launcher is a process of its own here, so that it can be killed."""
    start = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {str(SCRIPT)!r}, {str(tmp_path)!r}, '4000'])\ntime.sleep(1000)\n"
    )
    environment = {**os.environ, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(free_port())}  # fmt: skip
    launcher = subprocess.Popen([sys.executable, "-c", start], env=environment)
    rank = tmp_path / "pid-0"
    end = time.monotonic() + 20
    while not (rank.is_file() and rank.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.5)
    launcher.kill()
    launcher.wait()
    while runs(int(rank.read_text())):
        assert time.monotonic() < end + 10
        time.sleep(0.05)
    assert (tmp_path / "saved-0").exists()


class Metadata(http.server.BaseHTTPRequestHandler):
    """AWS's instance metadata service, version 2, as its documentation has it."""

    notice = ""
    asked = 0

    def do_PUT(self):
        good = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._answer(200 if good else 400, "secret-token")

    def do_GET(self):
        if self.headers.get("X-aws-ec2-metadata-token") != "secret-token":
            return self._answer(401, "")
        if self.path == "/latest/meta-data/instance-id":
            return self._answer(200, "i-0")
        type(self).asked += 1
        there = self.path == "/latest/meta-data/spot/instance-action" and self.notice
        return self._answer(200 if there else 404, self.notice)

    def _answer(self, code, text):
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.mark.system
@pytest.mark.parametrize("source", ["aws", "auto"])
def test_a_spot_notice_saves_and_stops(tmp_path, source, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(Metadata, "asked", 0)
    monkeypatch.setattr(Metadata, "notice", "")
    try:
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        job = Job(tmp_path, 1, steps=4000, stop_notice=source, AWS_EC2_METADATA_SERVICE_ENDPOINT=endpoint)
        job.pid(0)
        end = time.monotonic() + 10
        while Metadata.asked < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert not (tmp_path / "saved-0").exists()
        Metadata.notice = '{"action": "terminate", "time": "2026-11-22T12:00:00Z"}'
        codes, said = job.end(within=20)
    finally:
        server.shutdown()
        server.server_close()
    assert codes == [130] and (tmp_path / "saved-0").exists()
    assert len(said) == 1 and "AWS takes this spot instance back" in said[0] and "terminate" in said[0], said


def test_a_notice_file_saves_and_stops(tmp_path):
    job = Job(tmp_path, 1, steps=4000, stop_notice=str(tmp_path / "going"))
    job.pid(0)
    time.sleep(0.5)
    (tmp_path / "going").touch()
    codes, said = job.end(within=20)
    assert codes == [130] and len(said) == 1 and "going is there" in said[0], said
