"""A segmentation model that a plug-in registers: a choice of the recipe, opened from its folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from factories.segmenters import random_track

from sage_scale.config import extension, from_mapping
from sage_scale.corpora.manifest import Clip
from sage_scale.keypoints.track import KeypointTrack
from sage_scale.segmentation import tagger
from sage_scale.segmentation.rules import B, O
from sage_scale.segmentation.tagger import Probabilities, open_tagger, register_segmenter, tag_clip
from sage_scale.vision.decode import DecodedClip


class Every:
    """Begins a sign every few frames."""

    name = "every"
    fingerprint = "0"
    decoding = "likeliest"

    def __init__(self, folder: Path) -> None:
        self.step = json.loads((folder / "config.json").read_text())["step"]

    def __call__(self, track: KeypointTrack) -> Probabilities:
        labels_T = np.ones(len(track), np.int64)
        labels_T[:: self.step] = B
        return Probabilities(sign_T3=np.eye(3, dtype=np.float32)[labels_T], sentence_T3=None, fps=track.fps)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(tagger, "MODELS", dict(tagger.MODELS))
    monkeypatch.setattr(extension, "_choices", dict(extension._choices))
    register_segmenter("every", Every)
    yield
    tagger.cached_tagger.cache_clear()


def test_an_added_segmenter_tags_clips(registered, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"tagger": "every", "step": 5}))
    assert open_tagger(tmp_path).name == "every"
    recipe = from_mapping({"segmentation": {"tagger": "every", "weights": str(tmp_path)}})
    frames = np.zeros((0, 8, 8, 3), np.uint8)
    clip = Clip(id="a", video="a.mp4")
    decoded = DecodedClip(
        clip=clip,
        frames=frames,
        total_frames=20,
        fps=25.0,
        stride=2,
        source_fps=25.0,
        track=random_track(20, fps=25.0),
    )
    labels_T = tag_clip(decoded, recipe.segmentation, 25.0).labels_T
    assert np.flatnonzero(labels_T == B).tolist() == [0, 5, 10, 15] and (labels_T != O).all()
