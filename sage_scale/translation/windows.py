"""Cuts a long recording at pauses, while it is read: pure functions on the movement in each frame.

A window is a stretch for one caption. It ends where the hands rest, at the latest after the longest time that training
saw, and then at its stillest moment. Rests between windows have no caption. What comes in later changes no window that
was cut, and memory is that of one window.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from sage_scale.segmentation.motion import LEAST_PAUSE_S, REST, SMOOTH_S, smooth

PAD_S = 0.5
"""Most rest before and after the signing of a window, seconds."""
LONG_PAUSE_S = 1.0
"""A pause of this length ends a window even if its signing is shorter than that of any training clip, seconds."""
MEMORY_S = 60.0
"""The speed of signing is that of the last windows, up to this time, seconds."""
LEAST_SPEED = 0.05
"""Slower movement is noise where nothing else has moved, in units of `motion.Movement.speed_T`."""
CHECK_S = 0.2
"""Time between two searches for a cut, seconds."""
SURE_S = 1.0
"""Time of movement after which the recording itself says how fast its signing is, seconds."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a window ends, frames."""

    fps: float
    longest: int
    """Longest signing of a window; a longer one is cut at its stillest moment."""
    shortest: int = 1
    """Shorter signing is joined with what follows, unless a long pause is between."""
    pause: int = 0
    """Shortest pause; 0 is that of the tagger `motion`."""
    grid: int = 1
    """Windows begin and end at multiples of this."""

    @property
    def pad(self) -> int:
        """Frames of the longest rest at either end of a window."""
        return round(PAD_S * self.fps)

    @property
    def least_pause(self) -> int:
        """Frames of the shortest pause."""
        return self.pause or max(1, round(LEAST_PAUSE_S * self.fps))


@dataclass(frozen=True)
class Window:
    """A window, half-open frame intervals of the recording."""

    start: int
    end: int
    signing_start: int
    """First frame that moves."""
    signing_end: int
    """The frame after the last one that moves."""


class Cutter:
    """Cuts a recording whose frames come one by one."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.first = 0
        """The first frame that can still become part of a window; earlier ones are not needed any more."""
        self._speeds: list[float] = []
        self._signing: deque[float] = deque(maxlen=round(MEMORY_S * limits.fps))
        self._every = max(1, round(CHECK_S * limits.fps))

    @property
    def count(self) -> int:
        """Frames that were pushed."""
        return self.first + len(self._speeds)

    def push(self, speed: float) -> Window | None:
        """Takes the movement from the last frame to the next one; returns a window that is now complete."""
        self._speeds.append(speed)
        return None if len(self._speeds) % self._every else self._next(final=False)

    def finish(self) -> list[Window]:
        """Returns the remaining windows of a recording that has ended, or has a gap here."""
        windows = []
        while self._speeds:
            if (window := self._next(final=True)) is not None:
                windows.append(window)
        return windows

    def _next(self, final: bool) -> Window | None:
        level_T = smooth(np.array(self._speeds), SMOOTH_S * self.limits.fps)
        found = next_window(level_T, self._threshold(level_T), self.limits, final)
        if found is None:
            return None
        after, window = found
        at = self.first
        if window is not None:
            self._signing.extend(level_T[window.signing_start : window.signing_end].tolist())
            window = Window(
                at + window.start, at + window.end, at + window.signing_start, at + window.signing_end
            )
        self.first += after
        del self._speeds[:after]
        return window

    def _threshold(self, level_T: np.ndarray) -> float:
        """Returns the level up to which the hands rest: a share of the typical level of signing."""
        moving_T = level_T[level_T > LEAST_SPEED]
        known = np.concatenate([np.array(self._signing), moving_T])
        if len(known) < SURE_S * self.limits.fps:
            return LEAST_SPEED
        return max(LEAST_SPEED, REST * float(np.percentile(known, 75)))


def next_window(
    level_T: np.ndarray, threshold: float, limits: Limits, final: bool
) -> tuple[int, Window | None] | None:
    """Returns the frames that are finished, and the first window of them (None: a rest); None where more are needed.

    `level_T` is the smoothed movement in each frame. With `final` nothing follows: all frames are used up, by repeated
    calls.
    """
    total, fps = len(level_T), limits.fps
    pad = limits.pad
    moving = np.flatnonzero(level_T > threshold)
    if not len(moving):
        if final:
            return total, None
        done = _down(total - pad, limits.grid)
        return (done, None) if done >= 2 * pad else None
    begin = int(moving[0])
    start = _down(max(0, begin - pad), limits.grid)

    def window(signing_end: int, end: int) -> tuple[int, Window]:
        end = (
            total if final and end == total else min(total, max(start + limits.grid, _down(end, limits.grid)))
        )
        return end, Window(start, end, begin, min(signing_end, end))

    def stillest() -> tuple[int, Window]:
        after_s = begin + limits.longest // 2
        cut = after_s + int(level_T[after_s : begin + limits.longest].argmin())
        return window(cut, max(cut, start + limits.grid))

    for a, b in _pauses(moving, total):
        if a - begin > limits.longest:
            break
        closed, length = b < total, b - a
        if closed and length < limits.least_pause:
            continue
        if closed and a - begin < limits.shortest and length < LONG_PAUSE_S * fps:
            continue
        if closed:
            return window(a, min(a + pad, (a + b) // 2))
        if final or length >= 2 * pad:
            return window(a, min(a + pad, total))
    if total - begin > limits.longest and int(moving[-1]) - begin > limits.longest:
        return stillest()
    if final:
        return window(int(moving[-1]) + 1, total)
    return None


def _pauses(moving: np.ndarray, total: int) -> list[tuple[int, int]]:
    """Returns the rests after the first movement, half-open; the last one may be open (its end is `total`)."""
    ends, starts = moving + 1, np.append(moving[1:], total)
    return [(int(a), int(b)) for a, b in zip(ends, starts) if b > a]


def _down(frame: int, grid: int) -> int:
    return frame - frame % grid


def grey_speed(before_HW: np.ndarray, now_HW: np.ndarray, fps: float) -> float:
    """Returns the movement between two small grey pictures, as `motion.grey_movement`, whose noise is a clip's."""
    change = np.abs(now_HW.astype(np.int16) - before_HW.astype(np.int16)).astype(np.float32)
    noise = max(2.0, 3.0 * float(np.median(change)))
    return float(np.maximum(change - noise, 0).mean()) * fps
