"""`card.json` of a model folder: the training data, the scores, and the identity of a trained translator.

Written when stage 2 ends, and again when `evaluate` scores the run. Folders of 0.1.0 have none.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from sage_scale.config import Recipe
from sage_scale.corpora.signing import INVENTED, SIGN_LANGUAGES
from sage_scale.errors import CheckpointError
from sage_scale.shards import HAS_SENTENCE, Dataset, notice_note
from sage_scale.training.familiarity import FILE as FAMILIARITY
from sage_scale.training.inherited import recorded_keys
from sage_scale.untrusted.files import read_bytes
from sage_scale.untrusted.hashes import add_hash, read_hashes
from sage_scale.untrusted.json_values import InvalidJSON, build, parse_json_object

FILE = "card.json"
SHOWN = ("bleu4", "rouge_l", "chrf")


@dataclass(frozen=True)
class _Scores:
    """Types of an entry of `scores`, which a stranger's file may lack."""

    bleu4: float
    rouge_l: float = 0.0
    chrf: float = 0.0
    intervals: dict[str, list[float]] = field(default_factory=dict)
    controls: dict[str, dict[str, float]] = field(default_factory=dict)
    signature: str = ""
    clips: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The provenance of one trained translator."""

    format: int = 1
    id: str
    """16 hex digits: hash of the weights and of all other files but recipe, card and familiarity."""
    model: str
    """Model kind, `model.kind`."""
    corpora: tuple[str, ...]
    """Corpus readers of the training data; empty if a dataset of 0.1.0 names none."""
    sign_languages: tuple[str, ...]
    """ISO 639-3 codes; empty if unknown, or if the signs are invented."""
    languages: tuple[str, ...]
    """BCP 47 tags of the sentences."""
    notice: str = ""
    """The sentence that stands beside figures on synthetic or acted data."""
    clips: dict[str, int]
    """Split -> clips."""
    clip_seconds: tuple[float, ...] = ()
    """Between which lengths 98% of the training clips lie, seconds; empty in cards that do not say."""
    tagger: str
    """How clips were cut into segments."""
    rule: str
    segmenters: tuple[str, ...] = ()
    """Hashes of the tagger's weights, one for each that cut training data; empty for a tagger without a model."""
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Split -> main scores, their `intervals` and `controls`, and `signature`."""
    trained: str
    """Date of the export, YYYY-MM-DD."""
    version: str
    """Version of sage-scale."""

    @property
    def invented(self) -> bool:
        """Returns whether the training data are no sign language."""
        return bool(self.corpora) and all(corpus in INVENTED for corpus in self.corpora)

    def line(self) -> str:
        """Returns the training data, the cutting and the test score in one line."""
        signing = ", ".join(self.sign_languages) or "sign language unknown"
        if self.invented:
            signing = "invented signs of no sign language"
        parts = [
            f"{' and '.join(self.corpora) or 'unknown corpus'} ({signing}; sentences: {', '.join(self.languages)})",
            f"{self.clips.get('train', 0):,} clips",
            f"cut by {self.tagger}, {self.rule}",
        ]
        for split in ("test", *self.scores):
            if split in self.scores:
                parts.append(f"BLEU-4 {self.scores[split]['bleu4']:.1f} on {split}")
                break
        return f"model {self.id}, trained on {'; '.join(parts)}"


def write_card(folder: Path, recipe: Recipe, datasets: Sequence[Dataset]) -> None:
    """Write the card of a finished export, whose hashes are there."""
    corpora, signing = dict[str, None](), dict[str, None]()
    languages, clips, segmenters = set[str](), Counter[str](), dict[str, None]()
    for dataset in datasets:
        keys = recorded_keys(dataset)
        name = str(keys.get("corpus.name", ""))
        corpora[name] = None
        signing |= dict.fromkeys(SIGN_LANGUAGES.get(name, keys.get("corpus.sign_languages", ())))
        languages |= {tag or recipe.corpus.language for tag in _training_languages(dataset)}
        clips.update(dataset.splits)
        segmenters |= dict.fromkeys(dataset.info.versions.get("segmenter_sha256", "").split(" | "))
    _write(
        folder,
        ModelCard(
            id=model_id(folder), model=recipe.model.kind, corpora=tuple(name for name in corpora if name),
            sign_languages=tuple(signing), languages=tuple(sorted(languages)),
            notice=notice_note(datasets).get("notice", ""), clips=dict(clips),
            clip_seconds=_clip_seconds(recipe, datasets),
            tagger=recipe.segmentation.tagger, rule=recipe.segmentation.rule,
            segmenters=tuple(name for name in segmenters if name not in ("", "none")),
            trained=time.strftime("%Y-%m-%d"), version=importlib.metadata.version("sage-scale"),
        ),
    )  # fmt: skip


def add_scores(folder: Path, split: str, entry: Mapping[str, Any]) -> None:
    """Put the scores of a split (an entry of scores.json) into the card of an export; one without a card is left."""
    card = read_card(folder)
    if card is not None:
        scores = {**card.scores, split: _main(entry)}
        if isinstance(entry.get("heldout"), Mapping):
            scores[f"{split}_heldout"] = _main(entry["heldout"])
        _write(folder, dataclasses.replace(card, scores=scores))


def copy_card(source: Path, folder: Path) -> None:
    """Write the card of the export `source` to a copy of it in another form, which has an identity of its own."""
    card = read_card(source)
    if card is not None:
        _write(folder, dataclasses.replace(card, id=model_id(folder)))


def read_card(folder: Path) -> ModelCard | None:
    """Returns the card of an export; None of a folder of 0.1.0. Raises CheckpointError for a damaged one."""
    path = folder / FILE
    try:
        card: ModelCard = build(ModelCard, parse_json_object(read_bytes(path)))
        for entry in card.scores.values():
            scores = build(_Scores, entry)
            if any(len(pair) != 2 for pair in scores.intervals.values()):
                raise InvalidJSON("'intervals' are not two numbers each")
            if any("bleu4" not in control for control in scores.controls.values()):
                raise InvalidJSON("a control has no 'bleu4'")
    except FileNotFoundError:
        return None
    except (InvalidJSON, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): export the model again, or delete it") from None
    return card


def model_id(folder: Path) -> str:
    """Returns 16 hex digits of the files of an export, but recipe, card and familiarity, which change later."""
    files = {name: row for name, row in read_hashes(folder).items() if name not in (FILE, FAMILIARITY)}
    return xxhash.xxh3_64_hexdigest(json.dumps(files, sort_keys=True).encode())


def _training_languages(dataset: Dataset) -> set[str]:
    if "train" not in dataset.splits:
        return set()
    table = dataset.samples("train")
    written = table.language[table.flags & HAS_SENTENCE != 0]
    return {dataset.languages[number] for number in np.unique(written).tolist()}


def _clip_seconds(recipe: Recipe, datasets: Sequence[Dataset]) -> tuple[float, ...]:
    tables = [dataset.samples("train") for dataset in datasets if "train" in dataset.splits]
    if not sum(len(table) for table in tables):
        return ()
    frames = np.concatenate([table.frames for table in tables])
    return tuple(round(float(limit), 2) for limit in np.quantile(frames, (0.01, 0.99)) / recipe.vision.fps)


def _write(folder: Path, card: ModelCard) -> None:
    partial = folder / f"{FILE}.partial"
    partial.write_text(
        json.dumps(dataclasses.asdict(card), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    partial.replace(folder / FILE)
    add_hash(folder, FILE)


def _main(entry: Mapping[str, Any]) -> dict[str, Any]:
    controls = entry.get("controls", {})
    return {
        **{name: entry[name] for name in SHOWN if name in entry},
        "intervals": {name: pair for name, pair in entry.get("intervals", {}).items() if name in SHOWN},
        "controls": {name: {"bleu4": scores["bleu4"]} for name, scores in controls.items()},
        "signature": entry.get("signature", ""),
        "clips": entry.get("clips", 0),
    }
