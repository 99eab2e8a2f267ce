"""Translating video files with an exported model.

A file goes the same way as a clip of a dataset: decoded, segmented and stored as a sample by the precompute's own
code, then unpacked by the trainer's. So the pixels that the model sees are those it would have seen in a shard,
JPEG included, and the sentence is the one that `sage-scale evaluate` would have written.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sage_scale.config import override
from sage_scale.corpora.clip import Clip
from sage_scale.errors import UsageError
from sage_scale.precompute.sample import SampleMaker
from sage_scale.shards import Sample
from sage_scale.streaming.batches import SampleShape
from sage_scale.streaming.packing import collate, decode_sample
from sage_scale.training.engine import fast_bf16
from sage_scale.training.export import load_translator
from sage_scale.vision.packed import PackedVideo


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A video and what it says."""

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
    seconds: float
    """Time it took, decoding included."""
    sample: Sample = field(repr=False, compare=False)
    """The sample that the model saw; its frames make the figure."""

    def as_mapping(self) -> dict[str, Any]:
        """For JSON: segments as [start, end] in seconds."""
        return {
            "video": self.video,
            "sentence": self.sentence,
            "language": self.language,
            "frames": self.frames,
            "fps": self.fps,
            "segments_s": (np.asarray(self.segments) / self.fps).round(3).tolist(),
            "seconds": round(self.seconds, 2),
        }


class VideoTranslator:
    """A trained translator, loaded once, for any number of videos."""

    def __init__(self, run: str | Path, device: str = "", overrides: Iterable[str] = ()) -> None:
        """`run` is a run folder or its `model/` export; `overrides` change its recipe (`evaluation.beams=1`).

        Raises CheckpointError where there is no model, RecipeError for a wrong override, UsageError for a device
        that is not there.
        """
        self.device = choose_device(device)
        self.model, self.tokenizer, recipe = load_translator(run, self.device)
        self.recipe = override(recipe, overrides)
        on_gpu = dataclasses.replace(self.recipe.precompute, gpus_per_actor=float(self.device.type == "cuda"))
        plain = dataclasses.replace(self.recipe.vision, feature_views=1)
        self._maker = SampleMaker(dataclasses.replace(self.recipe, precompute=on_gpu, vision=plain))
        self._shape = SampleShape.of(self.recipe)
        self._bf16 = self.recipe.finetune.precision != "fp32" and fast_bf16(self.device)

    def prepare(self, clip: Clip) -> tuple[Sample, PackedVideo]:
        """The sample that precompute would store of `clip`, and what a trainer would give the model of it (B = 1)."""
        sample = self._maker.make(clip)
        batch = collate(
            [decode_sample(sample, self._shape)], self._shape, seed=0, positions_B=np.zeros(1, np.int64),
            global_batch=1, epoch=0, position=0,
        )  # fmt: skip
        return sample, batch.video

    def translate(
        self, video: str | Path, language: str = "", start_s: float = 0.0, end_s: float | None = None
    ) -> Translation:
        """The sentence of one video file, or of a stretch of it (seconds).

        Raises ClipRejected where the video is unreadable, too short or too long for the recipe.
        """
        began = time.monotonic()
        spoken = self.recipe.corpus.language
        sample, packed = self.prepare(
            Clip(id=str(video), video=str(video), start_s=start_s, end_s=end_s, language=spoken)
        )
        settings = self.recipe.evaluation
        with torch.no_grad(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            (sentence,) = self.model.generate(
                packed.to(self.device),
                self.tokenizer,
                [language or spoken],
                beams=settings.beams,
                max_tokens=settings.max_tokens,
                length_penalty=settings.length_penalty,
            )
        return Translation(
            video=str(video),
            sentence=sentence,
            language=language or spoken,
            fps=float(sample.meta["fps"]),
            frames=int(sample.meta["frames"]),
            segments=sample.segments,
            seconds=time.monotonic() - began,
            sample=sample,
        )


def choose_device(name: str = "") -> torch.device:
    """The named device, or the first GPU where there is one. Raises UsageError for one that is not there."""
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
