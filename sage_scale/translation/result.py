"""A translated video: the sentence with its score, segments and rests, warnings, and the model that wrote it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sage_scale.nn.beam_search import Candidate
from sage_scale.segmentation.motion import LEAST_REST_S
from sage_scale.segmentation.rules import O
from sage_scale.shards import Sample


@dataclass(frozen=True, kw_only=True)
class Translation:
    """A video with its segments and its translation."""

    video: str
    """The file, as it was named."""
    sentence: str
    """The translation, the first of `candidates`."""
    language: str
    """BCP 47 tag (or mBART code) of the sentence."""
    fps: float
    """Frame rate to which the video was brought; segments count frames at this rate."""
    frames: int
    """T, frames at `fps`."""
    segments: np.ndarray
    """int32 (N, 2): half-open frame intervals, one visual token each."""
    rests: tuple[tuple[int, int], ...] = ()
    """Half-open frame intervals at both ends in which the tagger found no sign; segments may reach into them."""
    tagger: str
    """How it was cut: `segmentation.tagger`."""
    seconds: float
    """Time it took, decoding included; of clips translated together, the time of all."""
    candidates: tuple[Candidate, ...] = ()
    """The best sentences with their scores, best first."""
    percentile: float | None = None
    """Share of dev sentences, in percent, whose score is not above this one's; None if it is not known."""
    warnings: tuple[str, ...] = ()
    """Lines on what makes the sentence unreliable."""
    model: str = ""
    """Identity of the model: 16 hex digits, a hash of its files."""
    trained_on: str = ""
    """One line on the model's training data."""
    sample: Sample = field(repr=False, compare=False)
    """The sample that the model saw; its frames make the figure."""

    @property
    def score(self) -> float | None:
        """The mean log-probability of a token of the sentence; None of a model that gives none."""
        return self.candidates[0].score if self.candidates else None

    def score_line(self) -> str:
        """Returns the score in words, empty without one."""
        if self.score is None:
            return ""
        above = "" if self.percentile is None else f", higher than {self.percentile:.0f}% of dev sentences"
        return f"score {self.score:.2f}{above}"

    def as_mapping(self) -> dict[str, Any]:
        """Returns a mapping for JSON, with segments and rests as [start, end] in seconds."""
        return {
            "video": self.video,
            "sentence": self.sentence,
            "score": _rounded(self.score, 4),
            "percentile": _rounded(self.percentile, 1),
            "candidates": [
                {"sentence": other.sentence, "score": _rounded(other.score, 4)} for other in self.candidates
            ],
            "warnings": list(self.warnings),
            "language": self.language,
            "frames": self.frames,
            "fps": self.fps,
            "tagger": self.tagger,
            "segments_s": (np.asarray(self.segments) / self.fps).round(3).tolist(),
            "rests_s": (np.array(self.rests).reshape(-1, 2) / self.fps).round(3).tolist(),
            "seconds": round(self.seconds, 2),
            "model": self.model,
            "trained_on": self.trained_on,
        }


def rests_of(labels_T: np.ndarray, fps: float) -> tuple[tuple[int, int], ...]:
    """Returns the half-open frame intervals of O at both ends of a clip's labels, at least LEAST_REST_S long; all of a
    clip without a sign."""
    signed, total = np.flatnonzero(labels_T != O), len(labels_T)
    if not len(signed):
        return ((0, total),)
    ends = (0, int(signed[0])), (int(signed[-1]) + 1, total)
    return tuple((start, end) for start, end in ends if end - start >= LEAST_REST_S * fps)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
