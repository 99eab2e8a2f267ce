"""Notices that training waits for its data, and says why."""

from __future__ import annotations

from sage_scale.streaming.batch import ReadCounts

WINDOW_S = 30.0
"""Time over which waiting is judged."""


class DataStallMonitor:
    """One line when a rank waited for more than `share` of the last half minute, and at most one in ten such times."""

    def __init__(self, share: float, *, remote: bool, workers: int, window_s: float = WINDOW_S) -> None:
        self.share = share
        self.remote = remote
        self.workers = workers
        self.window_s = window_s
        self._waited = self._elapsed = 0.0
        self._before = ReadCounts()
        self._quiet = 0

    def note(self, waited: float, elapsed: float, counts: ReadCounts) -> str | None:
        """After a step of `elapsed` seconds, `waited` of them for its batch; `counts` are the stream's so far."""
        self._waited += waited
        self._elapsed += elapsed
        if not self.share or self._elapsed < self.window_s:
            return None
        share, seconds = self._waited / self._elapsed, self._elapsed
        spent, self._before = counts - self._before, counts
        self._waited = self._elapsed = 0.0
        self._quiet -= 1
        if share < self.share or self._quiet > 0:
            return None
        self._quiet = 10
        return f"waited for data {share:.0%} of the last {seconds:.0f} s: {self._why(spent, seconds)}"

    def _why(self, spent: ReadCounts, seconds: float) -> str:
        rate = f"{spent.bytes / seconds / 1e6:.0f} MB/s"
        where = "the object store" if self.remote else "the disk"
        reading = f"reading took {spent.read_s:.0f} s and decoding {spent.decode_s:.0f} s of loader time"
        if spent.read_s >= spent.decode_s:
            cure = (
                "raise stream.workers, keep shards on the node (stream.cache_gb), or bring them nearer"
                if self.remote
                else "raise stream.workers, or use a faster disk"
            )
            again = f", {spent.retries} reads were repeated" if spent.retries else ""
            return f"{where} gives {rate}{again}; {reading}; {cure}"
        return (
            f"decoding is the limit (stream.workers={self.workers}); {reading}; raise stream.workers, or "
            "stream.cache_decoded_mb where the corpus is small"
        )
