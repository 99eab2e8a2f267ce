"""Bringing a source of any frame rate to the recipe's: frame k of a clip is the source frame nearest to
k/fps.

A clip of `d` seconds has T = round(d * fps) frames. A frame exactly between two source frames is the earlier
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

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


def sample_stream(
    timed_frames: Iterable[tuple[float, float, Frame]],
    fps: float,
    start_s: float,
    end_s: float | None,
    max_frames: int,
) -> Iterator[tuple[int, Frame]]:
    """Yield (k, frame) for k = 0, 1, ... from (time, duration, frame) in rising time, seconds.

    Works without knowing the end in advance and never holds more than one frame. Raises ClipRejected
    `too-long` as soon as more than `max_frames` frames are asked for.
    """
    wanted = None if end_s is None else round((end_s - start_s) * fps)
    k = 0
    held: tuple[float, float, Frame] | None = None
    for time_s, duration_s, frame in timed_frames:
        if held is not None:
            middle_s = (held[0] + time_s) / 2
            while start_s + k / fps <= middle_s + _EPSILON_S and (wanted is None or k < wanted):
                check_length(k + 1, 0, max_frames)
                yield k, held[2]
                k += 1
        held = (time_s, duration_s, frame)
        if wanted is not None and k >= wanted:
            return
    if held is None:
        return
    stop_s = held[0] + held[1]
    total = round((stop_s - start_s) * fps)
    while k < (total if wanted is None else min(wanted, total)):
        check_length(k + 1, 0, max_frames)
        yield k, held[2]
        k += 1
