"""What the verbs of `sage-scale shards` print alike: sizes, and progress in shards and bytes."""

from __future__ import annotations

import sys
import time

from sage_scale.untrusted.printer import redraw, tell

SHOWN = 20
"""Problems printed; the rest is counted."""


def size(count: float) -> str:
    """Bytes as `12 B`, `3.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Progress:
    """Done, total, bytes, rate and time left: one moving line on a terminal, else a plain line every few seconds."""

    def __init__(self, what: str, every_s: float = 5.0) -> None:
        self.what = what
        self.moving = sys.stderr.isatty()
        self.every_s = 0.2 if self.moving else every_s
        self.start = self.shown = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.moving:
            redraw("")

    def __call__(self, done: int, total: int, read: int) -> None:
        """`done` of `total` shards, `read` bytes of them."""
        now = time.monotonic()
        if now - self.shown < self.every_s:
            return
        self.shown = now
        elapsed = now - self.start
        line = f"{self.what}: {done} of {total} shards"
        if read:
            line += f", {size(read)}, {size(read / elapsed)}/s"
        if done:
            line += f", {elapsed / done * (total - done):.0f} s left"
        (redraw if self.moving else tell)(line)
