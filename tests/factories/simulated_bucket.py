"""A store over the bucket of a simulation (`interleaving.py`): the product's `S3Store` above a client as boto3's."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError, ConnectionClosedError
from factories.interleaving import ATTEMPTS, Simulation

from sage_scale.storage.s3 import S3Store

PAGE = 5
"""Names of one page of a listing, in place of a thousand: processes write between the pages."""


class SimulatedStore(S3Store):
    """The product's store over a simulation's bucket."""

    def __init__(self, simulation: Simulation, prefix: str = "data") -> None:
        super().__init__("bucket", prefix)
        self._simulation = simulation

    def _connect(self, single: bool) -> Any:
        return _Client(self._simulation)


class _Client:
    """The part of boto3's client that `S3Store` calls, with boto3's own repetition of failed requests."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._objects = simulation.objects

    def _call(self, operation: str, request: str, effect: Callable[[], Any]) -> Any:
        error: Exception = AssertionError
        for _ in range(ATTEMPTS):
            fault = self._simulation.ask(request)
            if fault == "503":
                error = _refusal("SlowDown", 503, operation)
            elif fault == "409":
                raise _refusal("ConditionalRequestConflict", 409, operation)
            elif fault == "lost before":
                error = ConnectionClosedError(endpoint_url="simulated")
            elif fault == "lost after":
                with contextlib.suppress(ClientError):
                    answer = effect()
                    if "Body" in answer:  # the head of the answer came: boto3 hands it over
                        return {**answer, "Body": io.BytesIO(answer["Body"].read()[:-1])}
                error = ConnectionClosedError(endpoint_url="simulated")
            else:
                return effect()
        raise error

    def put_object(
        self, *, Bucket: str, Key: str, Body: Any, Metadata: dict[str, str], IfNoneMatch: str = "", **_: Any
    ) -> dict[str, Any]:
        data = Body if isinstance(Body, bytes) else Body.read()

        def effect() -> dict[str, Any]:
            if IfNoneMatch and Key in self._objects:
                self._simulation.counts["412"] += 1
                raise _refusal("PreconditionFailed", 412, "PutObject")
            self._objects[Key] = (data, Metadata["put-id"])
            return {}

        return self._call("PutObject", f"PUT{'-IF-ABSENT' if IfNoneMatch else ''} {Key}", effect)

    def get_object(self, *, Bucket: str, Key: str, Range: str = "") -> dict[str, Any]:
        def effect() -> dict[str, Any]:
            data = self._found(Key, "GetObject", "NoSuchKey")
            if not Range:
                return {"Body": io.BytesIO(data), "ContentLength": len(data)}
            first, last = map(int, re.findall(r"\d+", Range))
            part = data[first : last + 1]
            if not part:
                raise _refusal("InvalidRange", 416, "GetObject")
            span = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
            return {"Body": io.BytesIO(part), "ContentLength": len(part), "ContentRange": span}

        return self._call("GetObject", f"GET {Key} {Range}".strip(), effect)

    def head_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        def effect() -> dict[str, Any]:
            data = self._found(Key, "HeadObject", "404")
            return {"ContentLength": len(data), "Metadata": {"put-id": self._objects[Key][1]}}

        return self._call("HeadObject", f"HEAD {Key}", effect)

    def list_objects_v2(self, *, Bucket: str, Prefix: str, ContinuationToken: str = "") -> dict[str, Any]:
        def effect() -> dict[str, Any]:
            keys = sorted(key for key in self._objects if key.startswith(Prefix) and key > ContinuationToken)
            page = [{"Key": key, "Size": len(self._objects[key][0])} for key in keys[:PAGE]]
            more = len(keys) > PAGE
            return {
                "Contents": page,
                "IsTruncated": more,
                "NextContinuationToken": keys[PAGE - 1] if more else "",
            }

        return self._call("ListObjectsV2", f"LIST {Prefix} {ContinuationToken}".strip(), effect)

    def delete_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        def effect() -> dict[str, Any]:
            self._objects.pop(Key, None)
            return {}

        return self._call("DeleteObject", f"DELETE {Key}", effect)

    def _found(self, key: str, operation: str, code: str) -> bytes:
        if key not in self._objects:
            raise _refusal(code, 404, operation)
        return self._objects[key][0]


def _refusal(code: str, status: int, operation: str) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)
