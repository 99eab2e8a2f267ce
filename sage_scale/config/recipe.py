"""A recipe: all sections, as plain values, as YAML, and as fingerprints."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml

from sage_scale.config.data import Corpus, Precompute, Segmentation, Shards, Stream, Text, Vision
from sage_scale.config.extension import FIRST_DATASETS, FIRST_RELEASE
from sage_scale.config.learning import Clcl, Denoise, Evaluation, Model, Stage, Watch, model_section
from sage_scale.config.sign2gpt import Prototypes


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The configuration of a run."""

    name: str = "custom"
    """Name of the recipe."""
    corpus: Corpus = field(default_factory=Corpus)
    """Source of the clips."""
    text: Text = field(default_factory=Text)
    """Pseudo-glosses and vocabulary."""
    vision: Vision = field(default_factory=Vision)
    """Frames and features."""
    segmentation: Segmentation = field(default_factory=Segmentation)
    """Sign segments."""
    shards: Shards = field(default_factory=Shards)
    """Work units."""
    precompute: Precompute = field(default_factory=Precompute)
    """Resources of preprocessing."""
    stream: Stream = field(default_factory=Stream)
    """Order of samples."""
    model: Model = field(default_factory=model_section)
    """The translator."""
    clcl: Clcl = field(default_factory=Clcl)
    """Contrastive objective."""
    prototypes: Prototypes = field(default_factory=Prototypes)
    """Prototype pretraining of Sign2GPT."""
    denoise: Denoise = field(default_factory=Denoise)
    """The demo's language model."""
    pretrain: Stage = field(default_factory=Stage)
    """Stage 1."""
    finetune: Stage = field(
        default_factory=lambda: Stage(batch_size=8, lr=0.004, weight_decay=0.001, clip=5.0)
    )
    """Stage 2."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """Decoding."""
    watch: Watch = field(default_factory=Watch)
    """Rank monitor."""
    given: ClassVar[frozenset[str]] = frozenset()
    """Keys given as overrides (set by `override`), which a dataset's values do not replace; not a key itself."""

    def fingerprint(self) -> str:
        """Returns 16 hex digits of sha256 over the canonical JSON of all values except the name."""
        values = without_younger_defaults(self, FIRST_RELEASE)
        del values["name"]
        return digest(values)

    def dataset_part(self) -> dict[str, Any]:
        """Returns the sections that decide the bytes of a dataset: text, vision, segmentation and shard size."""
        values = without_younger_defaults(self, FIRST_DATASETS)
        part = {key: values[key] for key in ("vision", "segmentation", "shards", "text")}
        part["corpus"] = {key: values["corpus"][key] for key in ("name", "language")}
        del part["text"]["trim_vocabulary"], part["shards"]["max_reject_rate"]
        if self.vision.feature_views == 1:
            del part["vision"]["view_augment"]  # there are no augmented views
        return part

    def corpus_part(self) -> dict[str, Any]:
        """Returns the keys that decide which clips a corpus has, less those of `dataset_part`."""
        values = to_mapping(self.corpus)
        return {key: value for key, value in values.items() if key not in ("root", "name", "language")}

    def dataset_fingerprint(self) -> str:
        """Returns 16 hex digits of sha256 over `dataset_part`; two recipes that share it may share shards."""
        return digest(self.dataset_part())


def digest(values: Any) -> str:
    """Returns 16 hex digits of sha256 over the values as canonical JSON."""
    canonical = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def without_younger_defaults(
    section: Any, age: tuple[int, ...], default: Any = None, younger: bool = False
) -> dict[str, Any]:
    """Returns a section (or recipe) as nested dictionaries without the keys that came after version `age` and have
    their default value, so that adding a key changes no fingerprint.

    `default` is the section with its default values, and `younger` says that all of it came after `age`.
    """
    found: dict[str, Any] = {}
    default = default or type(section)()
    for f in dataclasses.fields(section):
        value, usual = getattr(section, f.name), getattr(default, f.name)
        new = younger or f.metadata.get("since", ()) > age
        if dataclasses.is_dataclass(value):
            below = without_younger_defaults(value, age, usual, new)
            if below or not new:
                found[f.name] = below
        elif not new or value != usual:
            found[f.name] = to_mapping(value)
    return found


def to_mapping(value: Any) -> Any:
    """Returns a recipe (or a part of it) as plain dictionaries, lists and scalars."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_mapping(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested sections as `section.key`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `section.key` as nested sections, the reverse of `flat`."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        *parents, last = path.split(".")
        node = found
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return found


def values_of(parts: Iterable[Mapping[str, Any]], more: Iterable[Any] = ()) -> dict[str, list[Any]]:
    """Returns the different values that each key has in `parts` (`section.key`), in their order.

    `more` are mappings from keys to lists of values, as this function returns them; others are left out.
    """
    found: dict[str, list[Any]] = {}
    several = [{key: [value] for key, value in part.items()} for part in parts]
    for one in more:
        if isinstance(one, Mapping):
            several.append({key: some for key, some in one.items() if isinstance(some, list)})
    for values in several:
        for key, some in values.items():
            there = found.setdefault(key, [])
            there += [value for value in some if value not in there]
    return found


def to_yaml(recipe: Recipe) -> str:
    """Returns the whole recipe as YAML in the order of its fields, with escapes for characters that do not print."""
    text = yaml.safe_dump(to_mapping(recipe), sort_keys=False, allow_unicode=True)
    if all(line.isprintable() for line in text.split("\n")):
        return text
    return yaml.safe_dump(to_mapping(recipe), sort_keys=False)
