"""The endpoint of a stage: read by Prometheus' own parser, over real sockets, by clients that mean no good, too."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from factories.processes import wait_until
from factories.ranks import environment_of, free_port
from factories.training import log_rows, make_language_folder, make_shards, tiny_recipe
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from sage_scale.config import LAUNCH_FOLDER, load_recipe, override, to_yaml
from sage_scale.errors import RecipeError, UsageError
from sage_scale.training.monitor import rank_status, status_server
from sage_scale.training.monitor.status_server import COUNTERS, METRICS, StatusServer
from sage_scale.training.stage import run_stage


@pytest.fixture
def server():
    served = StatusServer(0, "pretrain", 3)
    yield served
    served.close()


def get(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


def scraped(port: int) -> dict[str, float]:
    """The samples by Prometheus' parser, each with the labels of stage and rank alone."""
    families = text_string_to_metric_families(get(port, "/metrics")[1])
    samples = [sample for family in families for sample in family.samples]
    assert all(set(sample.labels) == {"stage", "rank"} for sample in samples)
    return {sample.name.removeprefix("sage_scale_"): sample.value for sample in samples}


def test_ready_once_a_step_is_done_by_all(server):
    assert get(server.port, "/healthz")[:2] == (200, "ok\n")
    assert get(server.port, "/readyz")[0] == 503 and scraped(server.port) == {"ready": 0}
    server.receive({"phase": "loading the data and the model"})
    server.receive({"figures": {"saves": 1}})
    assert get(server.port, "/readyz")[0] == 503
    server.receive({"figures": {"step": 1, "loss": 2.5}})
    assert get(server.port, "/readyz?verbose=1")[:2] == (200, "ready\n")
    found = scraped(server.port)
    assert abs(found.pop("last_step_timestamp_seconds") - time.time()) < 60
    assert found == {"ready": 1, "step": 1, "loss": 2.5, "saves_total": 1}


numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 10**9).map(float)
drawn = st.fixed_dictionaries({}, optional=dict.fromkeys(METRICS, numbers) | dict.fromkeys(COUNTERS, counts))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(figures=drawn)
def test_what_was_reported_is_read_back_by_both_parsers(server, figures):
    server.figures = {"ready": 0}
    server.receive({"figures": figures})
    now = server.figures
    assert scraped(server.port) == {f"{n}_total" if n in COUNTERS else n: now[n] for n in now}
    _, text, headers = get(server.port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert {family.name for family in read_openmetrics(text)} == {f"sage_scale_{name}" for name in now}


@pytest.mark.parametrize(
    ("path", "method", "code"),
    [
        ("/", "GET", 404),
        ("/metrics/../etc/passwd", "GET", 404),
        ("/metrics", "POST", 501),
        ("/x", "HEAD", 404),
    ],
)
def test_everything_else_is_refused_without_a_word_of_it(server, path, method, code):
    status, text, headers = get(server.port, path, method)
    assert status == code and "passwd" not in text and headers["Server"] == "sage-scale"
    assert not any("Python" in value for value in headers.values())


def test_head_has_the_headers_alone(server):
    status, text, headers = get(server.port, "/metrics", "HEAD")
    assert (status, text) == (200, "") and int(headers["Content-Length"]) > 0


def test_clients_that_hold_on_do_not_shut_out_a_probe(server, monkeypatch):
    monkeypatch.setattr(status_server, "LONGEST_REQUEST_S", 0.3)
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    for client in slow[::2]:
        client.sendall(b"GET /healthz HT")

    def answered() -> bool:
        try:
            return get(server.port, "/healthz")[0] == 200
        except OSError:
            return False

    assert wait_until(answered, 20)
    assert sum(thread.name.startswith("Thread-") for thread in threading.enumerate()) <= 60
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        assert b"no HTTP" not in client.recv(4096)
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /" + b"a" * 70_000 + b" HTTP/1.0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.0 414")
    for client in slow:
        client.close()


def test_addresses_and_ports(server):
    """All addresses, IPv6 among them where there is one; a port in use and a privileged one are one line each."""
    if socket.has_dualstack_ipv6():
        with socket.create_connection(("::1", server.port), timeout=5):
            pass
    line = rf"^watch\.http_port={server.port} is in use on \S+: choose another port, or 0 for no endpoint$"
    with pytest.raises(UsageError, match=line):
        StatusServer(server.port, "pretrain", 0)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(UsageError, match="is in use"):
        StatusServer(other.getsockname()[1], "pretrain", 0)
    server.close()
    again = StatusServer(server.port, "pretrain", 0)  # at once, in spite of TIME_WAIT
    again.close()


def test_the_port_is_a_port():
    with pytest.raises(RecipeError, match=r"watch\.http_port=70000 must be between 0 and 65535"):
        load_recipe("demo", ["watch.http_port=70000"])


def test_figures_that_are_no_numbers_are_absent(monkeypatch):
    sent: list[dict] = []
    rank_status.listen(sent.append)
    rank_status.report(loss=math.nan, step=1, samples_per_second=math.inf, save_seconds=None)
    rank_status.listen(None)
    rank_status.report(step=2)
    assert sent == [{"figures": {"step": 1}}]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("served")
    language = make_language_folder(root / "language")
    recipe = tiny_recipe(
        "features", f"model.language_model={language}", "pretrain.max_steps=4", "pretrain.save_every=2"
    )
    return recipe, make_shards(root / "shards", recipe, [("train", 24), ("dev", 4)])


def test_a_stage_without_monitor_serves_what_it_logs_and_frees_the_port(world, tmp_path, monkeypatch, capsys):
    recipe, data = world
    port = free_port()
    recipe = override(recipe, [f"watch.http_port={port}"])
    seen: list[dict[str, float]] = []
    end = rank_status.step_done

    def scrape(step: int) -> None:
        end(step)
        seen.append(scraped(port))

    monkeypatch.setattr(rank_status, "step_done", scrape)
    monkeypatch.setenv("SAGE_LOG", "json")
    for _ in range(2):
        run_stage(
            "pretrain", override(recipe, [f"pretrain.max_steps={4 + len(seen)}"]), tmp_path / "run", data
        )
    rows = log_rows(tmp_path / "run", event="step")
    assert [found.get("step") for found in seen] == [None, 1, 2, 3, None, 5, 6, 7]
    assert [found["ready"] for found in seen] == [0, 1, 1, 1] * 2
    for found in seen:
        if "step" in found:
            row = rows[int(found["step"]) - 1]
            assert found["loss"] == pytest.approx(row["loss"], abs=1e-5)
            assert found["samples_per_second"] == pytest.approx(row["samples_per_s"], rel=1e-4)
            assert 0 <= found["data_wait_share"] <= 1
            assert found["restarts_total"] == (found["step"] > 4)
    with pytest.raises(OSError):
        get(port, "/healthz")
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    logged = log_rows(tmp_path / "run")
    assert [{k: v for k, v in row.items() if k not in ("time", "stage")} for row in printed] == logged
    assert all(row["stage"] == "pretrain" and re.match(r"\d{4}-\d\d-\d\dT", row["time"]) for row in printed)


def test_a_port_in_use_and_an_unknown_log_format_end_a_stage_before_it_begins(
    world, server, tmp_path, monkeypatch
):
    recipe, data = world
    with pytest.raises(UsageError, match="is in use"):
        run_stage("pretrain", override(recipe, [f"watch.http_port={server.port}"]), tmp_path / "run", data)
    monkeypatch.setenv("SAGE_LOG", "yaml")
    with pytest.raises(UsageError, match="SAGE_LOG=yaml is unknown: json, or leave it unset"):
        run_stage("pretrain", recipe, tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


@pytest.mark.system
def test_monitors_of_two_ranks_serve_one_endpoint_a_host(world, server, tmp_path):
    """The monitor answers from the start, also while its rank is stopped; a port in use ends the run with 2."""
    made, data = world

    def start(port: int) -> list[subprocess.Popen]:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(to_yaml(override(made, [f"watch.http_port={port}", "pretrain.max_steps=0"])))
        words = [
            "--run",
            str(tmp_path / "run"),
            "--data",
            data,
            "--recipe",
            str(recipe),
            "pretrain.epochs=1000",
        ]
        script, master = [sys.executable, str(LAUNCH_FOLDER / "pretrain.py")], free_port()
        return [
            subprocess.Popen(
                [*script, *words],
                env=os.environ | environment_of(rank, 2, master),
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]

    refused = start(server.port)
    said = [rank.communicate(timeout=200)[1] for rank in refused]
    assert [rank.returncode for rank in refused] == [2, 2]
    assert "".join(said).count(f"watch.http_port={server.port} is in use") == 1
    port = free_port()
    ranks = start(port)
    try:

        def state(path: str) -> int:
            try:
                return get(port, path)[0]
            except OSError:
                return 0

        assert wait_until(lambda: state("/healthz") == 200, 100)
        assert state("/readyz") == 503
        assert wait_until(lambda: state("/readyz") == 200, 200)
        found = scraped(port)
        assert found["step"] >= 1 and {"loss", "data_wait_share", "restarts_total"} <= found.keys()
    finally:
        for rank in ranks:
            rank.terminate()
        for rank in ranks:
            rank.communicate(timeout=100)
    assert [rank.returncode for rank in ranks] == [130, 130] and state("/healthz") == 0
