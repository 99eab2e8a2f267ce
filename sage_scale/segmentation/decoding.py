"""Decoding: from probabilities of O, I, B in each frame to labels, pure functions by name; and averages of windows.

Probabilities are (T, 3) in the order O, I, B, rows of sum 1; labels are int8 (T,), O = 0, I = 1, B = 2. Every sign that
a decoder finds begins with one B.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sage_scale.segmentation.motion import peaks as local_maxima
from sage_scale.segmentation.rules import B, I, O, decode_oib

BEGIN, OUTSIDE = 0.6, 0.5
"""Thresholds of the published segmenter of 2023, its command line's."""
LEAST_RUN = 3
"""Frames of the shortest sign of the published segmenter of 2026."""
PEAK, GAP_S = 0.4, 0.16
"""Least P(B) and least distance of onsets; docs/results/segmentation.md has their scores on human annotation."""


def likeliest(p_T3: np.ndarray) -> np.ndarray:
    """Returns the likeliest label of each frame; a run of B is one onset, and an I that no B precedes is O."""
    best_T = np.argmax(p_T3, axis=1)
    begins_T = (best_T == B) & (np.concatenate([[O], best_T[:-1]]) != B)
    inside_T = best_T != O
    return _labels(inside_T, np.flatnonzero(begins_T))


def thresholds(p_T3: np.ndarray, begin: float = BEGIN, outside: float = OUTSIDE) -> np.ndarray:
    """Returns labels by two thresholds, as the published segmenter of 2023 decodes (`probs_to_segments`).

    Outside, a sign begins where P(B) > `begin`. It lasts until P(O) > `outside`, or, once P(B) has fallen below
    `begin`, until P(B) rises above it again: there the next one begins. Where no P(B) reaches `begin`, a sign is a run
    of P(I) > .5. Probabilities are rounded to hundredths, as there.
    """
    p_T3 = np.round(np.asarray(p_T3, np.float64), 2)
    labels_T = np.zeros(len(p_T3), np.int8)
    if not (p_T3[:, B] >= begin).any():
        inside_T = p_T3[:, I] > 0.5
        return _labels(inside_T, _starts(inside_T))
    inside = fallen = False
    for frame, (p_o, _, p_b) in enumerate(p_T3.tolist()):
        onset = p_b > begin and (not inside or fallen)
        if inside and fallen and p_o > outside:
            inside = onset = False
        if onset:
            inside, fallen = True, False
        elif p_b < begin:
            fallen = True
        if inside:
            labels_T[frame] = B if onset else I
    return labels_T


def runs(p_T3: np.ndarray, least: int = LEAST_RUN) -> np.ndarray:
    """Returns one sign for each run of `least` or more frames whose likeliest label is B or I, as the published
    segmenter of 2026 decodes: a B inside a run does not cut."""
    inside_T = np.argmax(p_T3, axis=1) != O
    starts = _starts(inside_T)
    return _labels(inside_T, starts[_ends(inside_T) - starts >= least])


def peaks(p_T3: np.ndarray, fps: float, threshold: float = PEAK, gap_s: float = GAP_S) -> np.ndarray:
    """Returns signs that begin at local maxima of P(B) of at least `threshold`, at least `gap_s` seconds apart (of two
    nearer ones the higher stays), inside runs of P(O) < .5.

    Frames of a run before its first peak are O. A run of two frames or more without a peak is one sign.
    """
    p_T3 = np.asarray(p_T3, np.float64)
    inside_T = p_T3[:, O] < 0.5
    onsets = local_maxima(p_T3[:, B], threshold, max(1, round(gap_s * fps)))
    onsets = onsets[inside_T[onsets]]
    starts, ends = _starts(inside_T), _ends(inside_T)
    first = np.searchsorted(onsets, starts)
    none = np.array([i == len(onsets) or onsets[i] >= end for i, end in zip(first, ends)], bool)
    whole = starts[none & (ends - starts >= 2)]
    return _labels(inside_T, np.concatenate([onsets, whole]))


def averaged_windows(
    predict: Callable[[int, int], np.ndarray], total: int, window: int, step: int
) -> np.ndarray:
    """Returns the mean, float64 (total, C), of `predict(start, end)`, (end - start, C), over overlapping windows of at
    most `window` frames that begin every `step` frames.

    A frame counts more in the middle of a window than at its edges, so that no result depends on one window's edge.
    """
    if total <= window:
        return np.asarray(predict(0, total), np.float64)
    starts = [*range(0, total - window, step), total - window]
    weight_W = np.minimum(np.arange(1, window + 1), np.arange(window, 0, -1)).astype(np.float64)
    weights = np.zeros(total)
    result: np.ndarray | None = None
    for start in starts:
        values = np.asarray(predict(start, start + window), np.float64)
        result = np.zeros((total, values.shape[1])) if result is None else result
        result[start : start + window] += weight_W[:, None] * values
        weights[start : start + window] += weight_W
    assert result is not None
    return result / weights[:, None]


DECODERS: dict[str, Callable[[np.ndarray, float, float, float], np.ndarray]] = {
    "likeliest": lambda p_T3, fps, threshold, gap_s: likeliest(p_T3),
    "thresholds": lambda p_T3, fps, threshold, gap_s: thresholds(p_T3),
    "runs": lambda p_T3, fps, threshold, gap_s: runs(p_T3),
    "peaks": peaks,
    "hands-on": lambda p_T3, fps, threshold, gap_s: decode_oib(p_T3, fps),
}
"""`segmentation.decoding` -> function of probabilities, fps, threshold and gap in seconds."""


def _labels(inside_T: np.ndarray, onsets: np.ndarray) -> np.ndarray:
    """Returns B at the onsets, I from there to the end of the run of `inside_T`, O elsewhere."""
    begins_T = np.zeros(len(inside_T), bool)
    begins_T[onsets] = True
    run_T = np.cumsum(np.diff(inside_T, prepend=False))  # number of the run, or of the gap, of each frame
    latest_T = np.maximum.accumulate(np.where(begins_T, np.arange(len(inside_T)), -1))
    begun_T = inside_T & (latest_T >= 0)
    begun_T[begun_T] &= run_T[latest_T[begun_T]] == run_T[begun_T]
    labels_T = np.where(begun_T, I, O).astype(np.int8)
    labels_T[begins_T] = B
    return labels_T


def _starts(inside_T: np.ndarray) -> np.ndarray:
    return np.flatnonzero(inside_T & ~np.concatenate([[False], inside_T[:-1]]))


def _ends(inside_T: np.ndarray) -> np.ndarray:
    return np.flatnonzero(inside_T & ~np.concatenate([inside_T[1:], [False]])) + 1
