"""The figures of a run in Ray's dashboard (and whatever scrapes Ray's metrics): `ray_sage_scale_precompute_...`."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from sage_scale.untrusted.display import printable, redacted

PREFIX = "sage_scale_precompute_"
COUNTERS = {
    "clips": ("Clips that became samples or rejects", ()),
    "frames": ("Frames at the recipe's rate", ()),
    "video_seconds": ("Seconds of video", ()),
    "rejects": ("Rejected clips", ("reason",)),
    "shards": ("Shards committed", ()),
    "bytes": ("Bytes of the tars committed", ()),
    "failures": ("Units lost, to be tried again or left open", ("kind",)),
    "stage_seconds": ("Seconds of all actors by stage", ("stage",)),
}
"""What only grows: text and tags by name."""
GAUGES = {"clips_left": "Clips without an outcome", "shards_left": "Units without a marker"}
"""What goes up and down."""


def label(text: str) -> str:
    """Returns a metric's label: without secrets of URLs, and in ASCII, which is all that Ray takes (else as %C3%BC)."""
    return quote(redacted(printable(text)), safe=string.printable)


class RayMetrics:
    """Counters and gauges of one run, told apart from others by `output`. Needs a Ray that is initialised."""

    def __init__(self, output: str) -> None:
        from ray.util.metrics import Counter, Gauge

        tags = {"output": label(output)}
        self._counters: dict[str, Any] = {}
        self._gauges: dict[str, Any] = {}
        for name, (text, own) in COUNTERS.items():
            self._counters[name] = Counter(f"{PREFIX}{name}_total", text, ("output", *own))
            self._counters[name].set_default_tags(tags)
        for name, text in GAUGES.items():
            self._gauges[name] = Gauge(PREFIX + name, text, ("output",))
            self._gauges[name].set_default_tags(tags)

    def add(self, name: str, value: float = 1, tags: Mapping[str, str] | None = None) -> None:
        """Let a counter grow; 0 is passed over."""
        if value > 0:
            self._counters[name].inc(value, {key: label(tag) for key, tag in (tags or {}).items()})

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._gauges[name].set(value)
