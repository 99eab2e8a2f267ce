"""moto's S3 server in a process of its own: no root needed, honours conditional PUT, accepts any signature."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from factories.ranks import free_port


@dataclass
class S3Server:
    """Where a test server listens, and the credentials it knows."""

    host: str
    port: int
    access_key: str = "AKTEST"
    secret_key: str = "SKTESTSKTEST"

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The AWS_* variables that make a client (ours or boto3's) talk to this server."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@dataclass(frozen=True)
class Bucket:
    """A fresh bucket of a running server."""

    server: S3Server
    name: str
    url: str


def new_bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Makes a bucket, and sets the AWS_* environment of its server."""
    import boto3

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    name = f"b-{uuid.uuid4().hex[:12]}"
    boto3.session.Session().client("s3").create_bucket(Bucket=name)
    return Bucket(server, name, f"s3://{name}/data")


@contextlib.contextmanager
def moto_server() -> Iterator[S3Server]:
    """A running moto server; it ends with the context."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{port}/moto-api/", process)
        yield S3Server("127.0.0.1", port)
    finally:
        process.kill()
        process.wait()


def _wait(url: str, process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode} before it answered")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.05)
    raise TimeoutError(url)
