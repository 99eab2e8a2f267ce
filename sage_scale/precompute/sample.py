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
from sage_scale.segmentation import segment_clip
from sage_scale.shards import Sample
from sage_scale.text.pseudogloss import glosser
from sage_scale.vision.backbone_choice import BACKBONES
from sage_scale.vision.decode import DecodedClip, decode_clip, encode_jpeg
from sage_scale.vision.median import median_frame
from sage_scale.vision.video_frames import Tally

if TYPE_CHECKING:
    from sage_scale.vision.backbones import FrozenBackbone
    from sage_scale.vision.feature_batches import FeatureBatches


class SampleMaker:
    """Makes samples by one recipe; keeps what is expensive to load (tagger, backbone)."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.stages: dict[str, float] = {}
        """Seconds spent in each stage since `take_stages`."""
        self._backbone: FrozenBackbone | None = None

    @property
    def wants_grey(self) -> bool:
        """Whether the tagger looks at grey pictures of every frame."""
        return self.recipe.segmentation.tagger == "motion"

    @property
    def tagger(self) -> str:
        """Name and version of the tagger of the corpus' language. Raises RecipeError where none is there."""
        return glosser(self.recipe.corpus.language, self.recipe.text).name

    def load(self) -> None:
        """Load the frozen backbone, if the recipe has one. Raises RecipeError or CheckpointError for wrong weights."""
        if self._backbone is None and self.recipe.vision.kind == "features":
            from sage_scale.vision.backbones import load_backbone  # imports torch

            vision = self.recipe.vision
            device = "cuda" if self.recipe.precompute.gpus_per_actor > 0 else "cpu"
            if vision.backbone in BACKBONES:
                self._backbone = load_backbone(vision, device)
            else:
                from sage_scale.precompute.run_backbone import run_backbone

                self._backbone = run_backbone(vision, device)

    def take_stages(self) -> dict[str, float]:
        """Seconds by stage since the last call."""
        stages, self.stages = self.stages, {}
        return stages

    def spent(self, stage: str, seconds: float) -> None:
        """Count time spent in a stage elsewhere."""
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    def make(self, clip: Clip, tally: Tally | None = None) -> Sample:
        """The sample of `clip`. Raises ClipRejected for what lies in its bytes, other errors for the rest."""
        with self.stage("decode"):
            decoded = decode_clip(clip, self.recipe.vision, tally, grey=self.wants_grey)
        return self.finish(clip, decoded)

    def batches(self) -> FeatureBatches[Any] | None:
        """What fills the backbone's batches with frames of several clips; None where no backbone sees pictures."""
        if self.recipe.vision.kind != "features" or self.recipe.vision.backbone == "keypoints":
            return None
        from sage_scale.vision.feature_batches import FeatureBatches  # imports torch

        self.load()
        assert self._backbone is not None
        return FeatureBatches(self._backbone)

    def finish(self, clip: Clip, decoded: DecodedClip, features_VRC: np.ndarray | None = None) -> Sample:
        """The sample of a clip that is decoded already, and whose features, of all views, may be known. The errors are
        those of `make`."""
        vision = self.recipe.vision
        with self.stage("segment"):
            segments_N2 = segment_clip(decoded, self.recipe.segmentation)
        with self.stage("text"):
            glosses = glosser(clip.language, self.recipe.text)(clip.sentence)
        frames: dict[int, bytes] | None = None
        background = None
        if vision.kind == "features":
            if features_VRC is None:
                with self.stage("features"):
                    features_VRC = self._features(clip, decoded)
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
            meta=metadata(clip, glosses, decoded),
            segments=segments_N2,
            frames=frames,
            background=background,
            features=None if features_VRC is None else features_VRC[0],
            views=() if features_VRC is None else tuple(features_VRC[1:]),
        )

    def view_seeds(self, clip: Clip) -> list[int]:
        """What decides each augmented view of the clip's features."""
        from sage_scale.vision.packed import view_seed  # imports torch

        return [view_seed(clip.key, view) for view in range(1, self.recipe.vision.feature_views)]

    def _features(self, clip: Clip, decoded: DecodedClip) -> np.ndarray:
        """float16 (V, T / stride, C): one row a view and frame of the stride grid."""
        self.load()
        assert self._backbone is not None
        return np.asarray(self._backbone(decoded, self.view_seeds(clip)), np.float16)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time within as spent in a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.spent(name, time.perf_counter() - begun)


def metadata(clip: Clip, glosses: list[str], decoded: DecodedClip) -> dict[str, Any]:
    """The sample's JSON member."""
    return {
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
    }


def source_name(clip: Clip) -> str:
    """File name and interval as a media fragment (`talk.mp4#t=1.5,4.25`); no path, since paths differ by machine."""
    name = clip.video.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    if clip.start_s == 0 and clip.end_s is None:
        return name
    return f"{name}#t={clip.start_s:g}" + ("" if clip.end_s is None else f",{clip.end_s:g}")
