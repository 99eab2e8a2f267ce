"""S3 as a store: lost answers, broken bodies, refusals, and what a person is told."""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest

from sage_scale.errors import StorageError
from sage_scale.storage import NotFound, Store, Unavailable, open_store

Behind = Callable[[object], "object"]
SECRETS = ("SKTESTSKTEST", "AKTEST")


@pytest.fixture(params=["s3", pytest.param("ceph", marks=pytest.mark.system)])
def bucket(request: pytest.FixtureRequest):
    return request.getfixturevalue(request.param)


def test_an_answer_lost_on_the_way_is_our_own_success(bucket, behind_proxy, tmp_path: Path) -> None:
    proxy = behind_proxy(bucket)
    store = open_store(bucket.url)
    (tmp_path / "big").write_bytes(b"z" * 3_000_000)
    for name, data in (("bytes", b"ours"), ("file", tmp_path / "big")):
        rule = proxy.add("lost_response", method="PUT", path=name)
        assert store.put_if_absent(name, data)
        assert rule.hits == 1
        assert sum(1 for method, path in proxy.seen if method == "PUT" and name in path) == 2
    assert store.get("bytes") == b"ours" and store.size("file") == 3_000_000


def test_a_lost_answer_does_not_claim_what_others_stored(bucket, behind_proxy) -> None:
    open_store(bucket.url).put("taken", b"theirs")
    proxy = behind_proxy(bucket)
    rule = proxy.add("lost_response", method="PUT")
    assert not open_store(bucket.url).put_if_absent("taken", b"theirs")
    assert rule.hits == 1


@pytest.mark.parametrize("action", ["truncate", "reset"])
def test_a_body_that_breaks_off_is_fetched_again(bucket, behind_proxy, action: str) -> None:
    data = bytes(range(256)) * 8000
    open_store(bucket.url).put("x", data)
    proxy = behind_proxy(bucket)
    store = open_store(bucket.url)
    rule = proxy.add(action, at=1_000_000, times=2)
    assert store.get("x") == data
    assert rule.hits == 2
    rule = proxy.add(action, at=100_000)
    assert store.get_range("x", 5, 1_000_000) == data[5:1_000_005]
    assert rule.hits == 1


def test_busy_servers_are_asked_again(bucket, behind_proxy) -> None:
    proxy = behind_proxy(bucket)
    store = open_store(bucket.url)
    rule = proxy.add("status", method="*", status=503, code="SlowDown", times=2)
    assert store.put_if_absent("x", b"1")
    assert rule.hits == 2


def test_an_upload_that_breaks_leaves_no_object(bucket, behind_proxy) -> None:
    proxy = behind_proxy(bucket)
    rule = proxy.add("reset", method="PUT", at=100_000)
    assert open_store(bucket.url).put_if_absent("x", b"a" * 2_000_000)
    assert rule.hits == 1
    assert open_store(bucket.url).size("x") == 2_000_000


@pytest.mark.system
def test_bytes_damaged_on_the_way_are_refused_by_the_server(ceph, behind_proxy) -> None:
    proxy = behind_proxy(ceph)
    rule = proxy.add("corrupt", method="PUT", at=1000)
    try:
        stored = open_store(ceph.url).put_if_absent("x", b"a" * 100_000)
    except StorageError:
        assert not open_store(ceph.url).exists("x")
    else:
        assert stored and open_store(ceph.url).get("x") == b"a" * 100_000
    assert rule.hits == 1


@pytest.mark.system
def test_listings_go_over_pages(s3) -> None:
    client = boto3.session.Session().client("s3")
    for number in range(1005):
        client.put_object(Bucket=s3.name, Key=f"data/{number:05d}", Body=b"")
    assert [entry.name for entry in open_store(s3.url).list()] == [f"{n:05d}" for n in range(1005)]


def _says(call: Callable[[], object], *patterns: str) -> None:
    with pytest.raises(StorageError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for pattern in patterns:
        assert re.search(pattern, message), message
    assert not any(secret in message for secret in SECRETS), message


def test_what_a_person_is_told(s3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _says(lambda: open_store("s3://no-such-bucket-here/x").get("a"), "no-such-bucket-here", "create it")
    _says(lambda: open_store("s3://no-such-bucket-here/x").put("a", b""), "no-such-bucket-here", "create it")
    with pytest.raises(NotFound, match="does not exist"):
        open_store(s3.url).get("a")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    _says(lambda: open_store(s3.url).get("a"), "AWS_PROFILE")
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    _says(lambda: open_store(s3.url).get("a"), "no S3 credentials", "AWS_ACCESS_KEY_ID")


def test_an_endpoint_nobody_listens_at(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sage_scale.storage.s3.ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://someone:SKTESTSKTEST@127.0.0.1:9")
    _says(lambda: open_store(s3.url).get("a"), "http://127.0.0.1:9", "cannot be reached", "AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    _says(lambda: open_store(s3.url).get("a"), "AWS_ENDPOINT_URL")


def test_a_wrong_place_is_wrong_usage_and_not_the_network(s3, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("s3://no-such-bucket-here/x", "s3://never a bucket!/x"):
        with pytest.raises(StorageError, match="bucket") as told:
            open_store(url).exists("a") or open_store(url).get("a")
        assert told.value.exit_code == 2 and "try again" not in str(told.value)
    monkeypatch.setattr("sage_scale.storage.s3.ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.server.endpoint.replace("http:", "https:"))
    _says(lambda: open_store(s3.url).get("a"), "no TLS connection", "AWS_ENDPOINT_URL", "http://")


def test_a_web_server_that_is_no_s3_server(tmp_path: Path, s3, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        _says(lambda: list(open_store(s3.url).list()), "AWS_ENDPOINT_URL")
        server.shutdown()


@pytest.mark.system
def test_a_wrong_secret_is_refused(ceph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "WRONGWRONG")
    _says(lambda: open_store(ceph.url).get("a"), "refuses", "AWS_SECRET_ACCESS_KEY")
    _says(lambda: open_store(ceph.url).put_if_absent("a", b""), "refuses")
    _says(lambda: list(open_store(ceph.url).list()), "refuses")


@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD"])
def test_a_single_attempt_store_asks_once_and_leaves_repeating_to_its_caller(
    s3, behind_proxy, method: str
) -> None:
    proxy = behind_proxy(s3)
    store: Store = open_store(s3.url)
    store.put("x", b"1")
    work = {
        "PUT": lambda some: some.put("x", b"1"),
        "GET": lambda some: some.get("x"),
        "HEAD": lambda some: some.exists("x"),
    }[method]
    trouble = proxy.add("status", times=1, method=method)
    with pytest.raises(Unavailable):
        work(store.single_attempt())
    assert trouble.hits == 1
    trouble = proxy.add("status", times=1, method=method)
    work(store)  # the ordinary one repeats
    assert trouble.hits == 1
    assert store.single_attempt().get("x") == b"1"


def test_a_server_that_is_silent_is_a_time_out(
    s3, behind_proxy, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sage_scale.storage.s3._logged", -1000.0)
    monkeypatch.setattr("sage_scale.storage.s3.ATTEMPTS", 2)
    monkeypatch.setattr("sage_scale.storage.s3.READ_TIMEOUT_S", 0.3)
    proxy = behind_proxy(s3)
    store: Store = open_store(s3.url)
    store.put("x", b"a" * 500_000)
    proxy.add("latency", seconds=1.5, times=10)
    start = time.monotonic()
    _says(lambda: store.get("x"), "does not answer")
    assert time.monotonic() - start < 5
    said = [record.getMessage() for record in caplog.records if record.name == "sage_scale.storage"]
    assert len(said) == 1 and "does not answer (1 of 2 attempts), asking again" in said[0]
    proxy.rules.clear()
    proxy.add("stall", at=200_000, seconds=1.0)
    assert store.get("x") == b"a" * 500_000
