"""`segment_clip`: from a decoded clip and the recipe's section `segmentation` to the clip's segments."""

from __future__ import annotations

import numpy as np

from sage_scale.config import Segmentation
from sage_scale.segmentation.rules import apply_rule
from sage_scale.segmentation.tagger import tag_clip
from sage_scale.vision.decode import DecodedClip


def segment_clip(
    decoded: DecodedClip,
    segmentation: Segmentation,
    fps: float | None = None,
    notes: list[str] | None = None,
) -> np.ndarray:
    """Returns segments int32 (N, 2), N >= 1, in frames at the clip's rate (`fps`, by default the decoded clip's).

    Lines for people are appended to `notes`.
    """
    fps = decoded.fps if fps is None else fps
    tagging = tag_clip(decoded, segmentation, fps)
    if notes is not None:
        notes += tagging.notes
    return apply_rule(tagging.labels_T, segmentation, fps)
