"""Counts the cost of reading, and explains why training waits for its data."""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S = 30.0
"""Seconds over which the share of waiting is taken."""
QUIET_WINDOWS = 10
"""After a warning, windows until the next one."""


@dataclass(frozen=True, kw_only=True)
class ReadCounts:
    """The cost of reading; a batch carries its own, the stream adds them up."""

    samples: int = 0
    """Samples delivered."""
    bytes: int = 0
    """Bytes read from folder or store; decoded samples from the cache cost none."""
    cache_hits: int = 0
    """Samples found in the cache of decoded ones."""
    retries: int = 0
    """Repeated reads: the bytes did not have their hash, or the store failed."""
    requests: int = 0
    """Requests to the object store, repeated ones among them."""
    hedges: int = 0
    """Second requests for stragglers."""
    fetched: int = 0
    """Bytes that came over the network."""
    node_hits: int = 0
    """Blocks that a step found in the node-local cache or in memory."""
    node_misses: int = 0
    """Blocks that a step waited for, or did without."""
    read_s: float = 0.0
    """Seconds of fetching and checking bytes, over all threads and workers of the rank."""
    decode_s: float = 0.0
    """Seconds of decoding and packing samples, counted in the same way."""
    skipped: tuple[str, ...] = ()
    """One line for each damaged sample that was left out (stream.on_corrupt=skip)."""

    def __add__(self, other: ReadCounts) -> ReadCounts:
        return ReadCounts(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def __sub__(self, earlier: ReadCounts) -> ReadCounts:
        """Returns the counts added since `earlier`."""
        numbers = {n: v - getattr(earlier, n) for n, v in vars(self).items() if n != "skipped"}
        return ReadCounts(**numbers, skipped=self.skipped[len(earlier.skipped) :])


class DataStallMonitor:
    """Warns with one line when a rank waits for data for more than `share` of a window, at most once in ten such."""

    def __init__(self, share: float, *, remote: bool, workers: int, window_s: float = WINDOW_S) -> None:
        self.share = share
        self.remote = remote
        self.workers = workers
        self.window_s = window_s
        self._waited = self._elapsed = 0.0
        self._before = ReadCounts()
        self._quiet = 0

    def note(self, waited: float, elapsed: float, counts: ReadCounts) -> str | None:
        """Returns a warning, or None, after a step of `elapsed` seconds, `waited` of them for its batch.

        `counts` are the stream's so far.
        """
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
        self._quiet = QUIET_WINDOWS
        return f"waited for data {share:.0%} of the last {seconds:.0f} s: {self._reason(spent, seconds)}"

    def _reason(self, spent: ReadCounts, seconds: float) -> str:
        rate = f"{spent.bytes / seconds / 1e6:.0f} MB/s"
        reading = f"reading took {spent.read_s:.0f} s and decoding {spent.decode_s:.0f} s of loader time"
        if spent.read_s < spent.decode_s:
            return (
                f"decoding is the limit (stream.workers={self.workers}); {reading}; raise stream.workers, or "
                "stream.cache_decoded_mb where the corpus is small"
            )
        again = f", {spent.retries} reads were repeated" if spent.retries else ""
        where, cure = "the disk", "raise stream.workers, or use a faster disk"
        if self.remote:
            where = "the object store"
            cure = "raise stream.workers, keep shards on the node (stream.cache_gb), or bring them nearer"
        return f"{where} gives {rate}{again}; {reading}; {cure}"
