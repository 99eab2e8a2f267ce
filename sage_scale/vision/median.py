"""The median frame of a clip: the scene without what moves in it."""

from __future__ import annotations

import numpy as np

from sage_scale.errors import ClipRejected


def median_frame(frames_THWC: np.ndarray, most: int = 101) -> np.ndarray:
    """The lower median of up to `most` evenly chosen frames, uint8 (H, W, 3): the scene without what moves in
    it."""
    total = len(frames_THWC)
    if not total:
        raise ClipRejected("empty", "no frame to take a median of")
    chosen = frames_THWC[np.linspace(0, total - 1, min(total, most)).round().astype(int)]
    columns = np.ascontiguousarray(chosen.reshape(len(chosen), -1).T)
    middle = (len(chosen) - 1) // 2
    return np.partition(columns, middle, axis=1)[:, middle].reshape(frames_THWC.shape[1:])
