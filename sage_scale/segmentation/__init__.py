"""Cutting a clip into sign segments: taggers give O/I/B labels, pure rules turn them into intervals."""

from sage_scale.segmentation.rules import decode_oib, labels_to_segments
from sage_scale.segmentation.segmenter import segment_clip

__all__ = ["decode_oib", "labels_to_segments", "segment_clip"]
