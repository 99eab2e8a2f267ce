"""Requests to stop: signals to a rank, and preemption notices for this machine (AWS, Google Cloud, a file or a URL).

At a signal the current step is finished and saved first.
AWS gives two minutes (instance metadata service, version 2: `spot/instance-action` answers 404 until then), Google
thirty seconds (`instance/preempted` says TRUE). Polling sends one link-local request every
few seconds; no answer means no notice.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from sage_scale.errors import SageError

AWS_ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""Environment variable, as in AWS's own tools."""
GOOGLE_HOST = "GCE_METADATA_HOST"
"""Environment variable, as in Google's own tools."""
_TIMEOUT_S = 1.0
_TOKEN_S = 21600

Ask = Callable[[], str]
"""Returns the notice in words, '' without one. Raises OSError where the service does not answer."""


def watch_for_notice(
    source: str, every_s: float, tell: Callable[[str], None], until: threading.Event | None = None
) -> threading.Thread:
    """Poll `source` (`watch.stop_notice`) in a daemon thread and report the first notice once."""
    stop = until or threading.Event()

    def watch() -> None:
        ask = notice_source(source)
        while ask is not None:
            with contextlib.suppress(OSError, ValueError):
                if notice := ask():
                    tell(notice)
                    return
            if stop.wait(every_s):
                return

    thread = threading.Thread(target=watch, name="stop notice", daemon=True)
    thread.start()
    return thread


def notice_source(source: str) -> Ask | None:
    """Returns the function that polls `source`; None for `none`, and for `auto` outside AWS and Google Cloud."""
    if source == "none":
        return None
    if source == "aws":
        return SpotInstance().ask
    if source == "gcp":
        return _preempted
    if source.startswith(("http://", "https://")):
        return lambda: _url(source)
    if source != "auto":
        return lambda: f"the file {source} is there" if Path(source).exists() else ""
    spot = SpotInstance()
    with contextlib.suppress(OSError, ValueError):
        spot.get("/latest/meta-data/instance-id")
        return spot.ask
    with contextlib.suppress(OSError, ValueError):
        _preempted()
        return _preempted
    return None


class SpotInstance:
    """AWS's instance metadata service, version 2: a token first, renewed when it is refused."""

    def __init__(self) -> None:
        self._endpoint = os.environ.get(AWS_ENDPOINT, "http://169.254.169.254").rstrip("/")
        self._token = ""
        self._until = 0.0

    def ask(self) -> str:
        """Returns the notice `spot/instance-action` as text, '' without a notice."""
        try:
            answer = self.get("/latest/meta-data/spot/instance-action")
        except urllib.error.HTTPError as error:
            if error.code == 401:
                self._token = ""
            return ""
        return f"AWS takes this spot instance back: {' '.join(answer.split())}"

    def get(self, path: str) -> str:
        """Returns a document of the service. Raises urllib.error.HTTPError (404: there is none), OSError."""
        if not self._token or time.monotonic() > self._until:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}
            self._token = _get(f"{self._endpoint}/latest/api/token", headers, method="PUT")
            self._until = time.monotonic() + _TOKEN_S / 2
        return _get(f"{self._endpoint}{path}", {"X-aws-ec2-metadata-token": self._token})


def _preempted() -> str:
    host = os.environ.get(GOOGLE_HOST) or "metadata.google.internal"
    url = f"http://{host}/computeMetadata/v1/instance/preempted"
    answer = _get(url, {"Metadata-Flavor": "Google"}).strip().upper()
    return "Google Cloud preempts this machine" if answer == "TRUE" else ""


def _url(url: str) -> str:
    try:
        return f"{url} says: {' '.join(_get(url).split())[:200]}"
    except urllib.error.HTTPError:
        return ""


def _get(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers or {}, method=method)
    # No proxy: the metadata of this machine is asked of this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_TIMEOUT_S) as answer:
        return answer.read(65536).decode("utf-8", "replace")


class Interrupted(SageError):
    """The stage was asked to stop, saved, and can be resumed by the same command."""

    exit_code = 130


SAME_S = 5.0
"""Signals within this time are one request: a Ctrl-C comes from the terminal, from DeepSpeed's launcher and from the
rank monitor, within a second, seconds."""


class StopRequest:
    """Records SIGINT and SIGTERM; a repeated signal ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Outside of the main thread there are no signals: the caller has its own way to stop.
            with contextlib.suppress(ValueError):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.asked and time.monotonic() - self._since > SAME_S:
            raise KeyboardInterrupt
        if not self.asked:
            self._since = time.monotonic()
        self.asked = True
