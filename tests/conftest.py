"""Fixtures that several packages share: real S3 servers and the proxy that breaks requests.

`s3` gives a fresh bucket on moto's server, `ceph` one on a real Ceph gateway (skipped where it is not installed); both
set the AWS_* environment, so that `open_store(bucket.url)` reaches it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from servers.ceph import ceph_gateway, missing_programs
from servers.faults import FaultProxy, fault_proxy
from servers.moto import Bucket, S3Server, moto_server, new_bucket

settings.register_profile("without deadlines", settings.default, deadline=None)
settings.load_profile("without deadlines")  # a busy machine is no fault


@pytest.fixture(autouse=True)
def no_fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test in which the command line, here or in a child whose output is read, calls an error its own fault."""
    from sage_scale.cli import main

    faults: list[str] = []
    message, communicate = main.message, subprocess.Popen.communicate

    def heard_message(error: Exception) -> str:
        line = message(error)
        faults.extend([line] if main.ADVICE in line else [])
        return line

    def heard_communicate(child: subprocess.Popen, *given: Any, **named: Any) -> tuple[Any, Any]:
        printed = communicate(child, *given, **named)
        for part in printed:
            text = part.decode(errors="replace") if isinstance(part, bytes) else part or ""
            faults.extend(line for line in text.splitlines() if main.ADVICE in line)
        return printed

    monkeypatch.setattr(main, "message", heard_message)
    monkeypatch.setattr(subprocess.Popen, "communicate", heard_communicate)
    yield
    if faults and request.node.get_closest_marker("fault") is None:
        pytest.fail(f"a fault of sage-scale was printed: {faults[0]}", pytrace=False)


@pytest.fixture(scope="session")
def moto_s3() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def ceph_s3() -> Iterator[S3Server]:
    missing = missing_programs()
    if missing:
        pytest.skip(
            f"no Ceph gateway: {', '.join(missing)} not installed (Debian: radosgw ceph-mon ceph-osd)"
        )
    with ceph_gateway() as server:
        yield server


@pytest.fixture
def s3(moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A fresh bucket on moto."""
    return new_bucket(moto_s3, monkeypatch)


@pytest.fixture
def ceph(ceph_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A fresh bucket on a Ceph gateway."""
    return new_bucket(ceph_s3, monkeypatch)


@pytest.fixture
def behind_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Bucket], FaultProxy]]:
    """Puts a fault proxy between the stores that the test opens from then on and the bucket's server."""
    running = []

    def put(bucket: Bucket) -> FaultProxy:
        context = fault_proxy(bucket.server.host, bucket.server.port)
        proxy = context.__enter__()
        running.append(context)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        return proxy

    yield put
    for context in running:
        context.__exit__(None, None, None)
