"""Video-sentence retrieval, a measure of stage 1's alignment, scored with (Zv + Zt) / 2 as in CiCo."""

from __future__ import annotations

import numpy as np


def retrieval(similarity_VT: np.ndarray) -> dict[str, float]:
    """Returns recall at 1, 5 and 10 (percent) and the median rank of the correct match, in both directions.

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


def permutation_p_value(similarity_VT: np.ndarray, draws: int = 2000, seed: int = 0) -> float:
    """Chance of a mean diagonal at least as high when texts are assigned to videos at random."""
    generator = np.random.default_rng(seed)
    own = similarity_VT.trace()
    rows = np.arange(len(similarity_VT))
    hits = sum(similarity_VT[rows, generator.permutation(len(rows))].sum() >= own for _ in range(draws))
    return (hits + 1) / (draws + 1)
