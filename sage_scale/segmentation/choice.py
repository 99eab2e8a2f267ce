"""Which tagger `segmentation.tagger=auto` stands for, and what a tagger with a model needs before work begins.

`auto` is decided once, by the driver that begins a dataset, and stored in dataset.json: a later run, training and
translation take the stored value.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence

from sage_scale.config import Recipe, Vision
from sage_scale.corpora.manifest import Manifest
from sage_scale.errors import ClipRejected, NoModel, TooManyRejects, UsageError
from sage_scale.segmentation.precomputed import lacking_files
from sage_scale.segmentation.tagger import (
    FEATURES_SUFFIXES,
    HANDS_ON,
    features_folder,
    model_kind,
    wants_keypoints,
)
from sage_scale.untrusted.display import shortened
from sage_scale.vision.decode import Source, local_path
from sage_scale.vision.keypoints import is_keypoint_file, keypoints_of

Exceeded = Callable[[int], bool]
"""Whether so many rejected clips are more than `shards.max_reject_rate` allows."""


def with_tagger(recipe: Recipe, tagger: str) -> Recipe:
    """Returns the recipe with this `segmentation.tagger`."""
    # A plug-in's tagger is none of the type's names.
    segmentation = dataclasses.replace(recipe.segmentation, tagger=tagger)  # type: ignore[arg-type]
    return dataclasses.replace(recipe, segmentation=segmentation)


def decide(recipe: Recipe, manifest: Manifest, exceeded: Exceeded) -> tuple[str, str]:
    """Returns the tagger for `segmentation.tagger=auto`, and the reason.

    `precomputed` where labels are given; a model where its weights are given (or the package of the published ones is
    installed) and no more clips lack keypoints than may be rejected; else `motion`. Raises UsageError where this
    machine does not see the videos, NoModel or CheckpointError for given weights that are none.
    """
    segmentation, clips = recipe.segmentation, manifest.clips
    if segmentation.labels:
        return "precomputed", f"segmentation.labels={shortened(segmentation.labels, 200)}"
    if recipe.precompute.address and not any(_is_here(clip) for clip in clips[:100]):
        raise UsageError(
            "segmentation.tagger=auto is decided on this machine, which does not see the videos: name a tagger"
        )
    try:
        kind = model_kind(segmentation.weights)
    except NoModel:
        if segmentation.weights:
            raise
        return "motion", "no labels and no weights are given (with keypoints, `trained` needs neither)"
    lacking = lacking_keypoints(clips, recipe.vision)
    with_keypoints = f"{len(clips) - len(lacking):,} of {len(clips):,} clips have keypoints"
    if len(lacking) == len(clips) or exceeded(len(lacking)):
        return "motion", with_keypoints
    weights = shortened(segmentation.weights, 200) or "the installed package's"
    return kind, f"{with_keypoints}, weights: {weights}"


def check_segmenter(recipe: Recipe, clips: Sequence[Source], exceeded: Exceeded) -> None:
    """Check, before any work begins, that the clips have the keypoints or features that the recipe's tagger needs.

    Raises UsageError where all clips lack them, TooManyRejects where more do than may be rejected.
    """
    segmentation = recipe.segmentation
    if recipe.precompute.address and not any(_is_here(clip) for clip in clips[:100]):
        return  # only the nodes can see the files
    if segmentation.tagger == HANDS_ON:
        lacking, _ = lacking_files(features_folder(segmentation.features), clips, FEATURES_SUFFIXES)
        _refuse(lacking, clips, exceeded, "no features file", "see segmentation.features")
    elif wants_keypoints(segmentation):
        lacking = lacking_keypoints(clips, recipe.vision)
        advice = "make them with `sage-scale keypoints`, or take another segmentation.tagger"
        _refuse(lacking, clips, exceeded, "no keypoint file", advice)


def lacking_keypoints(clips: Sequence[Source], vision: Vision) -> list[str]:
    """Returns the ids of the clips whose video is no keypoint file and has none; each video is looked up once."""
    known = {video: has_keypoints(video, vision) for video in dict.fromkeys(clip.video for clip in clips)}
    return [clip.id for clip in clips if not known[clip.video]]


def has_keypoints(video: str, vision: Vision) -> bool:
    """Returns whether a clip's video is a keypoint file, or has one."""
    try:
        path = local_path(video)
    except ClipRejected:
        return False
    return is_keypoint_file(path) or keypoints_of(path, vision) is not None


def _is_here(clip: Source) -> bool:
    try:
        return os.path.exists(local_path(clip.video))
    except ClipRejected:
        return False


def _refuse(
    lacking: Sequence[str], clips: Sequence[Source], exceeded: Exceeded, what: str, advice: str
) -> None:
    if not lacking:
        return
    some = f"{len(lacking):,} of {len(clips):,} clips have {what} (the first: '{shortened(lacking[0])}')"
    if len(lacking) == len(clips):
        raise UsageError(f"segmentation.tagger: {some}: {advice}")
    if exceeded(len(lacking)):
        raise TooManyRejects(
            f"segmentation.tagger: {some}, more than shards.max_reject_rate allows: nothing was begun; {advice}"
        )
