"""A store in an S3 bucket, through boto3.

Beyond a plain client: boto3 repeats a conditional PUT whose answer was lost and then meets its own object (412), so
every PUT carries a random `put-id` in the object's metadata, against which a 412 is checked; a body that breaks off is
fetched again; offset and length of a range are checked. S3 clients do not notice a flipped byte in a body: the
caller compares hashes (sage_scale.shards), and `download` compares the MD5 that every PUT records in the metadata.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator
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
from sage_scale.retry import backoff, retry
from sage_scale.storage.s3_errors import BUSY, MISSING, code_of, end_redirects, endpoint, explain, server
from sage_scale.storage.store import (
    MAX_OBJECT_BYTES,
    Buffer,
    Entry,
    NotFound,
    Store,
    T,
    check_name,
    is_name,
)
from sage_scale.untrusted.printer import logger

log = logger("sage_scale.storage")

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = float(os.environ.get("SAGE_SCALE_S3_READ_TIMEOUT_S", "60"))
ATTEMPTS = 6
SINGLE_CONNECT_TIMEOUT_S = 5
SINGLE_READ_TIMEOUT_S = 15
"""Silence after which a single attempt is given up."""
LOG_EVERY_S = 60.0
"""Least seconds between two log lines about repeated requests, from all clients of a process."""
_CONNECTIONS = 32
_PIECE_BYTES = 1 << 20
_SILENT = (boto.ConnectTimeoutError, boto.ReadTimeoutError)
"""Failures that take long enough to be logged; a refusal comes at once."""
_logged = -LOG_EVERY_S
_log_lock = threading.Lock()


class _Transient(Exception):
    """A failure that boto3 leaves to its caller: a body ended early or stalled, or two conditional PUTs clashed."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class S3Store(Store):
    """Objects of a bucket below a prefix."""

    def __init__(self, bucket: str, prefix: str = "", *, single_attempt: bool = False) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.url = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._single = single_attempt
        self._lock = threading.Lock()
        self._clients: dict[bool, Any] = {}
        self._process = os.getpid()

    def __reduce__(self) -> tuple:
        return functools.partial(S3Store, single_attempt=self._single), (self.bucket, self.prefix[:-1])

    @property
    def client(self) -> Any:
        """The boto3 client of this process; a forked child makes its own."""
        return self._client(self._single)

    def single_attempt(self) -> Store:
        return S3Store(self.bucket, self.prefix[:-1], single_attempt=True)

    def child(self, prefix: str) -> Store:
        return S3Store(self.bucket, self._key(prefix), single_attempt=self._single)

    def get(self, name: str) -> bytes:
        key = self._key(name)
        return self._call(name, lambda: _read(self.client.get_object(Bucket=self.bucket, Key=key)))

    def read(self, name: str, parse: Callable[[int, Iterator[Buffer]], T]) -> T:
        key = self._key(name)

        def fetch() -> T:
            answer = self.client.get_object(Bucket=self.bucket, Key=key)
            with contextlib.closing(_pieces(answer)) as pieces:
                return parse(answer["ContentLength"], pieces)

        return self._call(name, fetch)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self._key(name)
        if length == 0:
            return b""
        return self._call(name, lambda: _read(self._request(self.client, name, offset, length)))

    def try_range(
        self,
        name: str,
        offset: int,
        length: int,
        abandoned: Callable[[], bool] = lambda: False,
        into: memoryview | None = None,
    ) -> Buffer:
        self._key(name)
        if length == 0:
            return b""
        try:
            answer = self._request(self._client(single=True), name, offset, length)
            # A bytearray would be filled with zeros first.
            into = np.empty(length, np.uint8).data if into is None else into[:length]
            return _read_into(answer, into, abandoned)
        except _Transient as failure:
            raise self._explained(name, failure.error) from None
        except (boto.BotoCoreError, boto.ClientError) as error:
            raise self._explained(name, error, attempts=1) from None

    def md5(self, name: str) -> str:
        key = self._key(name)
        head = self._call(name, lambda: self.client.head_object(Bucket=self.bucket, Key=key))
        return head.get("Metadata", {}).get("md5", "")

    def download(self, name: str, path: Path) -> None:
        key = self._key(name)
        self._call(name, lambda: _save(self.client.get_object(Bucket=self.bucket, Key=key), path))

    def put_if_absent(self, name: str, data: bytes | Path) -> bool:
        token, key = secrets.token_hex(16), self._key(name)

        def store() -> bool:
            try:
                self._send(name, data, token, IfNoneMatch="*")
                return True
            except boto.ClientError as error:
                if code_of(error) not in ("PreconditionFailed", "412"):
                    raise
            # The name is taken: by another writer, or by our own PUT whose answer was lost.
            try:
                head = self.client.head_object(Bucket=self.bucket, Key=key)
            except boto.ClientError as error:
                if code_of(error) in MISSING:  # and free again: the object was deleted since
                    raise _Transient(error) from None
                raise
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

    def _request(self, client: Any, name: str, offset: int, length: int) -> dict[str, Any]:
        """Returns the answer to a ranged GET. Raises StorageError where it is another range or a shorter one."""
        span = f"bytes={offset}-{offset + length - 1}"
        answer = client.get_object(Bucket=self.bucket, Key=self._key(name), Range=span)
        if not answer.get("ContentRange", "").startswith(f"bytes {offset}-"):
            fault = ": the server ignores ranged reads; use a real S3 server"
        elif answer["ContentLength"] != length:
            fault = f" ends before byte {offset + length}: it was cut off or exchanged"
        else:
            return answer
        answer["Body"].close()
        raise StorageError(f"{self.url}/{name}{fault}")

    def _send(self, name: str, data: bytes | Path, token: str, **condition: str) -> None:
        """One PUT. The MD5 makes the server refuse bytes that were damaged on the way."""

        def send(body: Any, md5: bytes) -> None:
            self.client.put_object(
                Bucket=self.bucket,
                Key=self._key(name),
                Body=body,
                ContentMD5=base64.b64encode(md5).decode(),
                Metadata={"put-id": token, "md5": md5.hex()},
                **condition,
            )

        if not isinstance(data, Path):
            send(data, hashlib.md5(data).digest())
            return
        try:
            with open(data, "rb") as file:
                if os.fstat(file.fileno()).st_size > MAX_OBJECT_BYTES:
                    raise StorageError(
                        f"{data} is larger than 5 GiB, the most one PUT may carry: make smaller shards"
                    )
                md5 = hashlib.file_digest(file, "md5").digest()
                file.seek(0)
                send(file, md5)
        except FileNotFoundError:
            raise NotFound(f"{data} does not exist") from None

    def _call(self, name: str, work: Callable[[], Any]) -> Any:
        """Returns `work()`, repeated with backoff after a transient failure.

        boto3 itself repeats refused connections, time-outs and 5xx answers ("standard" retries).
        """
        attempts = 1 if self._single else ATTEMPTS

        def attempt() -> Any:
            try:
                return work()
            except boto.ClientError as error:
                if code_of(error) in BUSY:
                    raise _Transient(error) from None
                raise

        try:
            return retry(attempt, _Transient, itertools.islice(backoff(0.1, 5.0), attempts - 1))
        except _Transient as failure:
            raise self._explained(name, failure.error, attempts) from None
        except (boto.ClientError, boto.BotoCoreError, boto3.exceptions.Boto3Error) as error:
            raise self._explained(name, error, attempts) from None

    def _client(self, single: bool) -> Any:
        if (
            self._process != os.getpid()
        ):  # after a fork the connections, and perhaps the lock, are the parent's
            self._lock, self._clients, self._process = threading.Lock(), {}, os.getpid()
        with self._lock:
            if single not in self._clients:
                self._clients[single] = self._connect(single)
            return self._clients[single]

    def _connect(self, single: bool) -> Any:
        named = endpoint()
        config = Config(
            # max_attempts would count the repetitions alone.
            retries={"mode": "standard", "total_max_attempts": 1 if single else ATTEMPTS},
            connect_timeout=SINGLE_CONNECT_TIMEOUT_S if single else CONNECT_TIMEOUT_S,
            read_timeout=min(SINGLE_READ_TIMEOUT_S, READ_TIMEOUT_S) if single else READ_TIMEOUT_S,
            max_pool_connections=_CONNECTIONS,
            # Servers other than Amazon's know no bucket host names and stumble over trailing checksums.
            s3={"addressing_style": "path" if named else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            # boto3's default session is not thread-safe; the description of S3's operations is read once.
            core = botocore.session.Session()
            core.register_component("data_loader", _loader())
            session = boto3.session.Session(botocore_session=core)
            region = session.region_name or ("us-east-1" if named else None)
            client = session.client("s3", config=config, region_name=region)
            client.meta.events.register("before-call.s3", end_redirects)
            if not single:
                client.meta.events.register(
                    "needs-retry.s3", functools.partial(_log_retry, server(), ATTEMPTS)
                )
            return client
        except (boto.BotoCoreError, ValueError) as error:
            raise self._explained("", error) from None

    def _explained(self, name: str, error: Exception, attempts: int = ATTEMPTS) -> StorageError:
        return explain(f"{self.url}/{name}" if name else self.url, self.bucket, error, attempts)


@functools.cache
def _loader() -> Loader:
    return create_loader()


def _log_retry(where: str, most: int, caught_exception: Exception | None = None, **event: Any) -> None:
    """Warns that boto3 is going to repeat a request that got no answer, which it does in silence for minutes."""
    global _logged
    made = int(event.get("attempts", 0))
    if not isinstance(caught_exception, _SILENT) or made >= most:
        return
    with _log_lock:
        if time.monotonic() - _logged < LOG_EVERY_S:
            return
        _logged = time.monotonic()
    log.warning("%s does not answer (%d of %d attempts), asking again", where, made, most)


def _read(answer: dict[str, Any]) -> bytes:
    return b"".join(_pieces(answer))


def _save(answer: dict[str, Any], path: Path) -> None:
    """Writes the body to a file, and compares its MD5. OSErrors are the file's."""
    expected, digest = answer.get("Metadata", {}).get("md5"), hashlib.md5()
    with path.open("wb") as file:
        for piece in _pieces(answer):
            digest.update(piece)
            file.write(piece)
    if expected and digest.hexdigest() != expected:
        raise _Transient(
            boto.ChecksumError(
                checksum_type="md5", expected_checksum=expected, actual_checksum=digest.hexdigest()
            )
        )


def _pieces(answer: dict[str, Any]) -> Generator[bytes, None, None]:
    """Yields the body in pieces. Raises _Transient where it breaks off."""
    length, received = answer["ContentLength"], 0
    try:
        with answer["Body"] as stream:
            while piece := stream.read(_PIECE_BYTES):
                received += len(piece)
                yield piece
        if received != length:
            raise boto.IncompleteReadError(actual_bytes=received, expected_bytes=length)
    except (boto.BotoCoreError, HTTPError, HTTPException, OSError) as error:
        raise _Transient(error) from None


def _read_into(answer: dict[str, Any], into: memoryview, abandoned: Callable[[], bool]) -> memoryview:
    """Reads the body in pieces, so that an abandoned request that only trickles does not hold its thread."""
    filled = 0
    try:
        with answer["Body"] as stream:
            # http.client reads into memory without the copies of the layers above it.
            below = getattr(stream, "_fp", None)
            direct = below.readinto if isinstance(below, HTTPResponse) else None
            while filled < len(into) and not abandoned():
                piece = into[filled : filled + _PIECE_BYTES]
                if direct is None:
                    data = stream.read(len(piece))
                    piece[: len(data)] = data
                    size = len(data)
                else:
                    size = direct(piece)
                if not size:
                    break
                filled += size
            if filled != len(into):
                raise boto.IncompleteReadError(actual_bytes=filled, expected_bytes=len(into))
            stream.release_conn()
        return into
    except (boto.BotoCoreError, HTTPError, HTTPException, OSError) as error:
        raise _Transient(error) from None
