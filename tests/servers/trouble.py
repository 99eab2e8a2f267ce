"""An S3 server that is seldom well: requests break at random, and the server itself dies and comes back.

The faults are such as an unlucky week brings: 503, refused and reset connections, bodies cut off, answers that never
arrive although the request was carried out, answers that take their time. Which come when follows from a seed.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from servers.ceph import Gateway, ceph_gateway
from servers.faults import FaultProxy, Rule, fault_proxy
from servers.moto import S3Server, moto_server

FAULTS: tuple[dict[str, Any], ...] = (
    {"action": "status", "method": "*"},
    {"action": "status", "method": "PUT", "status": 500, "code": "InternalError"},
    {"action": "refuse", "method": "*"},
    {"action": "reset", "method": "PUT", "at": 20_000},
    {"action": "reset", "method": "GET", "at": 100},
    {"action": "truncate", "method": "GET", "at": 100},
    {"action": "lost_response", "method": "PUT"},
    {"action": "lost_response", "method": "PUT", "path": r"\.tar"},
    {"action": "stall", "method": "PUT", "at": 10_000, "seconds": 1.0},
    {"action": "latency", "method": "*", "seconds": 0.7},
)
RESTART_SHARE = 0.08
"""Share of the moments of trouble at which the server itself dies instead."""


class Trouble:
    """The server's troubled life; use `some` for the time in which it is to have any."""

    def __init__(self, proxy: FaultProxy, server: S3Server, url: str, seed: int) -> None:
        self.proxy, self.server, self.url = proxy, server, url
        self._chance = random.Random(seed)
        # Kept until the end: the gateway dies with the thread that started it.
        self._thread = ThreadPoolExecutor(1)

    @contextlib.contextmanager
    def some(self, every_s: float = 0.6) -> Iterator[Counter[str]]:
        """Trouble about every `every_s` seconds; the counter tells at the end what struck, by action."""
        struck: Counter[str] = Counter()
        rules: list[Rule] = []
        well_again = threading.Event()

        def live() -> None:
            while not well_again.wait(self._chance.expovariate(1 / every_s)):
                # A fault that met no request passes, or a quiet minute would be followed by a hundred at once.
                self.proxy.rules.clear()
                if self._chance.random() < RESTART_SHARE:
                    self._restart(well_again.wait)
                    struck["restart"] += 1
                else:
                    rules.append(self.proxy.add(**self._chance.choice(FAULTS)))

        life = self._thread.submit(live)
        try:
            yield struck
        finally:
            well_again.set()
            life.result()
            self.proxy.rules.clear()
            for rule in rules:
                struck[rule.action] += rule.hits

    def _restart(self, wait: Callable[[float], bool]) -> None:
        away_s = self._chance.uniform(0.2, 2.0)
        if isinstance(self.server, Gateway):
            gateway = self.server.processes["rgw"]
            gateway.kill()
            gateway.wait()
            wait(away_s)
            self.server.start_gateway()
        else:  # it would forget everything
            away = self.proxy.add("refuse", method="*", times=10**9)
            wait(away_s)
            self.proxy.rules.remove(away)


@contextlib.contextmanager
def troubled_server(kind: str, seed: int) -> Iterator[Trouble]:
    """A `ceph` or `moto` server with a bucket behind a fault proxy; sets the AWS_* environment. Well at first."""
    before = dict(os.environ)
    with (
        ceph_gateway() if kind == "ceph" else moto_server() as server,
        fault_proxy(server.host, server.port) as proxy,
    ):
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            os.environ.pop(name, None)
        os.environ.update(server.environment(proxy.endpoint))
        import boto3

        boto3.session.Session().client("s3").create_bucket(Bucket="shards")
        try:
            yield Trouble(proxy, server, "s3://shards", seed)
        finally:
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(before)
