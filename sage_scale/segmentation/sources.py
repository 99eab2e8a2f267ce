"""Decodes a clip for its tagger alone: keypoints where the tagger needs them or the source has no pictures, else
small grey pictures. No picture for a sample is kept, and no clip is too short or too long."""

from __future__ import annotations

from dataclasses import replace

from sage_scale.config import Segmentation, Vision
from sage_scale.segmentation.tagger import wants_keypoints
from sage_scale.vision.decode import DecodedClip, Source, decode_clip, local_path
from sage_scale.vision.keypoints import is_keypoint_file
from sage_scale.vision.video_frames import DecodeStats

_MOST_FRAMES = 2**31 - 1


def decode_for_tagger(
    clip: Source, vision: Vision, segmentation: Segmentation, stats: DecodeStats | None = None
) -> DecodedClip:
    """Returns the clip at `vision.fps` with what its tagger looks at. Raises ClipRejected for its faults."""
    vision = replace(vision, min_frames=1, max_frames=_MOST_FRAMES)
    if wants_keypoints(segmentation) or is_keypoint_file(local_path(clip.video)):
        return decode_clip(clip, replace(vision, kind="features", backbone="keypoints"), stats, grey=False)
    # A stride of the whole clip leaves one picture: grey ones are made of every frame.
    pictures = replace(vision, kind="frames", size=8, crop=8, frame_stride=_MOST_FRAMES)
    return decode_clip(clip, pictures, stats, grey=segmentation.tagger == "motion")
