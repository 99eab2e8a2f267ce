"""From a video file to the input of a translator: what precompute and the trainer do with a clip of a dataset."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sage_scale.config import Recipe, override
from sage_scale.corpora.manifest import Clip
from sage_scale.precompute.sample_maker import SampleMaker
from sage_scale.segmentation.choice import has_keypoints
from sage_scale.segmentation.precomputed import has_labels
from sage_scale.segmentation.tagger import HANDS_ON, features_file, wants_keypoints
from sage_scale.shards import Sample
from sage_scale.streaming import SampleShape, pack_sample
from sage_scale.translation.result import rests_of
from sage_scale.untrusted.files import expanded
from sage_scale.vision.decode import DecodedClip
from sage_scale.vision.packed import PackedVideo

FALLBACK = "motion"
"""Tagger of a video without what the tagger of the training data needs."""
NEEDS = {
    "precomputed": "there are no labels of this video (--set segmentation.labels=FILE_OR_FOLDER)",
    "hands-on": "there are no features of this video (--set segmentation.features=FOLDER)",
}
"""Tagger -> words for a video without its labels or features."""
NEEDS_KEYPOINTS = "there is no keypoint file of this video (`sage-scale keypoints` makes it)"


class Preparation:
    """Decodes, segments and packs videos as a recipe says, without its model."""

    def __init__(self, recipe: Recipe, on_gpu: bool = False) -> None:
        """`on_gpu`: stored features are computed on a GPU."""
        precompute = dataclasses.replace(recipe.precompute, gpus_per_actor=float(on_gpu))
        plain = dataclasses.replace(recipe.vision, feature_views=1)
        self.recipe = recipe
        self._plain = dataclasses.replace(recipe, precompute=precompute, vision=plain)
        self._makers: dict[str, SampleMaker] = {}
        self._shape = SampleShape.of(recipe)

    def named(self, clip: Clip) -> tuple[Clip, str]:
        """Returns the clip with the id that its labels have, and the tagger that segments it.

        The tagger is `motion` if this video has no labels, keypoints or features, which the recipe's needs.
        """
        segmentation = self.recipe.segmentation
        found: Clip | None = clip
        if segmentation.tagger == "precomputed":
            found = labelled(clip, segmentation.labels)
        elif segmentation.tagger == HANDS_ON:
            found = with_features(clip, segmentation.features)
        elif wants_keypoints(segmentation) and not has_keypoints(clip.video, self.recipe.vision):
            found = None
        return (found, segmentation.tagger) if found else (clip, FALLBACK)

    def maker(self, tagger: str) -> SampleMaker:
        """Returns the maker of samples that are cut by `tagger`; it is kept."""
        if tagger not in self._makers:
            self._makers[tagger] = SampleMaker(override(self._plain, [f"segmentation.tagger={tagger}"]))
        return self._makers[tagger]

    def prepare(self, clip: Clip, decoded: DecodedClip | None = None) -> tuple[Sample, PackedVideo]:
        """Returns `sample` of a clip, and the model's input from it (B = 1)."""
        sample = self.sample(clip, decoded)
        return sample, self.pack(sample)

    def pack(self, sample: Sample) -> PackedVideo:
        """Returns the model's input from a sample (B = 1)."""
        return pack_sample(sample, self._shape).video

    def sample(self, clip: Clip, decoded: DecodedClip | None = None) -> Sample:
        """Returns the sample that precompute would store of `clip`, which may be decoded already.

        Its description also has `tagger` and `rests` (`Translation`). Raises ClipRejected.
        """
        clip, tagger = self.named(clip)
        maker = self.maker(tagger)
        if decoded is None:
            sample = maker.make(clip)
        else:
            sample = maker.finish(clip, dataclasses.replace(decoded, clip=clip))
        rests = rests_of(maker.labels_T, float(sample.meta["fps"]))
        return dataclasses.replace(sample, meta={**sample.meta, "tagger": tagger, "rests": rests})


def labelled(clip: Clip, labels: str) -> Clip | None:
    """Returns the clip with the id that its precomputed labels have: the path, file name or stem of its video.

    Returns None if `labels` has none of these or does not exist. Raises UsageError if `labels` is not a label file.
    """
    there = labels and Path(labels).exists()
    return next((named for named in _names(clip) if has_labels(labels, named)), None) if there else None


def with_features(clip: Clip, features: str) -> Clip | None:
    """Returns the clip with the id that its features file has, as `labelled` does."""
    folder = expanded(features)
    there = features and folder.is_dir()
    return next((named for named in _names(clip) if features_file(folder, named)), None) if there else None


def _names(clip: Clip) -> list[Clip]:
    video = Path(clip.video)
    return [dataclasses.replace(clip, id=name) for name in (clip.id, video.name, video.stem)]
