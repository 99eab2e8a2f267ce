"""Translates video files with an exported model.

A video is processed like a clip of a dataset: precompute's code decodes, segments and stores it as a sample, and the
trainer's code unpacks it. The model therefore sees the same pixels as from a shard, after JPEG, and returns the
sentence that `sage-scale evaluate` would write.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sage_scale.config import Recipe, override
from sage_scale.config.recipe import flat, to_mapping
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import UsageError
from sage_scale.nn.beam_search import Candidate
from sage_scale.precompute.sample_maker import SampleMaker
from sage_scale.segmentation.choice import has_keypoints, with_tagger
from sage_scale.segmentation.precomputed import has_labels
from sage_scale.segmentation.tagger import HANDS_ON, features_file, wants_keypoints
from sage_scale.shards import Sample
from sage_scale.streaming import SampleShape, pack_sample
from sage_scale.training.engine import has_fast_bf16
from sage_scale.training.export import SearchingModel, export_folder, load_translator
from sage_scale.training.inherited import changes_samples
from sage_scale.untrusted.files import expanded, read_text
from sage_scale.vision.packed import PackedVideo, joined

FALLBACK = "motion"
"""Tagger of a video without what the tagger of the training data needs."""
NEEDS = {
    "precomputed": "there are no labels of this video (--set segmentation.labels=FILE_OR_FOLDER)",
    "hands-on": "there are no features of this video (--set segmentation.features=FOLDER)",
}
"""Tagger -> words for a video without its labels or features."""
NEEDS_KEYPOINTS = "there is no keypoint file of this video (`sage-scale keypoints` makes it)"


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A video with its segments and its translation."""

    video: str
    """The file, as it was named."""
    sentence: str
    """The translation."""
    language: str
    """BCP 47 tag (or mBART code) of the sentence."""
    fps: float
    """Frame rate to which the video was brought; segments count frames at this rate."""
    frames: int
    """T, frames at `fps`."""
    segments: np.ndarray
    """int32 (N, 2): half-open frame intervals, one visual token each."""
    tagger: str
    """How it was cut: `segmentation.tagger`."""
    seconds: float
    """Time it took, decoding included."""
    score: float | None = None
    """Mean log-probability of a token (`Candidate.score`)."""
    sample: Sample = field(repr=False, compare=False)
    """The sample that the model saw; its frames make the figure."""

    def as_mapping(self) -> dict[str, Any]:
        """Returns a mapping for JSON, with segments as [start, end] in seconds."""
        return {
            "video": self.video,
            "sentence": self.sentence,
            "score": self.score,
            "language": self.language,
            "frames": self.frames,
            "fps": self.fps,
            "tagger": self.tagger,
            "segments_s": (np.asarray(self.segments) / self.fps).round(3).tolist(),
            "seconds": round(self.seconds, 2),
        }


class Translator:
    """A trained translator, loaded once for any number of videos."""

    def __init__(self, run: str | Path, device: str = "", overrides: Iterable[str] = ()) -> None:
        """`run` is a run folder or its `model/` export; `overrides` change its recipe (`evaluation.beams=1`).

        Raises CheckpointError without a model, RecipeError for a wrong override, UsageError for a missing device.
        """
        self.device = choose_device(device)
        self.model, self.tokenizer, trained = load_translator(run, self.device)
        if trained.finetune.glosses:
            raise UsageError(
                f"{run} was trained to read glosses (finetune.glosses), a ceiling: it translates no video"
            )
        self.recipe = override(trained, overrides)
        if self.recipe.segmentation.tagger == "auto":
            self.recipe = with_tagger(self.recipe, trained.segmentation.tagger)
        if "segmentation.labels" in self.recipe.given and not Path(self.recipe.segmentation.labels).exists():
            raise UsageError(f"segmentation.labels: there is no {self.recipe.segmentation.labels}")
        self.warnings = [*_other_than_trained(trained, self.recipe), *_older_keypoints(run, trained)]
        """Lines on the differences between the overrides and the training recipe."""
        on_gpu = dataclasses.replace(self.recipe.precompute, gpus_per_actor=float(self.device.type == "cuda"))
        plain = dataclasses.replace(self.recipe.vision, feature_views=1)
        self._makers: dict[str, SampleMaker] = {}
        self._plain = dataclasses.replace(self.recipe, precompute=on_gpu, vision=plain)
        self._shape = SampleShape.of(self.recipe)
        self._bf16 = self.recipe.finetune.precision != "fp32" and has_fast_bf16(self.device)

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

    def prepare(self, clip: Clip) -> tuple[Sample, PackedVideo]:
        """Returns the sample that precompute would store of `clip`, and the model's input from it (B = 1)."""
        clip, tagger = self.named(clip)
        if tagger not in self._makers:
            self._makers[tagger] = SampleMaker(override(self._plain, [f"segmentation.tagger={tagger}"]))
        sample = self._makers[tagger].make(clip)
        return sample, pack_sample(sample, self._shape).video

    def generate(
        self, videos: Sequence[PackedVideo], languages: str | Sequence[str] = "", count: int = 1
    ) -> list[list[Candidate]]:
        """Returns the `count` best sentences of each prepared clip, best first; all clips are translated at once.

        `languages` are the spoken languages of the sentences, or that of all; by default the model's own.
        """
        if not videos:
            return []
        spoken = self.recipe.corpus.language
        each = [languages] * len(videos) if isinstance(languages, str) else languages
        settings = self.recipe.evaluation
        packed = joined(videos).to(self.device)
        given: dict[str, Any] = {
            "beams": settings.beams,
            "max_tokens": settings.max_tokens,
            "length_penalty": settings.length_penalty,
        }
        asked = [language or spoken for language in each]
        with torch.no_grad(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            if not isinstance(self.model, SearchingModel):
                sentences = self.model.generate(packed, self.tokenizer, asked, **given)
                return [[Candidate(sentence)] for sentence in sentences]
            return self.model.search(
                *self.model.visual_tokens(packed), self.tokenizer, asked, **given, count=count
            )

    def translate(
        self, video: str | Path, language: str = "", start_s: float = 0.0, end_s: float | None = None
    ) -> Translation:
        """Returns the translation of a video file, or of an interval of it (seconds).

        Raises ClipRejected if the video is unreadable, too short or too long for the recipe.
        """
        began = time.monotonic()
        spoken = self.recipe.corpus.language
        clip = Clip(id=str(video), video=str(video), start_s=start_s, end_s=end_s, language=spoken)
        sample, packed = self.prepare(clip)
        ((best, *_),) = self.generate([packed], language)
        return Translation(
            video=str(video),
            sentence=best.sentence,
            score=best.score,
            language=language or spoken,
            fps=float(sample.meta["fps"]),
            frames=int(sample.meta["frames"]),
            segments=sample.segments,
            tagger=self.named(clip)[1],
            seconds=time.monotonic() - began,
            sample=sample,
        )


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


def _other_than_trained(trained: Recipe, wanted: Recipe) -> list[str]:
    before, now = flat(to_mapping(trained)), flat(to_mapping(wanted))
    apart = [f"{key}={now[key]} (trained on: {before[key]})" for key in sorted(wanted.given)
             if changes_samples(key) and now[key] != before[key]]  # fmt: skip
    return [f"cut or stored otherwise than the model was trained on: {', '.join(apart)}"] if apart else []


def _older_keypoints(run: str | Path, trained: Recipe) -> list[str]:
    """Returns a line where a run of 0.1.0, whose recipe has no later key, was trained on keypoints."""
    if trained.vision.kind != "features" or trained.vision.backbone != "keypoints":
        return []
    if "source_aspect:" in read_text(export_folder(run) / "recipe.yaml"):
        return []
    return [
        "trained by 0.1.0, which read .pose files without the aspect of their picture: their features are others now, "
        "those of .npz files are the same; precompute and train again (docs/keypoints.md)"
    ]


def choose_device(name: str = "") -> torch.device:
    """Returns the named device; by default the first GPU, else the CPU. Raises UsageError for a missing device."""
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError(
            f"no device '{name}' here: cpu" + (", cuda" if torch.cuda.is_available() else "")
        ) from None
    return device
