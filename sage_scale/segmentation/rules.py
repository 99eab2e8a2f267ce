"""Rules from O/I/B labels to segments, pure functions by name (SAGE, section 3.1.1; the released code's is `sage`).

A label is one number a frame: O = 0 outside a sign, I = 1 inside, B = 2 the first frame of a sign. A segment
is a half-open frame interval [start, end); N segments of a clip are int32 (N, 2), sorted and disjoint, N >= 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from sage_scale.config import Segmentation
from sage_scale.config.extension import import_plugins, register_choice

O, I, B = 0, 1, 2  # noqa: E741 - the labels' names in the literature
LETTERS = "OIB"
_NUMBERS = bytes.maketrans(LETTERS.encode(), bytes(range(len(LETTERS))))
RULE_FPS = 25.0
"""Frame rate of the rules' frame counts."""


def decode_oib(probabilities_TC: np.ndarray, fps: float = RULE_FPS) -> np.ndarray:
    """Returns labels int8 (T,) from scores (T, 3) for O, I, B as Hands-On decodes them.

    The largest score wins. A B that follows a B becomes I. A run of at least 2 I without a B before it (at
    least 6 at the clip's start, 25 fps) gets a B at its start.
    """
    labels_T = np.argmax(np.asarray(probabilities_TC), axis=1).astype(np.int8)
    repeated_T = np.concatenate([[False], (labels_T[1:] == B) & (labels_T[:-1] == B)])
    labels_T[repeated_T] = I
    inside_T = np.concatenate([[False], labels_T == I, [False]])
    starts = np.flatnonzero(inside_T[1:] & ~inside_T[:-1])
    ends = np.flatnonzero(~inside_T[1:] & inside_T[:-1])
    for start, end in zip(starts, ends):
        needed = 6 if start == 0 else 2
        after_sign = start > 0 and labels_T[start - 1] == B
        if not after_sign and end - start >= needed * fps / RULE_FPS:
            labels_T[start] = B
    return labels_T


def sage_rule(labels_T: np.ndarray, least: float, most: float) -> list[tuple[int, int]]:
    """Cuts at every B, O frames stay with the segment before; drops segments under `least` frames and a first or last
    one of O only; halves those above `most` until none is. A clip without any sign, or without a segment left, is
    halved as a whole.
    """
    return split_long(sage_unhalved_rule(labels_T, least, most), most)


def sage_unhalved_rule(labels_T: np.ndarray, least: float, most: float) -> list[tuple[int, int]]:
    """Cuts and drops as `sage_rule`, without halving."""
    edges = sorted({0, len(labels_T), *np.flatnonzero(labels_T == B).tolist()})
    pieces = list(itertools.pairwise(edges))
    empty = [bool((labels_T[start:end] == O).all()) for start, end in pieces]
    while pieces and empty[0]:
        pieces, empty = pieces[1:], empty[1:]
    while pieces and empty[-1]:
        pieces, empty = pieces[:-1], empty[:-1]
    return minimum_length(pieces, least) or [(0, len(labels_T))]


def plain_rule(labels_T: np.ndarray, least: float, most: float) -> list[tuple[int, int]]:
    """Cuts from each B to the next, the last one to the clip's last signed frame; the limits do not count."""
    onsets, signed = np.flatnonzero(labels_T == B), np.flatnonzero(labels_T != O)
    ends = [*onsets[1:].tolist(), int(signed[-1]) + 1 if len(signed) else len(labels_T)]
    return list(zip(onsets.tolist(), ends)) or [(0, len(labels_T))]


Intervals = Sequence[tuple[int, int]]
Rule = Callable[[np.ndarray, float, float], Intervals]
"""Labels int8 (T,), least and most frames of a segment -> segments [start, end), sorted and disjoint, at least one."""
RULES: dict[str, Rule] = {"sage": sage_rule, "sage-unhalved": sage_unhalved_rule, "plain": plain_rule}


def register_rule(name: str, rule: Rule) -> None:
    """Makes `segmentation.rule=NAME` cut clips by `rule`; called by a plug-in (config/extension.py)."""
    RULES[name] = rule
    register_choice("segmentation.rule", name)


def labels_to_segments(
    labels_T: np.ndarray,
    rule: str = "sage",
    *,
    fps: float = RULE_FPS,
    min_frames: int = 4,
    max_frames: int = 10,
    rests: bool = True,
) -> np.ndarray:
    """Returns segments int32 (N, 2), N >= 1, of labels (T,) at `fps` (T >= 1); the limits are frames at 25 fps.

    Without `rests` they are trimmed (`trim_rests`). Raises ValueError for a clip without frames and an unknown rule.
    """
    labels_T = np.asarray(labels_T)
    if len(labels_T) == 0:
        raise ValueError("a clip without frames has no segments")
    import_plugins()
    if rule not in RULES:
        raise ValueError(f"no rule {rule!r}: {' or '.join(RULES)}")
    scale = fps / RULE_FPS
    segments = RULES[rule](labels_T, min_frames * scale, max_frames * scale)
    return np.array(segments if rests else trim_rests(segments, labels_T), dtype=np.int32)


def minimum_length(segments: Intervals, least: float) -> list[tuple[int, int]]:
    """Returns the segments of at least `least` frames."""
    return [(start, end) for start, end in segments if end - start >= least]


def split_long(segments: Intervals, most: float) -> list[tuple[int, int]]:
    """Returns the segments, those above `most` frames halved until none is."""
    return [half for start, end in segments for half in halve(start, end, most)]


def trim_rests(segments: Intervals, labels_T: np.ndarray) -> list[tuple[int, int]]:
    """Returns the segments without the frames O at both ends of each; a segment of O only is dropped, unless all are:
    then the segments stay as they were.
    """
    signed = (start + np.flatnonzero(np.asarray(labels_T[start:end]) != O) for start, end in segments)
    return [(int(frames[0]), int(frames[-1]) + 1) for frames in signed if len(frames)] or list(segments)


def halve(start: int, end: int, limit: float) -> list[tuple[int, int]]:
    """Returns [start, end) cut in halves, recursively, until no part is longer than `limit` frames (at least 1)."""
    if end - start <= max(limit, 1):
        return [(start, end)]
    middle = (start + end) // 2
    return halve(start, middle, limit) + halve(middle, end, limit)


def segments_to_labels(segments_N2: np.ndarray, total: int) -> np.ndarray:
    """Returns labels int8 (total,) of sign intervals: B, then I; parts outside the clip are cut off."""
    labels_T = np.zeros(total, np.int8)
    for start, end in np.asarray(segments_N2).reshape(-1, 2).tolist():
        start, end = max(start, 0), min(end, total)
        if start < end:
            labels_T[start:end] = I
            labels_T[start] = B
    return labels_T


def label_segments(labels_T: np.ndarray) -> np.ndarray:
    """Returns int64 (N, 2), the signs of labels: from each B, and each I after O, to the next B or O."""
    labels_T = np.asarray(labels_T)
    before_T = np.concatenate([[O], labels_T[:-1]])
    starts = np.flatnonzero((labels_T == B) | ((labels_T == I) & (before_T == O)))
    ends_T = np.flatnonzero(np.concatenate([labels_T != I, [True]]))
    return np.stack([starts, ends_T[np.searchsorted(ends_T, starts, side="right")]], axis=1)


def resample_labels(labels_S: np.ndarray, from_fps: float, total: int, to_fps: float) -> np.ndarray:
    """Returns labels int8 (total,) at `to_fps` from labels at `from_fps`: nearest in time, no B lost or doubled.

    Two signs whose starts fall on one frame at the lower rate become one.
    """
    labels_S = np.asarray(labels_S)
    if len(labels_S) == 0:
        return np.zeros(total, np.int8)
    source_T = np.ceil(np.arange(total) * from_fps / to_fps - 0.5 - 1e-6).astype(int)
    past_T = source_T >= len(labels_S)
    labels_T = labels_S[np.clip(source_T, 0, len(labels_S) - 1)].astype(np.int8)
    labels_T[labels_T == B] = I
    onsets = np.floor(np.flatnonzero(labels_S == B) * to_fps / from_fps + 0.5 + 1e-6).astype(int)
    labels_T[past_T] = O
    labels_T[onsets[onsets < total]] = B
    return labels_T


def parse_letters(text: str) -> np.ndarray:
    """Returns labels int8 (T,) of a string such as "OOBIIIOBII". Raises ValueError with other letters."""
    strange = set(text.upper()) - set(LETTERS)
    if strange:
        raise ValueError(f"labels hold {sorted(strange)[:5]!r}, only O, I and B are known")
    return np.frombuffer(text.upper().encode().translate(_NUMBERS), np.int8).copy()


def apply_rule(labels_T: np.ndarray, recipe: Segmentation, fps: float) -> np.ndarray:
    """Returns `labels_to_segments` with the recipe's rule and limits."""
    limits = {"min_frames": recipe.min_frames, "max_frames": recipe.max_frames}
    return labels_to_segments(labels_T, recipe.rule, fps=fps, **limits, rests=not recipe.trim_rests)
