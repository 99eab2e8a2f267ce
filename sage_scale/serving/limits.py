"""Limits of one server, and the refusals that they give."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server accepts."""

    megabytes: float = 200.0
    """Largest upload."""
    seconds: float = 120.0
    """Longest video."""
    side: int = 4096
    """Most pixels of a picture's longer side."""
    decode_s: float = 60.0
    """Longest time of decoding and segmentation; then the decoder is killed."""
    upload_s: float = 120.0
    """Longest time of an upload."""
    decoders: int = 2
    """Videos that are decoded at once, each in a process of its own."""
    waiting: int = 32
    """Requests that wait for a decoder; further ones are refused."""
    memory_mb: int = 3000
    """Memory that a decoder may take beyond its own start."""


class Refused(Exception):
    """A request that is not carried out: HTTP status, and one line for its sender."""

    def __init__(self, status: int, line: str, retry_s: int = 0) -> None:
        super().__init__(line)
        self.status, self.line, self.retry_s = status, line, retry_s
