"""How well predicted boundaries meet human ones: F1 within a tolerance, beside as many equally spaced
ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BoundaryScore:
    """Micro-averaged over all clips."""

    f1: float
    precision: float
    recall: float


def matches(predicted: Sequence[int] | np.ndarray, gold: Sequence[int] | np.ndarray, tolerance: float) -> int:
    """The largest number of pairs (predicted, gold) at most `tolerance` apart, each boundary used once.

    Both are on a line, so the earliest that fits is always among the best choices.
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


def boundary_score(
    predicted: Sequence[np.ndarray], gold: Sequence[np.ndarray], tolerance: float
) -> BoundaryScore:
    """Score of the boundaries of several clips, in frames."""
    found = sum(matches(p, g, tolerance) for p, g in zip(predicted, gold, strict=True))
    made, wanted = sum(map(len, predicted)), sum(map(len, gold))
    return BoundaryScore(
        f1=2 * found / (made + wanted) if made + wanted else 0.0,
        precision=found / made if made else 0.0,
        recall=found / wanted if wanted else 0.0,
    )


def evenly_spaced(counts: Sequence[int], totals: Sequence[int]) -> list[np.ndarray]:
    """For each clip of `totals` frames, the `counts` inner boundaries of as many segments of equal length and one."""
    return [np.rint(np.arange(1, n + 1) * total / (n + 1)) for n, total in zip(counts, totals, strict=True)]
