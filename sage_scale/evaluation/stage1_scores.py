"""Precision, recall and F1 of the pseudo-glosses found in clips (Sign2GPT, Table 8).

The paper names neither the mean nor the split; here both means are reported for a named split. Counts are additive:
each rank counts its own clips.

Shape letters: B clips, U pseudo-glosses with a prototype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PresenceCounts:
    """Counts of each pseudo-gloss over some clips: predicted, present, and both."""

    both_U: np.ndarray
    found_U: np.ndarray
    there_U: np.ndarray
    clips: int

    @classmethod
    def of(cls, presence_BU: np.ndarray, there_BU: np.ndarray, threshold: float) -> PresenceCounts:
        """Returns a batch's counts. A presence above `threshold` is a prediction; `there_BU` (bool) is the target."""
        found_BU = presence_BU > threshold
        return cls((found_BU & there_BU).sum(0), found_BU.sum(0), there_BU.sum(0), len(there_BU))

    @classmethod
    def none(cls, glosses: int) -> PresenceCounts:
        """Returns the counts of no clips."""
        zeros = np.zeros(glosses, np.int64)
        return cls(zeros, zeros, zeros, 0)

    def __add__(self, other: PresenceCounts) -> PresenceCounts:
        return PresenceCounts(
            self.both_U + other.both_U,
            self.found_U + other.found_U,
            self.there_U + other.there_U,
            self.clips + other.clips,
        )

    def scores(self) -> dict[str, float]:
        """Returns `precision`, `recall` and `f1` in percent over all occurrences (micro), and `macro_*`.

        `macro_*` are means over the pseudo-glosses that occur in these clips; `clips` and `occurring` are the numbers
        of clips and of these pseudo-glosses. A score without predictions or without targets is 0.
        """
        occurring_U = self.there_U > 0
        micro = _scores(self.both_U.sum(), self.found_U.sum(), self.there_U.sum())
        each = _scores(self.both_U[occurring_U], self.found_U[occurring_U], self.there_U[occurring_U])
        figures = {name: float(value) for name, value in micro.items()}
        for name, values in each.items():
            figures[f"macro_{name}"] = float(values.mean()) if values.size else 0.0
        return figures | {"clips": float(self.clips), "occurring": float(occurring_U.sum())}


def frequency_control(
    training: Sequence[Sequence[int]], clips: Sequence[Sequence[int]], glosses: int
) -> dict[str, float]:
    """Returns the scores on `clips` of a constant prediction: the most frequent pseudo-glosses of `training`.

    Their number is the one with the best micro F1 on `training`. Both arguments hold the classes of each clip, without
    repeats.
    """
    counts_U = np.bincount(np.array([c for row in training for c in row], np.int64), minlength=glosses)
    order_U = np.argsort(-counts_U, kind="stable")
    sizes = np.arange(1, glosses + 1)
    f1 = 2 * counts_U[order_U].cumsum() / np.maximum(sizes * len(training) + counts_U.sum(), 1)
    answer = np.zeros((1, glosses))
    answer[0, order_U[: int(f1.argmax()) + 1]] = 1.0
    there_BU = np.zeros((len(clips), glosses), bool)
    for number, row in enumerate(clips):
        there_BU[number, list(row)] = True
    return PresenceCounts.of(np.repeat(answer, len(clips), axis=0), there_BU, 0.5).scores()


def _scores(both: np.ndarray, found: np.ndarray, there: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "precision": 100 * both / np.maximum(found, 1),
        "recall": 100 * both / np.maximum(there, 1),
        "f1": 200 * both / np.maximum(found + there, 1),
    }


def retrieval(similarity_VT: np.ndarray) -> dict[str, float]:
    """Returns recall at 1, 5 and 10 (percent) and the median rank of the correct match in video-sentence retrieval, in
    both directions, scored with (Zv + Zt) / 2 as in CiCo.

    `similarity_VT` is (B, B), videos by texts, partners on the diagonal. Ties count against us: the rank is one
    plus the number of others that are at least as similar.
    """
    if similarity_VT.ndim != 2 or similarity_VT.shape[0] != similarity_VT.shape[1]:
        raise ValueError(f"similarity must be square, got {similarity_VT.shape}")
    figures: dict[str, float] = {}
    if not len(similarity_VT):
        return figures
    for name, matrix in (("v2t", similarity_VT), ("t2v", similarity_VT.T)):
        own = np.diagonal(matrix)[:, None]
        ranks = (matrix >= own).sum(axis=1)
        for k in (1, 5, 10):
            figures[f"r{k}_{name}"] = float((ranks <= k).mean() * 100)
        figures[f"median_rank_{name}"] = float(np.median(ranks))
    return figures
