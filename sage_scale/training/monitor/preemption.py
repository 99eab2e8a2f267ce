"""Notices that this machine will be taken away: spot instances of AWS, preemption of Google Cloud, a file or a URL.

AWS gives two minutes (instance metadata service, version 2: `spot/instance-action` answers 404 until then), Google
thirty seconds (`instance/preempted` says TRUE). Asking costs a request on the machine's own link every few seconds,
and nothing is said where there is nobody to answer.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

AWS = "http://169.254.169.254"
GOOGLE = "http://metadata.google.internal"
AWS_ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""Environment variable, as in AWS's own tools."""
GOOGLE_HOST = "GCE_METADATA_HOST"
"""Environment variable, as in Google's own tools."""
TIMEOUT_S = 1.0
_TOKEN_S = 21600

Ask = Callable[[], str]
"""Gives the notice in words, '' where there is none. Raises OSError where nobody answers."""


def watch_for_notice(
    source: str, every_s: float, tell: Callable[[str], None], until: threading.Event | None = None
) -> threading.Thread:
    """Ask `source` (`watch.stop_notice`) in a daemon thread and tell the first notice once."""
    stop = until or threading.Event()

    def watch() -> None:
        ask = asker(source)
        while ask is not None:
            with contextlib.suppress(OSError, ValueError):
                notice = ask()
                if notice:
                    tell(notice)
                    return
            if stop.wait(every_s):
                return

    thread = threading.Thread(target=watch, name="stop notice", daemon=True)
    thread.start()
    return thread


def asker(source: str) -> Ask | None:
    """How to ask `source`; None for `none`, and for `auto` on a machine that is neither AWS's nor Google's."""
    if source == "none":
        return None
    if source == "aws":
        return SpotInstance().ask
    if source == "gcp":
        return _preempted
    if source == "auto":
        return _of_this_machine()
    if source.startswith(("http://", "https://")):
        return lambda: _url(source)
    return lambda: f"the file {source} is there" if Path(source).exists() else ""


class SpotInstance:
    """AWS's instance metadata service, version 2: a token first, renewed when it is refused."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self.endpoint = os.environ.get(AWS_ENDPOINT, AWS).rstrip("/")
        self.timeout_s = timeout_s
        self._token = ""
        self._until = 0.0

    def ask(self) -> str:
        """`spot/instance-action`, in words; '' where there is none."""
        try:
            answer = self.get("/latest/meta-data/spot/instance-action")
        except urllib.error.HTTPError as error:
            if error.code == 401:
                self._token = ""
            return ""
        return f"AWS takes this spot instance back: {' '.join(answer.split())}"

    def get(self, path: str) -> str:
        """A document of the service. Raises urllib.error.HTTPError (404: there is none), OSError."""
        if not self._token or time.monotonic() > self._until:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
            self._token = _get(f"{self.endpoint}/latest/api/token", headers, self.timeout_s, method="PUT")
            self._until = time.monotonic() + _TOKEN_S / 2
        return _get(f"{self.endpoint}{path}", {"X-aws-ec2-metadata-token": self._token}, self.timeout_s)


def _preempted() -> str:
    host = os.environ.get(GOOGLE_HOST, "")
    endpoint = f"http://{host}" if host else GOOGLE
    answer = _get(
        f"{endpoint}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}, TIMEOUT_S
    )
    return "Google Cloud preempts this machine" if answer.strip().upper() == "TRUE" else ""


def _url(url: str) -> str:
    try:
        answer = _get(url, {}, TIMEOUT_S)
    except urllib.error.HTTPError:
        return ""
    return f"{url} says: {' '.join(answer.split())[:200]}"


def _of_this_machine() -> Ask | None:
    spot = SpotInstance()
    with contextlib.suppress(OSError, ValueError):
        spot.get("/latest/meta-data/instance-id")
        return spot.ask
    with contextlib.suppress(OSError, ValueError):
        _preempted()
        return _preempted
    return None


def _get(url: str, headers: dict[str, str], timeout_s: float, method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers, method=method)
    # No proxy: the metadata of this machine is asked of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout_s) as answer:
        return answer.read(65536).decode("utf-8", "replace")
