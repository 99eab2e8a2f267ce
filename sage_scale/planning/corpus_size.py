"""Size of a corpus as a plan sees it: from a publication, from `corpus inspect --json`, or from a dataset."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sage_scale.config import Recipe
from sage_scale.errors import UsageError
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import expanded, read_bytes
from sage_scale.untrusted.json_values import InvalidJSON, build, parse_json_object
from sage_scale.untrusted.yaml_values import parse_yaml

if TYPE_CHECKING:
    from sage_scale.shards import Dataset

PUBLISHED = Path(__file__).with_name("corpora.yaml")
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class CorpusSize:
    """Clips of a corpus, and the means of one clip."""

    name: str
    source: str
    """Origin of the figures."""
    train: int
    """Training clips."""
    dev: int
    test: int
    """Clips of all other splits."""
    seconds: float
    """Mean length of a clip."""
    height: int
    """Height of the source's pictures, pixels; 0: keypoints alone."""
    words: float
    """Mean words of a sentence; characters, in languages written without spaces."""
    language: str
    pictures: bool = False
    """Whether a clip is a folder of picture files instead of a part of a video."""
    segments: float = 0.0
    """Mean sign segments of a clip; 0: by the tokens of a frame."""
    glosses: float = 0.0
    """Mean pseudo-glosses of a sentence; 0: by the words."""
    stored_bytes: float = 0.0
    """Mean bytes of a stored sample, headers included; 0: computed from the recipe."""

    @property
    def clips(self) -> int:
        """Returns the clips of all splits."""
        return self.train + self.dev + self.test

    @property
    def hours(self) -> float:
        """Returns the length of all clips."""
        return self.clips * self.seconds / 3600


@functools.cache
def published_sizes() -> Mapping[str, CorpusSize]:
    """Returns the sizes of published corpora by the names of their readers."""
    values = parse_yaml(PUBLISHED.read_bytes())
    return {name: CorpusSize(name=name, **entry) for name, entry in values.items()}


def corpus_size(recipe: Recipe, chosen: str = "") -> CorpusSize:
    """Returns the size of the corpus `chosen`: a reader's name, or a file of `corpus inspect --json`; empty: the
    recipe's own.

    Raises UsageError for a corpus without published size, and for a file of another kind.
    """
    name = chosen or recipe.corpus.name
    if name in published_sizes():
        size = published_sizes()[name]
        if name == "synthetic":
            corpus = recipe.corpus
            rest = corpus.test_clips + corpus.heldout_clips
            size = replace(size, train=corpus.train_clips, dev=corpus.dev_clips, test=rest)
        return size
    if chosen.endswith(".json"):
        return _inspected(chosen, recipe)
    raise UsageError(
        f"no size of the corpus '{shortened(name)}' is known ({', '.join(published_sizes())} are): look at it "
        "with `sage-scale corpus inspect --probe --json > inspect.json`, then give --corpus inspect.json"
    )


def dataset_size(recipe: Recipe, datasets: list[Dataset], height: int) -> CorpusSize:
    """Returns the size of datasets, from their indexes: bytes, frames, segments and pseudo-glosses of their samples.

    `height` is that of the pictures they were made from. Words come from 512 descriptions, evenly spaced.
    """
    from sage_scale.shards import read_metadata

    counts: dict[str, int] = {}
    for dataset in datasets:
        for split, clips in dataset.splits.items():
            counts[split] = counts.get(split, 0) + clips
    records = np.concatenate([dataset.records for dataset in datasets])
    if not len(records):
        raise UsageError(f"{datasets[0].url} has no sample: nothing to plan with")
    words = [w for dataset in datasets for w in _words(read_metadata(dataset, most=512))]
    train, dev = counts.get("train", 0), counts.get("dev", 0)
    return CorpusSize(
        name=", ".join(dataset.url for dataset in datasets),
        source="index of the dataset",
        train=train,
        dev=dev,
        test=sum(counts.values()) - train - dev,
        seconds=float(records["frames"].mean()) / recipe.vision.fps,
        height=height,
        words=float(np.mean(words)) if words else 0.0,
        language=recipe.corpus.language,
        segments=float(records["segments"].mean()),
        glosses=float(records["glosses"].mean()),
        stored_bytes=float(records["length"].mean()),
    )


def _words(texts: Any) -> list[int]:
    from sage_scale.text.languages import split_words

    return [len(split_words(meta["sentence"], meta["language"])) for meta in texts if meta["sentence"]]


@dataclass(frozen=True)
class _Split:
    name: str
    clips: int
    hours: float | None
    unknown_lengths: int
    mean_words: float


@dataclass(frozen=True)
class _Inspected:
    """The part of `corpus inspect --json` that a plan reads."""

    corpus: str
    language: str
    height: int
    splits: tuple[_Split, ...]


def _inspected(path: str, recipe: Recipe) -> CorpusSize:
    where = f"--corpus {shortened(path)}"
    try:
        values = parse_json_object(read_bytes(expanded(path), _MAX_BYTES))
        found = build(_Inspected, {name: values.get(name) for name in _Inspected.__dataclass_fields__})
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror or error}") from None
    except InvalidJSON as error:
        raise UsageError(f"{where}: not written by `sage-scale corpus inspect --json` ({error})") from None
    known = sum(split.clips - split.unknown_lengths for split in found.splits)
    hours = sum(split.hours or 0.0 for split in found.splits)
    if not known or not hours:
        raise UsageError(f"{where}: no clip's length is known: inspect again with --probe")
    clips = {split.name: split.clips for split in found.splits}
    total = sum(clips.values())
    words = sum(split.clips * split.mean_words for split in found.splits) / total
    train, dev = clips.get("train", 0), clips.get("dev", 0)
    return CorpusSize(
        name=found.corpus,
        source=f"`corpus inspect` in {Path(path).name}",
        train=train,
        dev=dev,
        test=total - train - dev,
        seconds=3600 * hours / known,
        height=found.height,
        words=words,
        language=found.language,
    )
