"""What S3 and the way to it answer, as one line for a person: what, where, what to do."""

from __future__ import annotations

import os
import re
import threading
from typing import Any
from urllib.parse import urlsplit

from botocore import exceptions as boto
from urllib3.exceptions import ReadTimeoutError

from sage_scale.errors import StorageError
from sage_scale.storage.interface import NoBucket, NotFound, Unavailable

_REFUSED = (
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "403",
    "UserSuspended",
)
_PASSING = (
    "SlowDown",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "RequestLimitExceeded",
    "429",
)
_MOVED = (
    "301",
    "302",
    "307",
    "308",
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
)
BUSY = ("ConditionalRequestConflict", "OperationAborted", "409")
"""Two conditional PUTs clashed: to be tried again."""


class Redirected(boto.BotoCoreError):
    """The server answers every request with a redirect."""

    fmt = "redirected without end"


class _Redirects(threading.local):
    asked = 0


_redirects = _Redirects()


def end_redirects(model: Any, **_: Any) -> None:
    """Raises Redirected at the third question for a bucket's region within one call: boto3 itself would ask for ever.

    For the event `before-call.s3`. Nothing but boto3's own handling of redirects sends HeadBucket.
    """
    _redirects.asked = _redirects.asked + 1 if model.name == "HeadBucket" else 0
    if _redirects.asked > 2:
        raise Redirected()


def endpoint() -> str | None:
    """The server that the environment names; None for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def server() -> str:
    """The same as a message may say it."""
    return public(endpoint() or "Amazon S3")


def explain(what: str, bucket: str, error: Exception, attempts: int) -> StorageError:
    """The error to raise for `what`, the URL of an object or of a store, after so many attempts.

    Never a key, a token or a signed URL. Unavailable for what may pass.
    """
    where = server()
    if isinstance(
        error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError
    ):
        return StorageError(
            f"{what}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, boto.ProfileNotFound):
        return StorageError(f"{what}: AWS_PROFILE names a profile that does not exist")
    if isinstance(error, boto.NoRegionError):
        return StorageError(f"{what}: no region; set AWS_REGION, or AWS_ENDPOINT_URL for another server")
    if isinstance(
        error, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.ConnectionClosedError
    ):
        return Unavailable(f"{what}: {where} cannot be reached; check AWS_ENDPOINT_URL and the network")
    if isinstance(error, boto.ReadTimeoutError | ReadTimeoutError | TimeoutError):
        return Unavailable(f"{what}: {where} does not answer; when it does, run the same command again")
    if isinstance(error, Redirected):
        return _moved(what, where)
    if isinstance(error, boto.ClientError):
        return _explain_answer(what, where, bucket, error, attempts)
    if isinstance(error, boto.SSLError):
        return Unavailable(
            f"{what}: no TLS connection to {where} ({_first_words(error.kwargs.get('error'))}); check whether "
            "AWS_ENDPOINT_URL should begin with http://, or AWS_CA_BUNDLE"
        )
    if isinstance(error, boto.ParamValidationError):
        return NoBucket(f"{what}: '{bucket}' cannot be the name of a bucket; write s3://bucket/prefix")
    if isinstance(error, ValueError):
        return StorageError(f"{what}: AWS_ENDPOINT_URL is no URL; write http://host:port or https://host")
    return Unavailable(f"{what}: the connection to {where} broke ({type(error).__name__}); try again")


def _explain_answer(
    what: str, where: str, bucket: str, error: boto.ClientError, attempts: int
) -> StorageError:
    code = code_of(error)
    if code in ("404", "NotFound") and error.operation_name == "ListObjectsV2":
        return StorageError(
            f"{what}: {where} lists no objects, as an S3 server would; check AWS_ENDPOINT_URL"
        )
    if code in ("NoSuchKey", "404", "NotFound"):
        return NotFound(f"{what} does not exist")
    if code == "NoSuchBucket":
        return NoBucket(f"{what}: bucket '{bucket}' does not exist on {where}; create it or correct it")
    if code in _REFUSED:
        return StorageError(
            f"{what}: {where} refuses this ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
            "and the bucket's policy (s3:ListBucket, s3:GetObject; to write, s3:PutObject and s3:DeleteObject)"
        )
    if code in ("InvalidRange", "416"):
        return StorageError(f"{what} is shorter than its index says: it was cut off or exchanged")
    if code in ("QuotaExceeded", "InsufficientStorage", "507"):
        return StorageError(f"{what}: {where} is full ({code}); free some space and run the command again")
    if code in _MOVED:
        return _moved(what, where)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    kind = Unavailable if status >= 500 or status == 429 or code in _PASSING + BUSY else StorageError
    times = f" {attempts} times" if attempts > 1 else ""
    return kind(f"{what}: {where} answered {code}{times}; try again later")


def _moved(what: str, where: str) -> StorageError:
    return StorageError(
        f"{what}: {where} answers with a redirect: set AWS_REGION to the bucket's region; behind a proxy, or "
        "with another server than Amazon's, correct AWS_ENDPOINT_URL"
    )


def code_of(error: boto.ClientError) -> str:
    """What S3 calls this error, as "NoSuchKey" or "404"."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _first_words(error: object) -> str:
    """The heart of a TLS error: `[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)` in words."""
    found = re.search(r"\[SSL[^]]*\] ([^(]+)", str(error))
    return found[1].strip() if found else "it was cut off"


def public(endpoint: str) -> str:
    """The endpoint without credentials, paths and queries."""
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "the endpoint"
    if not host:
        return endpoint if not set("@?") & set(endpoint) else "the endpoint"
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")
