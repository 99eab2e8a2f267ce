"""The HTTP endpoint of a stage on each host, `watch.http_port`: `/healthz`, `/readyz` and `/metrics`.

It runs in the monitor of each host's first rank, so it answers while the rank loads, computes or hangs; in a process
without a monitor, in a thread. It is fed by the messages of rank_status.py. It listens on all addresses, since
probes of Kubernetes and Prometheus come from outside the pod, and answers GET and HEAD without authentication: with
numbers, never with names, paths or settings of the run.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any

from sage_scale.errors import UsageError

METRICS = {
    "step": "Steps done.",
    "total_steps": "Steps of the stage.",
    "loss": "Loss of the last step's global batch.",
    "samples_per_second": "Clips a second of the last step, over all ranks.",
    "data_wait_share": "Share of the last step's time that rank 0 waited for data, 0 to 1.",
    "save_seconds": "Time of the last checkpoint from its begin until it was complete.",
    "save_blocked_seconds": "Part of save_seconds in which training stood still.",
    "ready": "1 once all ranks have done a step together, else 0.",
    "last_step_timestamp_seconds": "Unix time of the last step.",
}
"""Gauges, with the prefix `sage_scale_` and the labels `stage` and `rank`; before it is known a figure is absent. Only
rank 0 has all of them."""
COUNTERS = {
    "saves": "Complete checkpoints since the process began.",
    "restarts": "Starts of the stage before this one.",
}
MOST_REQUESTS = 8
"""Requests answered at a time; others are closed, so that no client can exhaust the process."""
LONGEST_REQUEST_S = 10.0
POLL_S = 0.1
"""Seconds between two looks for requests that last too long, and for the end."""


class StatusServer:
    """Answers until `close`."""

    def __init__(self, port: int, stage: str, rank: int) -> None:
        """Listen on `port`. Raises UsageError where it is taken or may not be used, or without Prometheus' client."""
        if importlib.util.find_spec("prometheus_client") is None:
            raise UsageError("watch.http_port needs the package prometheus-client: install it, or set 0")
        self.stage, self.rank = stage, rank
        self.figures: dict[str, float] = {"ready": 0}
        self._server = _Server(port, self)
        serve = self._server.serve_forever
        threading.Thread(target=serve, args=(POLL_S,), name="status endpoint", daemon=True).start()

    @property
    def port(self) -> int:
        """Returns the port."""
        return int(self._server.server_address[1])

    @property
    def ready(self) -> bool:
        """Returns whether all ranks have done a step together."""
        return self.figures["ready"] > 0

    def receive(self, message: dict[str, Any]) -> None:
        """Take a message of rank_status.py."""
        if "figures" in message:
            stepped = (
                {"ready": 1, "last_step_timestamp_seconds": time.time()}
                if "step" in message["figures"]
                else {}
            )
            self.figures = {**self.figures, **message["figures"], **stepped}

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Returns content type and text in Prometheus' format, or in OpenMetrics where `accept` prefers it."""
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import choose_encoder

        registry = CollectorRegistry()
        registry.register(_Collector(self))  # type: ignore[arg-type]
        encode, content_type = choose_encoder(accept)
        return content_type, encode(registry)

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()


class _Collector:
    """Gives Prometheus' client the figures of a moment."""

    def __init__(self, status: StatusServer) -> None:
        self._labels = {"stage": status.stage, "rank": str(status.rank)}
        self._figures = status.figures

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for kind, known in ((GaugeMetricFamily, METRICS), (CounterMetricFamily, COUNTERS)):
            for name, text in known.items():
                if name in self._figures:
                    family = kind(f"sage_scale_{name}", text, labels=list(self._labels))
                    family.add_metric(list(self._labels.values()), self._figures[name])
                    yield family


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True

    def __init__(self, port: int, status: StatusServer) -> None:
        super().__init__(("", port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.status = status
        self.socket = _listen(port)
        self.server_address = self.socket.getsockname()
        self._open: dict[socket.socket, float] = {}

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._open) >= MOST_REQUESTS:
            self.shutdown_request(request)
            return
        self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self._open.pop(request, None)

    def service_actions(self) -> None:
        """End requests that last too long (called every POLL_S): their clients hold them open."""
        for request, since in list(self._open.items()):
            if time.monotonic() - since > LONGEST_REQUEST_S:
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0

    def do_GET(self) -> None:
        status = self.server.status
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._answer(HTTPStatus.OK, b"ok\n")
        elif path == "/readyz":
            code = HTTPStatus.OK if status.ready else HTTPStatus.SERVICE_UNAVAILABLE
            self._answer(code, b"ready\n" if status.ready else b"no step is done yet\n")
        elif path == "/metrics":
            content_type, text = status.metrics(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, text, content_type)
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"/healthz, /readyz or /metrics\n")

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a wrong request without repeating any of it."""
        self.close_connection = True
        self._answer(HTTPStatus(code), b"")

    def _answer(self, code: HTTPStatus, text: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def version_string(self) -> str:
        return "sage-scale"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Probes of every second are not logged."""


def _listen(port: int) -> socket.socket:
    """Returns a listening socket on all addresses, of IPv6 as well where the machine has it."""
    both = {"family": socket.AF_INET6, "dualstack_ipv6": True}
    for options in [both, {}] if socket.has_dualstack_ipv6() else [{}]:
        try:
            return socket.create_server(("", port), **options)  # type: ignore[arg-type]
        except OSError as error:
            failure = error
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                break
    why = "is in use" if failure.errno == errno.EADDRINUSE else f"cannot be used ({failure.strerror})"
    raise UsageError(
        f"watch.http_port={port} {why} on {socket.gethostname()}: choose another port, or 0 for no endpoint"
    )
