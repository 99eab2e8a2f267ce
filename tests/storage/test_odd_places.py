"""Servers that redirect, files that are none and names of any script: read as they are, or refused in one line."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sage_scale.errors import DatasetError, StorageError, UsageError
from sage_scale.shards.webdataset_index import index_webdataset
from sage_scale.storage import Store, open_store

MOVED = b"<?xml version='1.0'?><Error><Code>PermanentRedirect</Code><Endpoint>elsewhere</Endpoint></Error>"
ANSWERS = {
    "301": (301, {}, MOVED),
    "301 of a proxy": (301, {"Location": "http://u:hunter2@127.0.0.1:9/x"}, b"<html>moved</html>"),
    "301 without a word": (301, {}, b""),
    "301 with a region": (301, {"x-amz-bucket-region": "eu-west-9"}, MOVED),
    "302": (302, {"Location": "/login"}, b""),
    "307": (307, {}, b""),
}


@pytest.fixture(params=ANSWERS)
def moved(request, monkeypatch) -> Iterator[tuple[Store, list[str]]]:
    code, headers, body = ANSWERS[request.param]
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(self.command)
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = answer

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in (("ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}"), ("REGION", "us-east-1"),
                        ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    yield open_store("s3://bucket/p"), asked
    server.shutdown()
    server.server_close()


def test_a_server_that_redirects_is_one_line_about_region_and_proxy(moved) -> None:
    store, asked = moved
    for work in (
        lambda: store.get("x"),
        lambda: store.get_range("x", 0, 4),
        lambda: store.try_range("x", 0, 4),
        lambda: store.put("x", b"1"),
        lambda: store.put_if_absent("x", b"1"),
        lambda: store.size("x"),
        lambda: list(store.list()),
        lambda: store.delete("x"),
    ):
        asked.clear()
        with pytest.raises(StorageError, match=r"redirect: set AWS_REGION .* proxy") as refused:
            work()
        assert len(asked) < 8 and "hunter2" not in str(refused.value)


@pytest.mark.timeout(20)
def test_only_regular_files_of_a_folder_are_read(tmp_path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    store = open_store(tmp_path)
    for name in ("fifo", "zero"):
        for read in (lambda: store.get(name), lambda: store.get_range(name, 0, 4)):  # noqa: B023
            with pytest.raises(StorageError, match="not a regular file"):
                read()


@pytest.mark.parametrize("name", ["ünï", "日本", "a b?c", "👩\u200d🔬", "x[1]*"])
def test_names_of_any_script_are_read_back(tmp_path, name, s3) -> None:
    for store in (open_store(tmp_path / name), open_store(f"{s3.url}/{name.replace('?', '')}")):
        store.put(f"{name}/x", b"1")
        assert store.get(f"{name}/x") == store.get_range(f"{name}/x", 0, 1) == b"1"
        assert [entry.name for entry in store.list()] == [f"{name}/x"]


@pytest.mark.parametrize("url", ["a\udcff", "s3://bucket/\udcff", "file:///a%FF", "a\0b", "s3://b/\0"])
def test_a_place_that_is_no_text_is_refused(url) -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        open_store(url)


def test_a_tar_whose_name_is_no_text_is_named(tmp_path) -> None:
    (tmp_path / os.fsdecode(b"a\xff.tar")).write_bytes(bytes(1024))
    with pytest.raises(DatasetError, match=r"a.udcff\.tar.*not UTF-8") as refused:
        index_webdataset(open_store(tmp_path))
    str(refused.value).encode()


@pytest.mark.parametrize("place", ["~", "~/shards", "~no-such-user/shards"])
def test_without_a_home_no_folder_of_that_sign_is_made(place, monkeypatch) -> None:
    """A container's user may have neither HOME nor an entry in /etc/passwd."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])
    with pytest.raises(UsageError, match=r"HOME is not set|no user of that name"):
        open_store(place)
