"""Scores of sign segments against annotation: of frames, of whole segments and of onsets.

Each score is a ratio of counts that add up over clips (micro average), so that a bootstrap over clips resamples rows
of counts. Segments are half-open intervals of frames, (N, 2), those of the prediction sorted and disjoint; those of the
annotation may overlap (two hands). Shape letters: C clips, N predicted and M annotated segments, K = len(COUNTS).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

OVERLAPS = (0.25, 0.5, 0.75)
"""Intersection over union from which a predicted and an annotated segment match."""
TOLERANCES = (1, 2, 3)
"""Frames by which matching onsets may differ."""
BOUNDARY_OVERLAP = 0.5
"""Overlap of the pairs of segments whose boundaries are compared."""
COUNTS = (
    "frames", "predicted_frames", "gold_frames", "common_frames",
    "predicted_segments", "gold_segments", *(f"segments_{round(100 * least)}" for least in OVERLAPS),
    "predicted_onsets", "gold_onsets", *(f"onsets_{near}" for near in TOLERANCES),
    *(f"even_onsets_{near}" for near in TOLERANCES), "boundaries", "boundary_frames",
)  # fmt: skip
"""Counts of a clip, all of them sums over frames, segments, onsets or matched boundaries."""
_COLUMN = {name: column for column, name in enumerate(COUNTS)}


def clip_counts(predicted_N2: np.ndarray, gold_M2: np.ndarray, total: int) -> np.ndarray:
    """Returns float64 (K,), the counts of a clip of `total` frames.

    Times are frames, those of people's annotation also fractions of one: overlaps and distances are taken as they are,
    frames and onsets after rounding (half to even), a segment being at least one frame. Onsets are the distinct first
    frames of segments; one at frame 0, which every tagger has for nothing, counts on no side.
    """
    predicted_N2, gold_M2 = np.reshape(predicted_N2, (-1, 2)), np.reshape(gold_M2, (-1, 2))
    inside, annotated = _covered(predicted_N2, total), _covered(gold_M2, total)
    overlaps_NM = overlap_table(predicted_N2, gold_M2)
    pairs = {least: matched_segments(overlaps_NM, least) for least in OVERLAPS}
    near = np.array(pairs[BOUNDARY_OVERLAP], int).reshape(-1, 2)
    off_by = np.abs(predicted_N2[near[:, 0]] - gold_M2[near[:, 1]])
    found, wanted = _onsets(predicted_N2, total), _onsets(gold_M2, total)
    even = evenly_spaced(len(found), total)
    return np.array(
        [
            total, inside.sum(), annotated.sum(), (inside & annotated).sum(),
            len(predicted_N2), len(gold_M2), *(len(pairs[least]) for least in OVERLAPS),
            len(found), len(wanted), *(matches(found, wanted, frames) for frames in TOLERANCES),
            *(matches(even, wanted, frames) for frames in TOLERANCES), off_by.size, off_by.sum(),
        ],
        np.float64,
    )  # fmt: skip


def scores(counts: np.ndarray, fps: float) -> dict[str, np.ndarray]:
    """Returns each score of sums of counts (..., K), an array (...,); 0 where a score has no denominator.

    - `frame_macro_f1`: mean of the F1 of the frames inside a sign and of the frames outside of all.
    - `segment_f1_25`, `_50`, `_75`: F1 of segments, matched one to one from that overlap (per cent) on.
    - `onset_f1_1`, `_2`, `_3`: F1 of onsets, matched one to one within so many frames; `even_onset_f1_...`: the same of
      as many onsets, evenly spaced over each clip.
    - `ratio`: predicted over annotated segments.
    - `boundary_error_ms`: mean distance of the starts and ends of segments that match at an overlap of .5.
    """
    count = {name: np.asarray(counts)[..., column] for name, column in _COLUMN.items()}
    outside = count["frames"] - count["predicted_frames"]
    not_annotated = count["frames"] - count["gold_frames"]
    common_outside = outside - count["gold_frames"] + count["common_frames"]
    signs_f1 = _f1(count["common_frames"], count["predicted_frames"], count["gold_frames"])
    found = {"frame_macro_f1": (signs_f1 + _f1(common_outside, outside, not_annotated)) / 2}
    for least in OVERLAPS:
        name = f"{round(100 * least)}"
        segments = count["predicted_segments"], count["gold_segments"]
        found[f"segment_f1_{name}"] = _f1(count[f"segments_{name}"], *segments)
    for kind in ("", "even_"):
        for near in TOLERANCES:
            onsets = count["predicted_onsets"], count["gold_onsets"]
            found[f"{kind}onset_f1_{near}"] = _f1(count[f"{kind}onsets_{near}"], *onsets)
    found["ratio"] = _share(count["predicted_segments"], count["gold_segments"])
    found["boundary_error_ms"] = _share(count["boundary_frames"], count["boundaries"]) * 1000 / fps
    return found


def bootstrap_intervals(
    counts_CK: np.ndarray, fps: float, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Returns the percentile interval of each score over resampled clips (Efron and Tibshirani 1993, chapter 13)."""
    clips = len(counts_CK)
    chosen_RC = np.random.default_rng(seed).multinomial(clips, np.full(clips, 1 / clips), size=resamples)
    tail = (1 - level) / 2
    return {
        name: (float(np.quantile(values_R, tail)), float(np.quantile(values_R, 1 - tail)))
        for name, values_R in scores(chosen_RC @ counts_CK, fps).items()
    }


def overlap_table(predicted_N2: np.ndarray, gold_M2: np.ndarray) -> np.ndarray:
    """Returns float64 (N, M), intersection over union of each pair of segments; 0 for empty ones."""
    starts = np.maximum(predicted_N2[:, None, 0], gold_M2[None, :, 0])
    ends = np.minimum(predicted_N2[:, None, 1], gold_M2[None, :, 1])
    common_NM = np.maximum(ends - starts, 0)
    sizes_N, sizes_M = np.diff(predicted_N2)[:, 0], np.diff(gold_M2)[:, 0]
    return _share(common_NM, sizes_N[:, None] + sizes_M[None] - common_NM)


def matched_segments(overlaps_NM: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Returns a largest set of pairs (row, column) with at least that overlap, each row and column used once.

    Augmenting paths (Kuhn 1955); each row tries its larger overlaps first.
    """
    wide = [np.flatnonzero(row >= least - 1e-9) for row in overlaps_NM]
    choices = [
        columns[np.argsort(-row[columns], kind="stable")].tolist() for columns, row in zip(wide, overlaps_NM)
    ]
    row_of: dict[int, int] = {}
    column_of: dict[int, int] = {}
    for first in range(len(choices)):
        reached: dict[int, int] = {}
        queue, free = [first], None
        for row in queue:
            new = [column for column in choices[row] if column not in reached]
            reached |= dict.fromkeys(new, row)
            free = next((column for column in new if column not in row_of), None)
            if free is not None:
                break
            queue += [row_of[column] for column in new]
        while free is not None:
            row = reached[free]
            before = column_of.get(row)
            row_of[free], column_of[row], free = row, free, before
    return sorted(column_of.items())


def matches(predicted: Iterable[float], gold: Iterable[float], tolerance: float) -> int:
    """Returns the largest number of pairs (predicted, gold) at most `tolerance` apart, each boundary used once.

    Both are on a line, so the earliest fit is always among the best choices.
    """
    left, right = sorted(predicted), sorted(gold)
    i = j = pairs = 0
    while i < len(left) and j < len(right):
        if abs(left[i] - right[j]) <= tolerance:
            pairs, i, j = pairs + 1, i + 1, j + 1
        elif left[i] < right[j]:
            i += 1
        else:
            j += 1
    return pairs


def evenly_spaced(count: int, total: int) -> np.ndarray:
    """Returns the `count` inner boundaries, in whole frames, of segments of equal length over `total` frames."""
    return np.rint(np.arange(1, count + 1) * total / (count + 1))


def _covered(segments_N2: np.ndarray, total: int) -> np.ndarray:
    covered_T = np.zeros(total, bool)
    for start, end in np.rint(segments_N2).astype(int).tolist():
        covered_T[max(start, 0) : max(end, start + 1, 0)] = True
    return covered_T


def _onsets(segments_N2: np.ndarray, total: int) -> np.ndarray:
    starts = np.unique(np.rint(segments_N2[:, 0]))
    return starts[(starts > 0) & (starts < total)]


def _f1(common: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> np.ndarray:
    return _share(2 * common, predicted + gold)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1e-12), 0.0)
