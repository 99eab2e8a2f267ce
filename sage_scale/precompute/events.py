"""What an actor tells its driver while it works on a unit. Small, plain values; one `ClipDone` a clip."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sage_scale.shards.layout import Marker

STAGES = ("decode", "segment", "text", "features", "encode", "write", "commit")
"""The parts of an actor's time that progress reports, in the order in which a clip passes them."""


@dataclass(frozen=True, kw_only=True)
class ClipDone:
    """One clip of the unit became a sample or a reject."""

    clip: str
    """Id of the clip."""
    reason: str = ""
    """Why it was rejected; empty for a sample."""
    detail: str = ""
    """One line about the reject."""
    frames: int = 0
    """Frames of the clip at the recipe's rate."""
    seconds: float = 0.0
    """Length of the clip's video, seconds."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds spent in each stage."""
    notes: tuple[str, ...] = ()
    """What a user should hear of the videos read since the last clip, one line each."""


@dataclass(frozen=True, kw_only=True)
class UnitDone:
    """The unit's tar, index and marker are stored."""

    marker: Marker
    """The marker, as stored."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds spent in stages that belong to no single clip."""


Failure = Literal["full", "usage", "storage", "memory", "error", "killed", "time-out"]
"""full and usage: no other unit will fare better, so the run ends; the others may pass when tried again."""


@dataclass(frozen=True, kw_only=True)
class UnitFailed:
    """The unit could not be finished; nothing of it is half-written."""

    kind: Failure
    message: str
    """One line: what happened."""
    clip: str = ""
    """Id of the clip it happened in, where it was in one."""
    ends_actor: bool = False
    """The actor is of no more use: it waits for its end."""


Event = ClipDone | UnitDone | UnitFailed
