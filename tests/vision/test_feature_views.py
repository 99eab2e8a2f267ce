"""Augmented views of features: the plain one as ever, the others what training on the changed frames would see."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sage_scale.config import Augment, Recipe, Vision, check, override
from sage_scale.errors import RecipeError
from sage_scale.nn.frame_encoder import IMAGENET_MEAN, IMAGENET_STD
from sage_scale.vision.augment import augment
from sage_scale.vision.backbones import FeatureBatches, FrozenBackbone
from sage_scale.vision.packed import view_seed

PLAIN = Vision(kind="features", size=40, crop=32, allow_random_backbone=True, backbone_batch=8)
STRONG = Augment(rotation=30.0, crop=0.3, flip=0.5, translate=0.1, brightness=0.4, contrast=0.4, saturation=0.4,
                 hue=0.2, grey=0.2)  # fmt: skip
THREE = dataclasses.replace(PLAIN, feature_views=3, view_augment=STRONG)
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (11, 40, 40, 3), dtype=np.uint8)
SEEDS = [view_seed("0123456789abcdef", view) for view in (1, 2)]


def test_the_plain_view_is_bit_for_bit_that_of_a_dataset_without_views() -> None:
    alone = FrozenBackbone(PLAIN).pictures(FRAMES)
    with_others = FrozenBackbone(THREE).pictures(FRAMES, SEEDS)
    assert alone.shape == (1, 11, 512) and with_others.shape == (3, 11, 512)
    assert np.array_equal(alone[0], with_others[0])


def test_the_others_are_features_of_the_changed_frames() -> None:
    backbone = FrozenBackbone(THREE)
    views = backbone.pictures(FRAMES, SEEDS)
    x = torch.from_numpy(FRAMES).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    for view, drawn in enumerate(SEEDS, start=1):
        changed = augment(x, torch.zeros(11, dtype=torch.int64), torch.tensor([drawn]), STRONG, 32)
        with torch.no_grad():
            wanted = backbone.network.model((changed / 255 - mean) / std).pooler_output.flatten(1).numpy()
        assert np.abs(views[view] - wanted).max() < 2e-3 * np.abs(wanted).max()
        assert np.abs(views[view] - views[0]).max() > 0.05 * np.abs(wanted).max()
    assert not np.array_equal(views[1], views[2])


def test_clips_in_one_batch_get_what_each_gets_alone() -> None:
    backbone = FrozenBackbone(THREE)
    clips = [RNG.integers(0, 256, (n, 40, 40, 3), dtype=np.uint8) for n in (3, 8, 1, 5)]
    seeds = [[view_seed(f"{clip:016x}", view) for view in (1, 2)] for clip in range(4)]
    batches: FeatureBatches[int] = FeatureBatches(backbone)
    mixed = [pair for clip in range(4) for pair in batches.add(clip, clips[clip], seeds[clip])] + [
        *batches.flush()
    ]
    assert [clip for clip, _ in mixed] == [0, 1, 2, 3]
    for clip, rows in mixed:
        assert np.array_equal(rows, backbone.pictures(clips[clip], seeds[clip]))


def test_a_view_follows_from_the_clip_and_its_number() -> None:
    every = {view_seed(f"{clip:016x}", view) for clip in (0, 1, 2**64 - 1) for view in range(1, 6)}
    assert len(every) == 15 and all(0 <= drawn < 2**62 for drawn in every)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["vision.feature_views=0"], "at least 1"),
        (["vision.feature_views=2"], "views of features: set vision.kind=features"),
        (["vision.feature_views=2", "vision.kind=features", "vision.backbone=keypoints"], "keypoints does not see"),
        (["vision.feature_views=2", "vision.kind=features", "vision.view_augment.rotation=0",
          "vision.view_augment.brightness=0", "vision.view_augment.contrast=0", "vision.view_augment.saturation=0"],
         "would be copies"),
        (["vision.feature_views=2", "vision.kind=features", "vision.view_augment.flip=2"],
         "view_augment.flip=2.0 must be at most 1"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(changes: list[str], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        check(override(Recipe(), changes))


def test_datasets_without_views_keep_their_fingerprint() -> None:
    """Younger keys are part of it only where they are used."""
    plain = Recipe(vision=PLAIN).dataset_part()["vision"]
    assert not {"feature_views", "view_augment"} & set(plain)
    viewed = Recipe(vision=THREE).dataset_part()["vision"]
    assert viewed["feature_views"] == 3 and viewed["view_augment"]["rotation"] == 30.0
