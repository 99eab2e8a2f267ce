"""Why a run ends, decided on reports alone: no process, no socket, and a clock that the test moves."""

from __future__ import annotations

import random
import signal
import socket
import time

import pytest

from sage_scale.training.monitor import rank_status
from sage_scale.training.monitor.diagnosis import FaultReport, RankRegistry
from sage_scale.training.monitor.heartbeat import HeartbeatClient, HeartbeatServer, run_token
from sage_scale.training.monitor.rank_process import innermost_frame
from sage_scale.training.monitor.stop_requests import SAME_S, StopRequest

STEP = 0.1
GLOO = "failed: RuntimeError: [gloo] Connection closed"


def fault(kind: str, rank: int, text: str = "has made no progress", **more: bool) -> FaultReport:
    return FaultReport(kind, rank, f"host-{rank // 2}", "step 57", text, **more)


def registry_of(world: int, **more: float) -> RankRegistry:
    registry = RankRegistry(world, started=0.0, **more)
    for rank in range(world):
        registry.record_heartbeat(0.0, rank, f"host-{rank // 2}", at="step 57", step=56)
    return registry


def run(
    registry: RankRegistry, until: float, silent: set[int] = frozenset(),
    in_long_phase: set[int] = frozenset(), since=0.0,
):  # fmt: skip
    """(time, diagnosis) of the first diagnosis while all but `silent` are heard of every second; (until, None) else."""
    now = since
    while now < until:
        now += STEP
        for rank, state in registry.ranks.items():
            if rank not in silent and state.over is None and round(now * 10) % 10 == 0:
                registry.record_heartbeat(
                    now, rank, state.host, at=state.at, step=state.step, in_long_phase=rank in in_long_phase
                )
        diagnosis = registry.tick(now)
        if diagnosis is not None:
            return now, diagnosis
    return until, None


def test_nothing_wrong_is_never_a_diagnosis_and_the_end_is_the_worst_good_code():
    registry = registry_of(4)
    assert run(registry, 100)[1] is None
    assert registry.code is None
    for rank in range(4):
        registry.record_heartbeat(100, rank, "h", over=130 if rank == 2 else 0)
    assert registry.code == 130
    assert run(registry, 200, since=100)[1] is None, "those that are over need not be heard of"


def test_the_rank_that_died_is_named_whatever_order_the_others_fail_in():
    for seed in range(50):
        order = random.Random(seed)
        registry = registry_of(6)
        dead = order.randrange(6)
        reports = [fault("collective", rank, GLOO) for rank in range(6) if rank != dead]
        reports.append(fault("killed", dead, "was killed (SIGKILL)"))
        order.shuffle(reports)
        now = 10.0
        for report in reports:
            now += order.random() * 0.4
            registry.report(now, report)
        _, diagnosis = run(registry, 60, since=now)
        assert diagnosis is not None and diagnosis.rank == dead
        assert diagnosis.line == f"rank {dead} on host-{dead // 2} was killed (SIGKILL) (in step 57)"


def test_a_failed_collective_alone_is_a_diagnosis_after_three_seconds():
    registry = registry_of(2)
    registry.report(5.0, fault("collective", 1, GLOO))
    now, diagnosis = run(registry, 60, since=5.0)
    assert diagnosis is not None and 8 <= now <= 8.5 and "gloo" in diagnosis.line


def test_a_silent_host_explains_a_failed_collective_and_is_named_with_all_its_ranks():
    registry = registry_of(6, contact_timeout_s=10)
    assert run(registry, 20)[1] is None
    registry.report(23.0, fault("collective", 0, GLOO))
    now, diagnosis = run(registry, 60, silent={2, 3}, since=20.0)
    assert diagnosis is not None and now <= 20 + 10 + 2
    assert diagnosis.line.startswith("ranks 2 and 3 on host-1 have been silent for 1")


def test_a_monitor_that_slept_takes_nobody_for_lost():
    registry = registry_of(3, contact_timeout_s=10)
    registry.extend_timeouts(60.0)
    assert registry.tick(60.1) is None
    assert run(registry, 69, silent={1}, since=60.1)[1] is None
    now, diagnosis = run(registry, 90, silent={1}, since=69.0)
    assert diagnosis is not None and diagnosis.rank == 1 and now < 75


def test_a_stalled_rank_is_no_hang_while_another_saves():
    registry = registry_of(3)
    registry.report(1.0, fault("stalled", 1, waiting=True))
    assert run(registry, 30, in_long_phase={2}, since=1.0)[1] is None
    assert run(registry, 33, since=30.0)[1] is None
    registry.report(33.0, fault("stalled", 1, waiting=True))
    registry.report(33.5, fault("stalled", 2, waiting=False))
    _, diagnosis = run(registry, 60, since=33.5)
    assert diagnosis is not None and diagnosis.rank == 2, (
        "the one that waits for no other is the one that hangs"
    )


def test_ranks_that_never_come_are_counted_and_named():
    registry = RankRegistry(5, started=0.0, start_timeout_s=20)
    for rank in (0, 1, 4):
        registry.record_heartbeat(0.0, rank, "host-a")
    now, diagnosis = run(registry, 60)
    assert diagnosis is not None and 20 < now < 22
    missing = "ranks 2 and 3 of 5 did not start within 20 s (there are ranks 0, 1 and 4 on host-a)"
    assert missing in diagnosis.line


def test_the_same_mistake_on_all_ranks_is_said_once_without_a_rank():
    registry = registry_of(2)
    for rank in range(2):
        registry.report(1.0, fault("failed", rank, "no dataset at nowhere", permanent=True, known=True))
    _, diagnosis = run(registry, 5, since=1.0)
    assert diagnosis is not None and diagnosis.line == "no dataset at nowhere" and diagnosis.permanent


@pytest.mark.parametrize(
    ("path", "waiting"),
    [("/x/torch/distributed/distributed_c10d.py", True), ("/x/sage_scale/streaming/stream.py", False)],
)
def test_stacks_tell_those_who_wait_in_a_collective(path, waiting):
    stacks = (
        'Thread 0x1 (most recent call first):\n  File "/x/torch/distributed/rpc.py", line 3 in other\n\n'
        f'Current thread 0x2 (most recent call first):\n  File "{path}", line 9 in all_reduce\n'
        '  File "/x/sage_scale/training/loop.py", line 81 in train\n'
    )
    where, found = innermost_frame(stacks)
    assert found is waiting
    assert where.endswith(("loop.py:81", "stream.py:9"))


def test_errors_of_collectives_are_known_and_others_are_not():
    closed = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:1"
    assert rank_status.failed_collective(RuntimeError(closed))
    assert not rank_status.failed_collective(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not rank_status.failed_collective(ValueError("gloo/"))


def test_strangers_and_other_runs_are_not_let_in():
    port = _pair_of_ports()
    token = run_token("127.0.0.1", port, 2)
    listener = HeartbeatServer(token, port, everywhere=False)
    junk = socket.create_connection(("127.0.0.1", listener.port))
    junk.sendall(b"GET / HTTP/1.1\r\n\r\n")
    other = HeartbeatClient({"token": run_token("127.0.0.1", port, 3), "rank": 1}, "127.0.0.1", port)
    ours = HeartbeatClient({"token": token, "rank": 1, "host": "h"}, "127.0.0.1", port)
    heard = []
    end = time.monotonic() + 5
    while not heard and time.monotonic() < end:
        heard += listener.poll()[0]
        time.sleep(0.02)
    assert [rank for rank, _ in heard] == [1] and heard[0][1]["host"] == "h"
    for _ in range(10):
        listener.poll()
        other.poll()
        time.sleep(0.02)
    assert list(listener.connections) == [1] and other.connection is None
    ours.poll()
    other.close(), ours.close(), junk.close(), listener.close()


def test_one_ctrl_c_that_arrives_three_times_is_one_request(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopRequest() as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
            now[0] += SAME_S / 4
        assert stop.asked
        now[0] += SAME_S
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def _pair_of_ports() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
