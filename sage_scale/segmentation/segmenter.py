"""`segment_clip`: from a decoded clip and the recipe's section `segmentation` to the clip's segments."""

from __future__ import annotations

import numpy as np

from sage_scale.config import Segmentation
from sage_scale.segmentation.motion import grey_movement, keypoint_movement, motion_labels
from sage_scale.segmentation.precomputed import precomputed_labels
from sage_scale.segmentation.rules import RULE_FPS, B, I, apply_rule
from sage_scale.vision.decode import DecodedClip


def segment_clip(decoded: DecodedClip, segmentation: Segmentation, fps: float | None = None) -> np.ndarray:
    """Returns segments int32 (N, 2), N >= 1, in frames at the clip's rate (`fps`, by default the decoded clip's)."""
    fps = decoded.fps if fps is None else fps
    return apply_rule(tag_clip(decoded, segmentation, fps), segmentation, fps)


def tag_clip(decoded: DecodedClip, segmentation: Segmentation, fps: float) -> np.ndarray:
    """Returns labels O = 0, I = 1, B = 2, int8 (T,), by the recipe's tagger."""
    total = decoded.total_frames
    if segmentation.tagger == "precomputed":
        return precomputed_labels(segmentation.labels, decoded.clip, total, fps, segmentation.sign_tier)
    if segmentation.tagger == "uniform":
        return uniform_labels(total, segmentation.uniform_frames * fps / RULE_FPS)
    if decoded.keypoints_TKC is not None:
        return motion_labels(keypoint_movement(decoded.keypoints_TKC, fps), fps)
    assert decoded.grey_THW is not None, "a decoded clip has grey frames or keypoints"
    return motion_labels(grey_movement(decoded.grey_THW, fps), fps)


def uniform_labels(total: int, frames: float) -> np.ndarray:
    """Returns labels int8 (total,) of signs of equal length, as near to `frames` as possible."""
    count = max(1, round(total / frames))
    labels_T = np.full(total, I, np.int8)
    labels_T[np.arange(count) * total // count] = B
    return labels_T
