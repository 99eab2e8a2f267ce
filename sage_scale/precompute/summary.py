"""What a run of precompute says at its end."""

from __future__ import annotations

from dataclasses import dataclass

from sage_scale.precompute.progress import duration


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the dataset holds at the end."""

    url: str
    clips: int
    rejects: int
    reasons: dict[str, int]
    segments: int
    frames: int
    fps: float
    bytes: int
    shards: int
    seconds: float
    """Wall-clock seconds of this run."""
    stages: str = ""
    """Seconds of all actors by stage; empty where nothing was left to do."""
    removed: int = 0
    """Clips that were taken out on request and are left out for good."""
    kept: tuple[str, ...] = ()
    """Clips that were to be given up and are stored: shards are never changed by precompute."""

    @property
    def token_ratio(self) -> float:
        """Segments (visual tokens) per frame; .129 in the paper."""
        return self.segments / max(1, self.frames)

    def line(self) -> str:
        """One line for a person."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
        return (
            f"{self.url}: {self.clips:,} clips, {self.rejects:,} rejects{f' ({reasons})' if reasons else ''}, "
            f"{f'{self.removed:,} taken out on request, ' if self.removed else ''}"
            f"{self.segments:,} segments, token ratio {self.token_ratio:.3f}, "
            f"{duration(self.frames / self.fps)} of video, "
            f"{self.bytes / 1e6:,.1f} MB in {self.shards:,} shards, done in {duration(self.seconds)}"
        )
