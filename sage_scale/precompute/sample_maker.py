"""One clip to one Sample: decode, segment, tag the sentence, then JPEG frames or features of a frozen backbone.

A pure function of the clip's bytes and the recipe (and the versions in dataset.json): nothing of the machine, of the
clock or of neighbouring clips reaches a byte of the sample.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from sage_scale.config import Recipe
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import ClipRejected
from sage_scale.precompute.frozen_backbone import open_backbone
from sage_scale.segmentation.rules import apply_rule
from sage_scale.segmentation.tagger import segmenter_fingerprint, tag_clip, wants_keypoints
from sage_scale.shards import Sample
from sage_scale.text.pseudogloss import cached_glosser
from sage_scale.vision.decode import DecodedClip, decode_clip, encode_jpeg
from sage_scale.vision.sampling import median_frame
from sage_scale.vision.video_frames import DecodeStats

if TYPE_CHECKING:
    from sage_scale.vision.backbones import FeatureBatches, FrozenBackbone


class SampleMaker:
    """Makes samples by one recipe; keeps its tagger and backbone loaded."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.stages: dict[str, float] = {}
        """Seconds spent in each stage since `take_stages`."""
        self.notes: list[str] = []
        """Lines for people on the labels of clips."""
        self.labels_T: np.ndarray = np.zeros(0, np.int8)
        """Labels O, I, B of the clip made last, by the tagger."""
        self._backbone: FrozenBackbone | None = None

    @property
    def wants_grey(self) -> bool:
        """Whether the tagger looks at grey pictures of every frame."""
        return self.recipe.segmentation.tagger == "motion"

    @property
    def wants_keypoints(self) -> bool:
        """Whether the tagger is a model on keypoints."""
        return wants_keypoints(self.recipe.segmentation)

    @property
    def tagger(self) -> str:
        """Name and version of the tagger of the corpus' language. Raises RecipeError where none is there."""
        return cached_glosser(self.recipe.corpus.language, self.recipe.text).name

    def load(self) -> None:
        """Load the tagger's model and the frozen backbone, where the recipe has them.

        Raises RecipeError, NoModel or CheckpointError for wrong weights.
        """
        segmenter_fingerprint(self.recipe.segmentation)
        if self._backbone is None and self.recipe.vision.kind == "features":
            device = "cuda" if self.recipe.precompute.gpus_per_actor > 0 else "cpu"
            self._backbone = open_backbone(self.recipe.vision, device)

    def take_stages(self) -> dict[str, float]:
        """Returns seconds by stage since the last call."""
        stages, self.stages = self.stages, {}
        return stages

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time within as spent in a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - begun

    def make(self, clip: Clip, stats: DecodeStats | None = None) -> Sample:
        """Returns the sample of `clip`. Raises ClipRejected for faults of its bytes, other errors for the machine's."""
        with self.stage("decode"):
            wanted = {"grey": self.wants_grey, "keypoints": self.wants_keypoints}
            decoded = decode_clip(clip, self.recipe.vision, stats, **wanted)
        return self.finish(clip, decoded)

    def batches(self) -> FeatureBatches[Any] | None:
        """Returns a batcher of frames of several clips for the backbone; None where no backbone sees pictures."""
        if self.recipe.vision.kind != "features" or self.recipe.vision.backbone == "keypoints":
            return None
        from sage_scale.vision.backbones import FeatureBatches  # imports torch

        self.load()
        assert self._backbone is not None
        return FeatureBatches(self._backbone)

    def finish(self, clip: Clip, decoded: DecodedClip, features_VRC: np.ndarray | None = None) -> Sample:
        """Returns the sample of a decoded clip; `features_VRC` are its features of all views, computed here if None.

        Raises the errors of `make`.
        """
        vision = self.recipe.vision
        with self.stage("segment"):
            tagging = tag_clip(decoded, self.recipe.segmentation, decoded.fps)
            self.labels_T = tagging.labels_T
            self.notes += tagging.notes
            segments_N2 = apply_rule(tagging.labels_T, self.recipe.segmentation, decoded.fps)
        with self.stage("text"):
            # A video to translate has no sentence, and spaCy takes a second to load.
            glosses = cached_glosser(clip.language, self.recipe.text)(clip.sentence) if clip.sentence else []
        frames: dict[int, bytes] | None = None
        background = None
        if vision.kind == "features":
            if features_VRC is None:
                with self.stage("features"):
                    self.load()
                    assert self._backbone is not None
                    # float16 (V, T / stride, C): one row a view and frame of the stride grid.
                    features_VRC = np.asarray(self._backbone(decoded, self.view_seeds(clip)), np.float16)
        else:
            if not len(decoded.frames):
                raise ClipRejected("no-pictures", "the source has no pictures to store")
            with self.stage("encode"):
                frames = {
                    row * vision.frame_stride: encode_jpeg(picture, vision.jpeg_quality)
                    for row, picture in enumerate(decoded.frames)
                }
                if vision.background == "median":
                    background = encode_jpeg(median_frame(decoded.frames), vision.jpeg_quality)
        return Sample(
            key=clip.key,
            meta={
                "id": clip.id,
                "sentence": clip.sentence,
                "pseudo_glosses": glosses,
                "language": clip.language,
                "fps": decoded.fps,
                "frame_stride": decoded.stride,
                "frames": decoded.total_frames,
                "source": source_name(clip),
                "signer": clip.signer,
                "split": clip.split,
            },
            segments=segments_N2,
            frames=frames,
            background=background,
            features=None if features_VRC is None else features_VRC[0],
            views=() if features_VRC is None else tuple(features_VRC[1:]),
        )

    def view_seeds(self, clip: Clip) -> list[int]:
        """Returns the seed of each augmented view of the clip's features."""
        from sage_scale.vision.packed import view_seed  # imports torch

        return [view_seed(clip.key, view) for view in range(1, self.recipe.vision.feature_views)]


def source_name(clip: Clip) -> str:
    """Returns file name and interval as a media fragment (`talk.mp4#t=1.5,4.25`), without a path."""
    name = clip.video.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    if clip.start_s == 0 and clip.end_s is None:
        return name
    return f"{name}#t={clip.start_s:g}" + ("" if clip.end_s is None else f",{clip.end_s:g}")
