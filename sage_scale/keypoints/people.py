"""Which of several people in a picture is the signer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def main_person(
    names: Sequence[str], points_TPKC: np.ndarray, confidence_TPK: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points (T, K, C) and confidence (T, K) of one of P people in each frame.

    The one with the widest shoulders, which stands nearest to the camera; without seen shoulders, the one
    with the largest sum of confidence. Extractors number people anew in every frame, so each frame decides alone.
    """
    if points_TPKC.shape[1] == 1:
        return points_TPKC[:, 0], confidence_TPK[:, 0]
    confidence = np.nan_to_num(np.maximum(confidence_TPK, 0), posinf=0.0).astype(np.float64)
    rank_TP = confidence.sum(-1) / (1 + confidence.sum(-1).max())  # below any shoulder width of 2 pixels
    shoulders = [list(names).index(name) for name in SHOULDERS if name in names]
    if len(shoulders) == 2:
        with np.errstate(invalid="ignore", over="ignore"):
            apart = (
                points_TPKC[:, :, shoulders[0], :2].astype(np.float64) - points_TPKC[:, :, shoulders[1], :2]
            )
            width_TP = np.hypot(apart[..., 0], apart[..., 1])
        both_TP = (confidence[:, :, shoulders] > 0).all(-1) & np.isfinite(width_TP)
        rank_TP = np.where(both_TP, 1 + width_TP, rank_TP)
    chosen_T = rank_TP.argmax(1)
    rows = np.arange(len(points_TPKC))
    return points_TPKC[rows, chosen_T], confidence_TPK[rows, chosen_T]


SHOULDERS = ("body.left_shoulder", "body.right_shoulder")
