"""Requests that arrive: hedged where they straggle, within a budget, and given up at the deadline."""

import threading
import time

import pytest
from networks import Network

from sage_scale.storage import Unavailable, open_store
from sage_scale.streaming.executor import PREFETCH, PriorityExecutor
from sage_scale.streaming.range_requests import HEDGE_BURST, HEDGE_SHARE, Durations, RangeClient


@pytest.fixture
def network(tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(256)) * 40)
    return Network(tmp_path)


def get(client, offset=7, length=100, seconds=30.0):
    request = client.submit("x", offset, length)
    client.wait([request], time.monotonic() + seconds)
    return request


def test_a_straggler_is_overtaken_by_a_second_request(network):
    client = RangeClient(network, 30)
    for _ in range(40):
        assert get(client).data == open_store(network.inner.url).get_range("x", 7, 100)
    network.slow[40] = 20.0
    began = time.monotonic()
    request = get(client)
    assert request.data == network.inner.get_range("x", 7, 100) and time.monotonic() - began < 2
    spent = client.counts()
    assert (spent.hedges, spent.requests, spent.retries) == (1, 42, 0)


def test_second_requests_are_few_however_slow_all_are(network):
    client = RangeClient(network, 30)
    for _ in range(30):
        get(client)
    network.slow = dict.fromkeys(range(10_000), 0.15)
    for _ in range(20):
        get(client)
    spent = client.counts()
    assert 1 <= spent.hedges <= HEDGE_BURST + HEDGE_SHARE * spent.requests


def test_what_is_late_follows_what_was_seen():
    durations = Durations()
    unknown = durations.straggler_after(1 << 20)
    for number in range(100):
        durations.note(1 << 20, 0.2 + number * 1e-3)
        durations.note(1 << 23, 2.0)
    assert 0.29 < durations.straggler_after(1 << 20) < 1 < unknown <= 2 < durations.straggler_after(1 << 23)
    for _ in range(200):
        durations.note(1 << 20, 1.0)
    assert durations.straggler_after(1 << 20) > 1


def test_an_outage_is_sat_out_and_told_once(network, monkeypatch, caplog):
    monkeypatch.setattr("sage_scale.streaming.range_requests.LOG_AFTER_S", 0.2)
    network.down = True
    threading.Timer(0.8, lambda: setattr(network, "down", False)).start()
    client = RangeClient(network, 30)
    many = [client.submit("x", number, 10) for number in range(8)]
    client.wait(many, time.monotonic() + 30)
    assert all(request.data is not None for request in many) and client.counts().retries >= 8
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and "is away" in told[0] and "answers again" in told[1]


def test_nobody_waits_past_the_deadline_for_a_silent_server(network):
    client = RangeClient(network, 1.0)
    network.slow = dict.fromkeys(range(100), 60.0)
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"x .*does not answer; given up after 1 s"):
        get(client, seconds=1.0)
    assert time.monotonic() - began < 2


def test_a_crew_does_urgent_work_first_and_ends_when_idle(monkeypatch):
    monkeypatch.setattr("sage_scale.streaming.executor.IDLE_S", 0.2)
    executor, done, gate = PriorityExecutor(1, "test-executor"), [], threading.Event()
    executor.submit(gate.wait)
    for number in range(3):
        executor.submit(lambda number=number: done.append(("ahead", number)), PREFETCH)
    urgent = executor.submit(lambda: done.append("urgent"))
    gate.set()
    urgent.result(10)
    assert done[0] == "urgent"
    failing = executor.submit(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failing.result(10)
    time.sleep(0.5)
    assert not [thread for thread in threading.enumerate() if thread.name == "test-executor"]
    assert executor.submit(lambda: 7).result(10) == 7 and ("ahead", 2) in done
