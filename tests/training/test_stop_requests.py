"""Notices that a machine goes away, from servers that answer as the clouds' metadata services are documented to."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sage_scale.training.monitor import stop_requests


class _Quiet(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, code, text=""):
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Google(_Quiet):
    """Refuses who does not send `Metadata-Flavor: Google`, as the service does against forged requests."""

    def do_GET(self):
        if self.headers.get("Metadata-Flavor") != "Google":
            return self.answer(403, "Missing required header")
        if self.path == "/computeMetadata/v1/instance/preempted":
            return self.answer(200, self.server.preempted)
        return self.answer(404)


class Amazon(_Quiet):
    """Version 2 of the instance metadata service: a token by PUT, without which everything is a 401."""

    def do_PUT(self):
        if self.path != "/latest/api/token" or not self.headers.get("X-aws-ec2-metadata-token-ttl-seconds"):
            return self.answer(400)
        self.server.tokens.append(f"token-{len(self.server.tokens)}")
        return self.answer(200, self.server.tokens[-1])

    def do_GET(self):
        if self.headers.get("X-aws-ec2-metadata-token") != self.server.tokens[-1]:
            return self.answer(401)
        if self.path == "/latest/meta-data/instance-id":
            return self.answer(200, "i-0123456789abcdef0")
        if self.path == "/latest/meta-data/spot/instance-action" and self.server.action:
            return self.answer(200, self.server.action)
        return self.answer(404)


@pytest.fixture
def serve(monkeypatch):
    servers = []

    def start(handler, **state):
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        vars(server).update(state)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        address = f"127.0.0.1:{server.server_port}"
        if handler is Google:
            monkeypatch.setenv(stop_requests.GOOGLE_HOST, address)
        else:
            monkeypatch.setenv(stop_requests.AWS_ENDPOINT, f"http://{address}")
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def nobody_there(monkeypatch):
    """Ports at which nobody listens, so that no test asks the machine it runs on."""
    monkeypatch.setenv(stop_requests.GOOGLE_HOST, "127.0.0.1:9")
    monkeypatch.setenv(stop_requests.AWS_ENDPOINT, "http://127.0.0.1:9")


@pytest.mark.parametrize("source", ["gcp", "auto"])
def test_google_preempts(source, serve):
    server = serve(Google, preempted="FALSE\n")
    ask = stop_requests.notice_source(source)
    assert ask is not None and ask() == ""
    server.preempted = "TRUE\n"
    assert "Google Cloud preempts" in ask()


@pytest.mark.parametrize("source", ["aws", "auto"])
def test_aws_takes_an_instance_back_and_a_token_that_ran_out_is_renewed(source, serve):
    server = serve(Amazon, tokens=["none"], action="")
    ask = stop_requests.notice_source(source)
    assert ask is not None and ask() == ""
    server.tokens.append("another")  # the service no longer knows ours
    assert ask() == ""
    server.action = '{"action": "terminate",\n "time": "2026-11-22T12:00:00Z"}'
    assert "takes this spot instance back" in ask() and "terminate" in ask()


def test_a_machine_of_neither_is_not_asked_again():
    assert stop_requests.notice_source("auto") is None
    assert stop_requests.notice_source("none") is None


def test_a_service_that_falls_silent_is_no_notice_and_is_asked_on(serve):
    told, until = [], threading.Event()
    thread = stop_requests.watch_for_notice("gcp", 0.01, told.append, until)
    server = serve(Google, preempted="TRUE")  # nobody answered before
    thread.join(10)
    assert not thread.is_alive() and len(told) == 1 and "preempts" in told[0]
    assert server.preempted == "TRUE"


def test_a_file_is_a_notice_once_it_is_there(tmp_path):
    ask = stop_requests.notice_source(str(tmp_path / "going"))
    assert ask is not None and ask() == ""
    (tmp_path / "going").touch()
    assert "going" in ask()
