"""Choice of frames: frame k of a clip is the source frame nearest to k/fps, the earlier one of two equally near.

A clip of `d` seconds has T = round(d * fps) frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import numpy as np

from sage_scale.errors import ClipRejected

Frame = TypeVar("Frame")

_EPSILON_S = 1e-6


def check_interval(start_s: float, end_s: float | None, duration_s: float | None) -> None:
    """Refuse an empty interval and one that begins after the video's end (`duration_s`, None if unknown)."""
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        raise ClipRejected(
            "bad-interval", f"from {start_s:g} s to {end_s if end_s is None else f'{end_s:g}'} s"
        )
    if duration_s is not None and start_s >= duration_s:
        raise ClipRejected("beyond-end", f"starts at {start_s:g} s, the video ends at {duration_s:.2f} s")


def check_length(frames: int, min_frames: int, max_frames: int) -> None:
    """Refuse a clip of fewer than `min_frames` or more than `max_frames` frames at the recipe's rate."""
    if frames < min_frames:
        raise ClipRejected("too-short", f"{frames} frames, vision.min_frames is {min_frames}")
    if frames > max_frames:
        raise ClipRejected("too-long", f"{frames} frames, vision.max_frames is {max_frames}")


def median_frame(frames_THWC: np.ndarray, most: int = 101) -> np.ndarray:
    """Returns the lower median of up to `most` evenly chosen frames, uint8 (H, W, 3): the still scene."""
    total = len(frames_THWC)
    if not total:
        raise ClipRejected("empty", "no frame to take a median of")
    chosen = frames_THWC[np.linspace(0, total - 1, min(total, most)).round().astype(int)]
    columns = np.ascontiguousarray(chosen.reshape(len(chosen), -1).T)
    middle = (len(chosen) - 1) // 2
    return np.partition(columns, middle, axis=1)[:, middle].reshape(frames_THWC.shape[1:])


def nearest_frames(
    source_frames: int, source_fps: float, fps: float, start_s: float = 0.0, end_s: float | None = None
) -> np.ndarray:
    """int64 (T,): for each frame at `fps` the index of the nearest of `source_frames` evenly spaced ones.

    An end beyond the source's is cut; an interval wholly outside it raises ClipRejected.
    """
    duration_s = source_frames / source_fps
    check_interval(start_s, end_s, duration_s)
    stop_s = duration_s if end_s is None else min(end_s, duration_s)
    frames = round((stop_s - start_s) * fps)
    position = (start_s + np.arange(frames) / fps) * source_fps
    # ceil(x - 1/2) rounds halves down, so that a tie goes to the earlier frame as it does for a stream.
    index = np.ceil(position - 0.5 - _EPSILON_S).astype(np.int64)
    return np.clip(index, 0, source_frames - 1)


class StreamSampler(Generic[Frame]):
    """Picks frames for one clip from a stream whose end is not known, given to it one by one.

    Never holds more than one frame: the last one, until the next tells how far it reaches.
    """

    def __init__(self, fps: float, start_s: float, end_s: float | None, max_frames: int) -> None:
        self.fps, self.start_s, self.max_frames = fps, start_s, max_frames
        self._wanted = None if end_s is None else round((end_s - start_s) * fps)
        self._held: tuple[float, float, Frame] | None = None
        self._next = 0

    @property
    def done(self) -> bool:
        """Whether the clip has all its frames; more need not be decoded."""
        return self._wanted is not None and self._held is not None and self._next >= self._wanted

    def push(self, time_s: float, duration_s: float, frame: Frame) -> Iterator[tuple[int, Frame]]:
        """Yields (k, frame) for each k that this frame decides; times rise, seconds. Raises ClipRejected `too-long`."""
        if self._held is not None:
            yield from self._until((self._held[0] + time_s) / 2 + _EPSILON_S, self._wanted)
        self._held = (time_s, duration_s, frame)

    def finish(self) -> Iterator[tuple[int, Frame]]:
        """Yields (k, frame) for the remaining k when the stream has ended."""
        if self._held is None:
            return
        total = round((self._held[0] + self._held[1] - self.start_s) * self.fps)
        yield from self._until(None, total if self._wanted is None else min(self._wanted, total))

    def _until(self, time_s: float | None, stop: int | None) -> Iterator[tuple[int, Frame]]:
        assert self._held is not None
        while (stop is None or self._next < stop) and (
            time_s is None or self.start_s + self._next / self.fps <= time_s
        ):
            check_length(self._next + 1, 0, self.max_frames)
            yield self._next, self._held[2]
            self._next += 1
