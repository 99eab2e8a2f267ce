"""A store in an S3 bucket, through boto3.

What a plain client gets wrong and this one does not: a conditional PUT whose answer was lost is repeated by
boto3 and then meets its own object (412), so every PUT carries a random `put-id` in the object's metadata
and a 412 is checked against it; a body that breaks off in the middle is fetched again; a range is checked
for its place and length. A flipped byte in a body is not noticed by S3 clients: hashes of what was stored
are the caller's business (sage_scale.shards).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import numpy as np
from botocore import exceptions as boto
from botocore.config import Config
from botocore.loaders import Loader, create_loader
from urllib3.exceptions import HTTPError

from sage_scale.errors import StorageError
from sage_scale.storage.interface import (
    MAX_OBJECT_BYTES,
    Buffer,
    Entry,
    NotFound,
    Store,
    check_name,
    is_name,
)
from sage_scale.storage.retry_logging import tell_of_retries
from sage_scale.storage.s3_errors import BUSY, code_of, end_redirects, endpoint, explain, server

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = float(os.environ.get("SAGE_SCALE_S3_READ_TIMEOUT_S", "60"))
ATTEMPTS = 6
TRY_CONNECT_TIMEOUT_S = 5
TRY_READ_TIMEOUT_S = 15
"""Silence after which a single attempt (`try_range`) is given up; its caller repeats it."""
_CONNECTIONS = 32
_PIECE_BYTES = 1 << 20


class _BodyBroke(Exception):
    """An answer's body ended early or stood still, which boto3 leaves to its caller."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class S3Store(Store):
    """Objects of a bucket below a prefix."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._lock = threading.Lock()
        self._clients: dict[bool, Any] = {}
        self._process = os.getpid()
        self._single_attempt = False

    @property
    def client(self) -> Any:
        """The boto3 client of this process; a forked child makes its own."""
        return self._client_that(tries_once=self._single_attempt)

    def single_attempt(self) -> Store:
        other = S3Store(self.bucket, self.prefix.removesuffix("/"))
        other._single_attempt = True
        return other

    def _client_that(self, *, tries_once: bool) -> Any:
        if (
            self._process != os.getpid()
        ):  # forked: connections are the parent's, and so may the lock's holder be
            self._lock, self._clients, self._process = threading.Lock(), {}, os.getpid()
        with self._lock:
            if tries_once not in self._clients:
                self._clients[tries_once] = self._connect(tries_once)
            return self._clients[tries_once]

    def get(self, name: str) -> bytes:
        key = self._key(name)

        def fetch() -> bytes:
            answer = self.client.get_object(Bucket=self.bucket, Key=key)
            return _body(answer, answer["ContentLength"])

        return self._call(name, fetch)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        key = self._key(name)
        if length == 0:
            return b""

        def fetch() -> bytes:
            return _body(self._ask_range(self.client, name, key, offset, length), length)

        return self._call(name, fetch)

    def try_range(
        self,
        name: str,
        offset: int,
        length: int,
        abandoned: Callable[[], bool] = lambda: False,
        room: memoryview | None = None,
    ) -> Buffer:
        key = self._key(name)
        if length == 0:
            return b""
        try:
            answer = self._ask_range(self._client_that(tries_once=True), name, key, offset, length)
            # A bytearray would be filled with zeros first.
            room = np.empty(length, np.uint8).data if room is None else room[:length]
            return _body_in_pieces(answer, room, abandoned)
        except _BodyBroke as broke:
            raise self._explain(name, broke.error) from None
        except (boto.BotoCoreError, boto.ClientError) as error:
            raise self._explain(name, error, attempts=1) from None

    def _ask_range(self, client: Any, name: str, key: str, offset: int, length: int) -> dict[str, Any]:
        span = f"bytes={offset}-{offset + length - 1}"
        answer = client.get_object(Bucket=self.bucket, Key=key, Range=span)
        if not answer.get("ContentRange", "").startswith(f"bytes {offset}-"):
            answer["Body"].close()
            raise StorageError(f"{self.url}/{name}: the server ignores ranged reads; use a real S3 server")
        if answer["ContentLength"] != length:
            answer["Body"].close()
            raise StorageError(
                f"{self.url}/{name} ends before byte {offset + length}: it was cut off or exchanged"
            )
        return answer

    def put_if_absent(self, name: str, data: bytes | Path) -> bool:
        token = secrets.token_hex(16)
        key = self._key(name)

        def store() -> bool:
            try:
                self._send(name, data, token, IfNoneMatch="*")
                return True
            except boto.ClientError as error:
                if code_of(error) not in ("PreconditionFailed", "412"):
                    raise
            # The name is taken: by somebody else, or by our own PUT whose answer never came.
            head = self.client.head_object(Bucket=self.bucket, Key=key)
            return head.get("Metadata", {}).get("put-id") == token

        return self._call(name, store)

    def put(self, name: str, data: bytes | Path) -> None:
        self._key(name)
        self._call(name, lambda: self._send(name, data, secrets.token_hex(16)))

    def size(self, name: str) -> int:
        key = self._key(name)
        return self._call(name, lambda: self.client.head_object(Bucket=self.bucket, Key=key)["ContentLength"])

    def list(self, prefix: str = "") -> Iterator[Entry]:
        token: dict[str, str] = {}

        def fetch() -> dict[str, Any]:
            return self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix + prefix, **token)

        while True:
            page = self._call(prefix, fetch)
            for item in page.get("Contents", ()):
                name = item["Key"][len(self.prefix) :]
                if is_name(name):
                    yield Entry(name, item["Size"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, name: str) -> None:
        key = self._key(name)
        self._call(name, lambda: self.client.delete_object(Bucket=self.bucket, Key=key))

    def _key(self, name: str) -> str:
        return self.prefix + check_name(name)

    def _send(self, name: str, data: bytes | Path, token: str, **condition: str) -> None:
        """One PUT. The MD5 makes the server refuse bytes that were damaged on the way."""
        if not isinstance(data, Path):
            self._put_object(name, data, hashlib.md5(data).digest(), token, condition)
            return
        try:
            with open(data, "rb") as file:
                if os.fstat(file.fileno()).st_size > MAX_OBJECT_BYTES:
                    raise StorageError(
                        f"{data} is larger than 5 GiB, the most one PUT may carry: make smaller shards"
                    )
                md5 = hashlib.file_digest(file, "md5").digest()
                file.seek(0)
                self._put_object(name, file, md5, token, condition)
        except FileNotFoundError:
            raise NotFound(f"{data} does not exist") from None

    def _put_object(self, name: str, body: Any, md5: bytes, token: str, condition: dict[str, str]) -> None:
        self.client.put_object(
            Bucket=self.bucket,
            Key=self._key(name),
            Body=body,
            ContentMD5=base64.b64encode(md5).decode(),
            Metadata={"put-id": token},
            **condition,
        )

    def _call(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the work; a body that broke off, or a clash of conditional PUTs, is tried again with backoff.

        Refused connections, time-outs and 5xx answers are repeated inside boto3 already ("standard" retries).
        """
        attempts = 1 if self._single_attempt else ATTEMPTS
        for attempt in range(attempts):
            try:
                return work()
            except _BodyBroke as broke:
                if attempt == attempts - 1:
                    raise self._explain(name, broke.error, attempts) from None
            except boto.ClientError as error:
                if attempt == attempts - 1 or code_of(error) not in BUSY:
                    raise self._explain(name, error, attempts) from None
            except (boto.BotoCoreError, boto3.exceptions.Boto3Error) as error:
                raise self._explain(name, error, attempts) from None
            time.sleep(min(5.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0))
        raise AssertionError("the last attempt returns or raises")

    def _connect(self, tries_once: bool) -> Any:
        named = endpoint()
        config = Config(
            # max_attempts would count the repetitions alone.
            retries={"mode": "standard", "total_max_attempts": 1 if tries_once else ATTEMPTS},
            connect_timeout=TRY_CONNECT_TIMEOUT_S if tries_once else CONNECT_TIMEOUT_S,
            read_timeout=min(TRY_READ_TIMEOUT_S, READ_TIMEOUT_S) if tries_once else READ_TIMEOUT_S,
            max_pool_connections=_CONNECTIONS,
            # Other servers than Amazon's know no bucket host names and stumble over trailing checksums.
            s3={"addressing_style": "path" if named else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            # A session of its own (the default one is not safe between threads); what S3's operations are is read once.
            core = botocore.session.Session()
            core.register_component("data_loader", _models())
            session = boto3.session.Session(botocore_session=core)
            region = session.region_name or ("us-east-1" if named else None)
            client = session.client("s3", config=config, region_name=region)
            client.meta.events.register("before-call.s3", end_redirects)
            if not tries_once:
                tell_of_retries(client, server(), ATTEMPTS)
            return client
        except (boto.BotoCoreError, ValueError) as error:
            raise self._explain("", error) from None

    def _explain(self, name: str, error: Exception, attempts: int = ATTEMPTS) -> StorageError:
        return explain(f"{self.url}/{name}" if name else self.url, self.bucket, error, attempts)


@functools.cache
def _models() -> Loader:
    return create_loader()


def _body(answer: dict[str, Any], length: int) -> bytes:
    try:
        with answer["Body"] as stream:
            data = stream.read()
        if len(data) != length:
            raise boto.IncompleteReadError(actual_bytes=len(data), expected_bytes=length)
        return data
    except (boto.BotoCoreError, HTTPError, OSError) as error:
        raise _BodyBroke(error) from None


def _body_in_pieces(answer: dict[str, Any], room: memoryview, abandoned: Callable[[], bool]) -> memoryview:
    """The body, unless somebody else was faster meanwhile: one that only trickles must not hold its thread."""
    place = 0
    try:
        with answer["Body"] as stream:
            read_into = _reader(stream)
            while place < len(room) and not abandoned():
                size = read_into(room[place : place + _PIECE_BYTES])
                if not size:
                    break
                place += size
            if place != len(room):
                raise boto.IncompleteReadError(actual_bytes=place, expected_bytes=len(room))
            stream.release_conn()
        return room
    except (boto.BotoCoreError, HTTPError, HTTPException, OSError) as error:
        raise _BodyBroke(error) from None


def _reader(stream: Any) -> Callable[[memoryview], int]:
    """How to read a body into memory, without the copies of the layers above http.client where that can be."""
    below = getattr(stream, "_fp", None)
    if isinstance(below, HTTPResponse):
        return below.readinto

    def read_into(room: memoryview) -> int:
        piece = stream.read(len(room))
        room[: len(piece)] = piece
        return len(piece)

    return read_into
