"""Translates video files with an exported model.

A video is processed like a clip of a dataset: precompute's code decodes, segments and stores it as a sample, and the
trainer's code unpacks it. The model therefore sees the same pixels as from a shard, after JPEG, and returns the
sentence that `sage-scale evaluate` would write.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sage_scale.config import Recipe, override
from sage_scale.config.recipe import flat, to_mapping
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import UsageError
from sage_scale.nn.beam_search import Candidate
from sage_scale.segmentation.choice import with_tagger
from sage_scale.segmentation.tagger import has_model, segmenter_fingerprint
from sage_scale.shards import Sample
from sage_scale.text.languages import language_tag, matches
from sage_scale.training.engine import has_fast_bf16
from sage_scale.training.export import SearchingModel, export_folder, load_translator
from sage_scale.training.familiarity import read_familiarity
from sage_scale.training.inherited import changes_samples
from sage_scale.training.model_card import model_id, read_card
from sage_scale.training.run_place import HUB, model_folder
from sage_scale.translation.preparation import NEEDS, NEEDS_KEYPOINTS, Preparation
from sage_scale.translation.result import Translation
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import expanded, read_text
from sage_scale.vision.packed import PackedVideo, joined

if TYPE_CHECKING:
    from sage_scale.translation.captions import Caption

UNKNOWN = (
    "model {}, exported before 0.2.0: it does not say what it was trained on (evaluate it to add warnings)"
)


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
        export = export_folder(run)
        self.card = read_card(export)
        self.familiarity = read_familiarity(export)
        self.model_id = self.card.id if self.card else model_id(export)
        """16 hex digits, a hash of the model's files."""
        self.trained_on = self.card.line() if self.card else UNKNOWN.format(self.model_id)
        """One line on the training data."""
        if self.card and self.card.notice:
            self.trained_on += f"; {self.card.notice}"
        self.preparation = Preparation(self.recipe, self.device.type == "cuda")
        self._bf16 = self.recipe.finetune.precision != "fp32" and has_fast_bf16(self.device)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, device: str = "", overrides: Iterable[str] = (), revision: str | None = None
    ) -> Translator:
        """Returns the translator of a folder (of `models export`, or a run), of a run's URL, or of a name on the
        Hugging Face hub, with or without `hf://`.

        `revision` is a branch, tag or commit of the hub's repository. Raises NoModel where there is none, else as
        `Translator`.
        """
        if not expanded(model).exists() and re.fullmatch(r"(hf://)?[\w.-]+/[\w.-]+", str(model)):
            model = f"{HUB}{str(model).removeprefix(HUB)}{'@' if revision else ''}{revision or ''}"
        return cls(model_folder(model), device, overrides)

    def check(self, language: str = "", candidates: int = 1) -> str:
        """Returns the language of the sentence: the given one, or by default the model's own.

        Raises UsageError for one that the model was not trained on, naming those that it was, and for more candidates
        than beams.
        """
        beams = self.recipe.evaluation.beams
        if not 1 <= candidates <= beams:
            raise UsageError(
                f"{candidates} candidates: beam search has 1 to evaluation.beams={beams} of them; "
                f"--set evaluation.beams={max(candidates, 1)} gives more"
            )
        known = self.card.languages if self.card else ()
        own = self.recipe.corpus.language
        if not language:
            return own if own in known or not known else known[0]
        if known and language not in known:
            tag = language_tag(language) or language
            if not any(matches(tag, other) or matches(other, tag) for other in known):
                raise UsageError(
                    f"--language {shortened(language, 40)}: this model was trained on {', '.join(known)} alone, and "
                    "can write nothing else"
                )
        return language

    def prepare(self, clip: Clip) -> tuple[Sample, PackedVideo]:
        """Returns the sample that precompute would store of `clip`, and the model's input from it (B = 1).

        The description of the sample also has `tagger` and `rests` (`Translation`). Raises ClipRejected.
        """
        return self.preparation.prepare(clip)

    def generate(
        self, videos: Sequence[PackedVideo], languages: str | Sequence[str] = "", count: int = 1
    ) -> list[list[Candidate]]:
        """Returns the `count` best sentences of each prepared clip, best first; all clips are translated at once.

        `languages` are the spoken languages of the sentences, or that of all; by default the model's own. Raises
        UsageError for a language that the model was not trained on, and for more candidates than beams.
        """
        return [candidates for candidates, _ in self._generated(videos, languages, count)]

    def _generated(
        self, videos: Sequence[PackedVideo], languages: str | Sequence[str], count: int
    ) -> list[tuple[list[Candidate], list[str]]]:
        """Returns `generate`, and the lines on unfamiliar signing, of each clip."""
        settings = self.recipe.evaluation
        each = [languages] * len(videos) if isinstance(languages, str) else languages
        asked = [self.check(language, count) for language in each]
        if not videos:
            return []
        packed = joined(videos).to(self.device)
        given: dict[str, Any] = {
            "beams": settings.beams,
            "max_tokens": settings.max_tokens,
            "length_penalty": settings.length_penalty,
        }
        with torch.no_grad(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            if not isinstance(self.model, SearchingModel):
                sentences = self.model.generate(packed, self.tokenizer, asked, **given)
                return [([Candidate(sentence)], []) for sentence in sentences]
            tokens_ND, lengths_B = self.model.visual_tokens(packed)
            found = self.model.search(tokens_ND, lengths_B, self.tokenizer, asked, **given, count=count)
        parts = tokens_ND.split(lengths_B.tolist())
        known = self.familiarity
        return [
            (candidates, known.warnings(part) if known else [])
            for candidates, part in zip(found, parts, strict=True)
        ]

    def translate(
        self,
        video: str | Path,
        language: str = "",
        start_s: float = 0.0,
        end_s: float | None = None,
        candidates: int = 1,
    ) -> Translation:
        """Returns the translation of a video file, or of an interval of it (seconds), with its best `candidates`.

        Raises ClipRejected if the video is unreadable, too short or too long for the recipe, UsageError as `generate`.
        """
        began, own = time.monotonic(), self.recipe.corpus.language
        self.check(language, candidates)
        clip = Clip(id=str(video), video=str(video), start_s=start_s, end_s=end_s, language=own)
        return self.translate_prepared([(clip, *self.prepare(clip))], language, candidates, began)[0]

    def translate_prepared(
        self,
        prepared: Sequence[tuple[Clip, Sample, PackedVideo]],
        language: str = "",
        candidates: int = 1,
        began: float | None = None,
    ) -> list[Translation]:
        """Returns the translations of clips with what `prepare` made of them, all translated at once.

        `began` is the time.monotonic() from which their seconds are counted.
        """
        began = time.monotonic() if began is None else began
        found = self._generated([video for _, _, video in prepared], language, candidates)
        seconds = time.monotonic() - began
        return [
            Translation(
                video=clip.video,
                sentence=best[0].sentence,
                candidates=tuple(best),
                percentile=self.familiarity.percentile(best[0].score) if self.familiarity else None,
                warnings=(*self.warnings, *self._doubts(sample), *unfamiliar),
                language=self.check(language),
                fps=float(sample.meta["fps"]),
                frames=int(sample.meta["frames"]),
                segments=sample.segments,
                rests=tuple((start, end) for start, end in sample.meta["rests"]),
                tagger=sample.meta["tagger"],
                seconds=seconds,
                model=self.model_id,
                trained_on=self.trained_on,
                sample=sample,
            )
            for (clip, sample, _), (best, unfamiliar) in zip(prepared, found, strict=True)
        ]

    def captions(
        self,
        source: str | Path | Iterable[tuple[float, np.ndarray]],
        language: str = "",
        start_s: float = 0.0,
        end_s: float | None = None,
        candidates: int = 1,
        on_read: Callable[[float, float | None], None] = lambda time_s, end_s: None,
        on_note: Callable[[str], None] = lambda line: None,
    ) -> Iterator[Caption]:
        """Yields the captions of a long video, cut at its pauses (`translation.captions`), while it is read.

        `source` is a video, a folder of pictures, a keypoint file, or live: pairs of seconds and picture, uint8
        (H, W, 3) RGB, whose captions come as soon as a pause ends. `on_read` is told of the time up to which the source
        was read, and its end (None if unknown), `on_note` lines on parts that could not be read. Errors as `translate`.
        """
        from sage_scale.translation.captions import file_captions, live_captions

        self.check(language, candidates)
        if isinstance(source, str | Path):
            return file_captions(self, source, language, start_s, end_s, candidates, on_read, on_note)
        if start_s or end_s is not None:
            raise UsageError("a live source has no start_s and end_s: leave pictures out of it instead")
        return live_captions(self, source, language, candidates, on_note)

    def _doubts(self, sample: Sample) -> list[str]:
        """Returns the lines on another tagger than training's, and on a video without signing."""
        tagger, trained = sample.meta["tagger"], self.recipe.segmentation.tagger
        lines = []
        if tagger != trained:
            lines.append(
                f"cut by {tagger}: the model was trained on {trained} segments, and "
                f"{NEEDS.get(trained, NEEDS_KEYPOINTS)}"
            )
        elif self._other_segmenter():
            lines.append(
                f"cut by {tagger} with other weights than the training data: its segments may differ"
            )
        if [tuple(rest) for rest in sample.meta["rests"]] == [(0, sample.meta["frames"])]:
            lines.append(f"no sign was found in this video ({tagger}): the sentence is made up")
        return lines

    def _other_segmenter(self) -> bool:
        """Returns whether the tagger's model is none of those that cut the training data."""
        known = self.card.segmenters if self.card else ()
        segmentation = self.recipe.segmentation
        return bool(known) and has_model(segmentation) and segmenter_fingerprint(segmentation) not in known


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
