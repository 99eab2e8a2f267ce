"""When a stage is started again, and when not; hostfiles; the launcher's processes are stand-ins."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from sage_scale.errors import UsageError
from sage_scale.training import hostfile, restarts
from sage_scale.training.hostfile import Hosts, start_hosts
from sage_scale.training.launcher import AttemptResult

KILLED = {
    "line": "rank 1 on b was killed",
    "code": 1,
    "permanent": False,
    "kind": "killed",
    "rank": 1,
    "host": "b",
}


class Attempts:
    """Each attempt reaches a step and ends in a way; pauses are noted instead of slept."""

    def __init__(self, run, *plan):
        self.run, self.plan, self.pauses, self.said = run, list(plan), [], []
        (run / "pretrain").mkdir(parents=True, exist_ok=True)

    def __call__(self):
        step, ended = self.plan.pop(0)
        with (self.run / "pretrain" / "log.jsonl").open("a") as log:
            log.write(json.dumps({"event": "step", "step": step}) + "\n" + '{"event": "st')  # cut by a kill
            log.write("\n")
        return ended

    def run_with_restarts(self, allowed):
        restarts.run_with_restarts(
            "pretrain", self.run, self, allowed, say=self.said.append, sleep=self.pauses.append
        )


def test_restarts_until_done_with_growing_pauses_and_a_record(tmp_path):
    attempts = Attempts(
        tmp_path,
        (10, AttemptResult(1, why=KILLED)),
        (20, AttemptResult(1)),
        (30, AttemptResult(1, why=KILLED)),
        (40, AttemptResult(0)),
    )
    attempts.run_with_restarts(5)
    assert attempts.pauses == [1, 2, 4]
    rows = [json.loads(line) for line in (tmp_path / "restarts.jsonl").read_text().splitlines()]
    assert [row["reached_step"] for row in rows] == [10, 20, 30]
    assert rows[0]["reason"] == KILLED["line"] and rows[0]["host"] == "b"
    assert "step 10 was reached" in attempts.said[0]


def test_no_more_restarts_than_allowed(tmp_path):
    attempts = Attempts(tmp_path, *[(10 * i, AttemptResult(1, why=KILLED)) for i in range(1, 9)])
    with pytest.raises(restarts.StageEndedEarly, match="all 3 restarts") as caught:
        attempts.run_with_restarts(3)
    assert caught.value.exit_code == 1 and len(attempts.plan) == 8 - 4


def test_a_run_that_gets_no_further_is_given_up(tmp_path):
    attempts = Attempts(tmp_path, *[(57, AttemptResult(1, why=KILLED)) for _ in range(9)])
    with pytest.raises(restarts.StageEndedEarly, match="no further"):
        attempts.run_with_restarts(8)
    assert len(attempts.plan) == 9 - 3, "the first start got to step 57, two more did not get further"


@pytest.mark.parametrize(
    "ended",
    [
        AttemptResult(2),
        AttemptResult(3),
        AttemptResult(130),
        AttemptResult(1, why={**KILLED, "permanent": True}),
    ],
)
def test_what_would_happen_again_is_not_tried_again(tmp_path, ended):
    attempts = Attempts(tmp_path, (10, ended))
    with pytest.raises(restarts.StageEndedEarly) as caught:
        attempts.run_with_restarts(5)
    assert caught.value.exit_code == ended.code and not attempts.pauses


def test_told_to_stop_is_no_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Attempts(tmp_path, (10, AttemptResult(130, asked=True))).run_with_restarts(5)


def test_a_hostfile_gives_ranks_and_the_address_of_the_first(tmp_path, monkeypatch):
    path = tmp_path / "hosts"
    path.write_text("# two machines\nme@node-a slots=8\n\nnode-b slots=4  # half of it\n")
    hosts = Hosts.read(path)
    assert (hosts.world, hosts.address) == (12, "node-a")
    monkeypatch.setattr(hostfile.shutil, "which", lambda name: f"/bin/{name}")
    words = hosts.command("pretrain", ["--run", "r"], 20001)
    assert (
        words[words.index("--hostfile") + 1] == str(path)
        and words[words.index("--master_addr") + 1] == "node-a"
    )
    monkeypatch.setattr(hostfile.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="pdsh"):
        hosts.command("pretrain", [], 20001)


@pytest.mark.parametrize("line", ["node-a", "node-a slots=0", "node-a slots=x", "node-b slots=2"])
def test_a_wrong_hostfile_is_refused_by_its_line(tmp_path, line):
    (tmp_path / "hosts").write_text(f"node-b slots=1\n{line}\n")
    with pytest.raises(UsageError, match="line 2"):
        Hosts.read(tmp_path / "hosts")


def test_a_stop_whose_save_failed_is_a_failure(tmp_path):
    with pytest.raises(restarts.StageEndedEarly) as caught:
        Attempts(tmp_path, (10, AttemptResult(1, asked=True))).run_with_restarts(5)
    assert caught.value.exit_code == 1


class OneProcess(Hosts):
    """A hostfile whose launcher is a Python script."""

    script = ""

    def command(self, stage, arguments, port):
        return [sys.executable, "-c", self.script]


def launched(script: str, tmp_path) -> AttemptResult:
    hosts = OneProcess(tmp_path / "hosts", {"node-a": 1}, "127.0.0.1")
    object.__setattr__(hosts, "script", script)
    return start_hosts(hosts, "pretrain", [], tmp_path / "ended.json")


def test_the_verdict_of_the_ranks_decides_the_exit_code(tmp_path):
    said = json.dumps({**KILLED, "code": 2})
    script = "import os, json, sys; json.dump({}, open(os.environ['SAGE_ENDED_FILE'], 'w')); sys.exit(7)"
    ended = launched(script.replace("{}", f"json.loads({said!r})", 1), tmp_path)
    assert ended.code == 2 and ended.line == KILLED["line"]


def test_two_hasty_ctrl_c_are_one_request(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(hostfile, "request_stop", lambda *address: told.append(address) or True)
    saving = f"import time; time.sleep(1.5); open({str(tmp_path / 'saved')!r}, 'w')"
    hasty = [threading.Timer(at, os.kill, (os.getpid(), signal.SIGINT)) for at in (0.4, 0.7, 1.0)]
    for timer in hasty:
        timer.start()
    ended = launched(saving, tmp_path)
    assert ended.asked and len(told) == 1 and (tmp_path / "saved").exists()


def test_a_process_too_large_to_be_forked_starts_its_launcher_all_the_same(monkeypatch, tmp_path):
    start = subprocess.Popen

    def refuse(*arguments, preexec_fn=None, **settings):
        if preexec_fn is not None:  # what the kernel says where memory would have to be promised twice
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return start(*arguments, **settings)

    monkeypatch.setattr(subprocess, "Popen", refuse)
    test_the_verdict_of_the_ranks_decides_the_exit_code(tmp_path)
