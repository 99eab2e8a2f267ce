"""Turns the errors of S3 and the network into one line: the fault, the URL, the remedy."""

from __future__ import annotations

import os
import re
import threading
from typing import Any
from urllib.parse import urlsplit

from botocore import exceptions as boto
from urllib3.exceptions import ReadTimeoutError

from sage_scale.errors import StorageError
from sage_scale.storage.store import NoBucket, NotFound, Unavailable

BUSY = ("ConditionalRequestConflict", "OperationAborted", "409")
"""Codes of two conditional PUTs that clashed: to be repeated."""
MISSING = ("NoSuchKey", "404", "NotFound")
"""Codes of an object that is not there."""
_TRANSIENT = (
    "SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "Throttling", "ThrottlingException", "TooManyRequests",
    "RequestLimitExceeded", "429", *BUSY,
)  # fmt: skip
_REFUSED = (
    "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403", "UserSuspended",
)  # fmt: skip
_REDIRECTED = (
    "301", "302", "307", "308", "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed",
)  # fmt: skip
_MOVED = (
    "{what}: {where} answers with a redirect: set AWS_REGION to the bucket's region; behind a proxy, or with another "
    "server than Amazon's, correct AWS_ENDPOINT_URL"
)
Message = tuple[type[StorageError], str]
_BY_CODE: dict[tuple[str, ...], Message] = {
    MISSING: (NotFound, "{what} does not exist"),
    ("NoSuchBucket",): (
        NoBucket,
        "{what}: bucket '{bucket}' does not exist on {where}; create it or correct it",
    ),
    _REFUSED: (
        StorageError,
        "{what}: {where} refuses this ({detail}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's "
        "policy (s3:ListBucket, s3:GetObject; to write, s3:PutObject and s3:DeleteObject)",
    ),
    ("InvalidRange", "416"): (
        StorageError,
        "{what} is shorter than its index says: it was cut off or exchanged",
    ),
    ("QuotaExceeded", "InsufficientStorage", "507"): (
        StorageError,
        "{what}: {where} is full ({detail}); free some space and run the command again",
    ),
    _REDIRECTED: (StorageError, _MOVED),
}


class Redirected(boto.BotoCoreError):
    """The server answers every request with a redirect."""

    fmt = "redirected without end"


_BY_TYPE: dict[tuple[type[Exception], ...], Message] = {
    (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError): (
        StorageError,
        "{what}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    ),
    (boto.ProfileNotFound,): (StorageError, "{what}: AWS_PROFILE names a profile that does not exist"),
    (boto.NoRegionError,): (
        StorageError,
        "{what}: no region; set AWS_REGION, or AWS_ENDPOINT_URL for another server",
    ),
    (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ConnectionClosedError): (
        Unavailable,
        "{what}: {where} cannot be reached; check AWS_ENDPOINT_URL and the network",
    ),
    (boto.ReadTimeoutError, ReadTimeoutError, TimeoutError): (
        Unavailable,
        "{what}: {where} does not answer; when it does, run the same command again",
    ),
    (Redirected,): (StorageError, _MOVED),
    (boto.SSLError,): (
        Unavailable,
        "{what}: no TLS connection to {where} ({detail}); check whether AWS_ENDPOINT_URL should begin with http://, or "
        "AWS_CA_BUNDLE",
    ),
    (boto.ParamValidationError,): (
        NoBucket,
        "{what}: '{bucket}' cannot be the name of a bucket; write s3://bucket/prefix",
    ),
    (ValueError,): (
        StorageError,
        "{what}: AWS_ENDPOINT_URL is no URL; write http://host:port or https://host",
    ),
    (Exception,): (Unavailable, "{what}: the connection to {where} broke ({detail}); try again"),
}
_redirects = threading.local()


def end_redirects(model: Any, **_: Any) -> None:
    """Raises Redirected at the third question for a bucket's region within one call: boto3 would ask without end.

    For the event `before-call.s3`. Nothing but boto3's own handling of redirects sends HeadBucket.
    """
    asked = getattr(_redirects, "asked", 0)
    _redirects.asked = asked + 1 if model.name == "HeadBucket" else 0
    if _redirects.asked > 2:
        raise Redirected()


def endpoint() -> str | None:
    """Returns the server that the environment names; None for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def server() -> str:
    """Returns the server's name for messages."""
    return public(endpoint() or "Amazon S3")


def explain(what: str, bucket: str, error: Exception, attempts: int) -> StorageError:
    """Returns the error to raise for `what`, the URL of an object or of a store, after so many attempts.

    Never shows a key, a token or a signed URL. Unavailable for transient failures.
    """
    where = server()
    if isinstance(error, boto.ClientError):
        detail = code_of(error)
        kind, text = _explain_answer(error, detail, attempts)
    else:
        kind, text = next(message for types, message in _BY_TYPE.items() if isinstance(error, types))
        detail = _first_words(error) if isinstance(error, boto.SSLError) else type(error).__name__
    return kind(text.format(what=what, where=where, bucket=bucket, detail=detail))


def _explain_answer(error: boto.ClientError, code: str, attempts: int) -> Message:
    if code in ("404", "NotFound") and error.operation_name == "ListObjectsV2":
        return StorageError, "{what}: {where} lists no objects, as an S3 server would; check AWS_ENDPOINT_URL"
    for codes, message in _BY_CODE.items():
        if code in codes:
            return message
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    kind = Unavailable if status >= 500 or status == 429 or code in _TRANSIENT else StorageError
    times = f" {attempts} times" if attempts > 1 else ""
    return kind, f"{{what}}: {{where}} answered {{detail}}{times}; try again later"


def code_of(error: boto.ClientError) -> str:
    """Returns S3's name of this error, as "NoSuchKey" or "404"."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _first_words(error: boto.SSLError) -> str:
    """Returns the heart of a TLS error: `[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)` in words."""
    found = re.search(r"\[SSL[^]]*\] ([^(]+)", str(error.kwargs.get("error")))
    return found[1].strip() if found else "it was cut off"


def public(endpoint: str) -> str:
    """Returns the endpoint without credentials, paths and queries."""
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "the endpoint"
    if not host:
        return endpoint if not set("@?") & set(endpoint) else "the endpoint"
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")
