"""Runs of one recipe and different seeds form a group: the row of a table, the line of a chart.

Keys without effect on the result (the recipe's name, places of files) do not tell recipes apart. Runs on datasets that
are known to differ, and runs of the same seeds, are of different groups.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sage_scale.config import Recipe, from_mapping, to_mapping
from sage_scale.config.recipe import flat
from sage_scale.errors import RecipeError
from sage_scale.reporting.runlog import RunRecord
from sage_scale.untrusted.display import shortened

NO_EFFECT = (
    "name", "corpus.root", "precompute.", "watch.", "stream.cache", "stream.give_up", "stream.memory", "stream.warn",
    "stream.workers",
    *(f"{stage}.{key}" for stage in ("pretrain", "finetune") for key in (
        "async_save", "checkpoints", "keep_checkpoints", "offload_dir", "profile_steps", "save_every", "text_cache_mb",
        "wandb")),
)  # fmt: skip
"""Keys, or beginnings of keys, that do not tell recipes apart: places, resources, checkpoints, waiting."""
LONGEST_LABEL = 60
"""Characters of a group's name."""
_END_OF_NAME = re.compile(r"([-_./ =]+(seed|run|s|r)?)?[-_./ =]*\d*$", re.IGNORECASE)
"""The part of a run's name that numbers the runs of one recipe."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seeds alone."""

    letter: str
    """A, B, ...: its name where there is no room for more."""
    label: str
    records: tuple[RunRecord, ...]
    keys: Mapping[str, Any]
    """Values of the recipe by `section.key`, with defaults of keys that the run's version did not know; no seeds."""


def grouped(records: Sequence[RunRecord]) -> list[Group]:
    """Returns groups in the order of their first runs. Runs get names that tell them apart; one that is given twice
    counts once."""
    records = _named(list({record.folder.resolve(): record for record in records}.values()))
    found: list[_Members] = []
    for record in records:
        values, data, seeds = recipe_values(record), dataset(record), seeds_of(record)
        identity = canonical({key: value for key, value in values.items() if matters(key)})
        for members in found:
            same_data = members.data == data or not (members.data and data)
            if members.identity == identity and same_data and seeds not in members.seeds:
                members.data = members.data or data
                members.runs.append(record)
                members.seeds.add(seeds)
                break
        else:
            found.append(_Members(identity, data, values, [record], {seeds}))
    return [
        Group(letter=letter(at), label=label, records=tuple(members.runs), keys=members.keys)
        for at, (label, members) in enumerate(zip(_labels(found), found, strict=True))
    ]


@dataclass
class _Members:
    """A group while it is filled."""

    identity: str
    data: str
    keys: Mapping[str, Any]
    runs: list[RunRecord]
    seeds: set[str]


def recipe_values(record: RunRecord) -> dict[str, Any]:
    """Returns the values of a run's recipe by `section.key`, without its seeds; empty where it has no recipe."""
    if not record.recipe:
        return {}
    try:
        values = flat(to_mapping(from_mapping(record.recipe)))
    except RecipeError:  # of another version, or of a model that is not registered here
        values = flat(to_mapping(Recipe())) | flat(record.recipe)
    return {key: value for key, value in values.items() if not is_seed(key)}


def matters(key: str) -> bool:
    """Returns whether recipes that differ in a key are different ones."""
    return not key.startswith(NO_EFFECT)


def is_seed(key: str) -> bool:
    """Returns whether a key is a seed of training. That of the corpus is none: it makes other clips."""
    return key.endswith(".seed") and not key.startswith("corpus.")


def seeds_of(record: RunRecord, keys: Collection[str] = ()) -> str:
    """Returns a run's seeds, or those of some keys: `3` where they are equal, else `stream 0, pretrain 3`."""
    seeds = {
        key: value for key, value in flat(record.recipe).items() if is_seed(key) and (not keys or key in keys)
    }
    values = dict.fromkeys(map(shortened, seeds.values()))
    if len(values) < 2:
        return next(iter(values), "")
    return ", ".join(
        f"{shortened(key.removesuffix('.seed'))} {shortened(value)}" for key, value in seeds.items()
    )


def varying_seeds(groups: Sequence[Group]) -> list[str]:
    """Returns the keys of the seeds that are not the same in all runs."""
    every = [flat(record.recipe) for group in groups for record in group.records]
    keys = dict.fromkeys(key for values in every for key in values if is_seed(key))
    return [key for key in keys if len({canonical(values.get(key)) for values in every}) > 1]


def dataset(record: RunRecord) -> str:
    """Returns the digest of the dataset that the run was trained on; empty where its log does not say."""
    starts = (row for log in record.logs.values() for row in log.of_event("start"))
    return next((str(row["dataset"]).partition("-")[0] for row in starts if row.get("dataset")), "")


def differing(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Returns the recipe keys whose values differ between groups, with each group's value: None where it has none, and
    for a group without a recipe, which is not compared."""
    keys = dict.fromkeys(key for group in groups for key in group.keys)
    known = [group for group in groups if group.keys]
    return {
        key: [group.keys.get(key) for group in groups]
        for key in keys
        if matters(key) and len({canonical(group.keys.get(key)) for group in known}) > 1
    }


def letter(number: int) -> str:
    """Returns A, B, ... Z, AA, AB, ..."""
    return (letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def canonical(value: Any) -> str:
    """Returns a value as a text that equal values share: 1 and 1.0, a list and a tuple."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, Mapping):
        return json.dumps({str(key): canonical(item) for key, item in value.items()}, sort_keys=True)
    return json.dumps(
        [canonical(item) for item in value] if isinstance(value, list | tuple) else value, default=str
    )


def _named(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Returns records with as many of their folders' last names as tell them apart."""
    paths = [record.folder.resolve().parts for record in records]
    longest = max(map(len, paths), default=1)
    names: list[str] = []
    for depth in range(1, longest + 1):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    return [replace(record, called=name) for record, name in zip(records, names, strict=True)]


def _labels(found: Sequence[_Members]) -> list[str]:
    """Returns each group's name: its run's, the beginning that its runs' names share, its recipe's, or its values."""
    chosen = [_beginning([record.name for record in members.runs]) for members in found]
    recipes = [str(members.keys.get("name", "")) for members in found]
    for at, members in enumerate(found):
        if not chosen[at] or chosen.count(chosen[at]) > 1:
            others = [other.keys for other in found if other is not members]
            apart = ", ".join(
                f"{key}={value}" for key, value in members.keys.items()
                if matters(key) and any(canonical(value) != canonical(other.get(key)) for other in others)
            )  # fmt: skip
            only = recipes[at] if recipes.count(recipes[at]) == 1 else ""
            chosen[at] = only or apart or recipes[at] or "no recipe"
    return [shortened(label, LONGEST_LABEL) for label in chosen]


def _beginning(names: Sequence[str]) -> str:
    """Returns the beginning that all names share, without the part that numbers them; one name whole."""
    if len(names) == 1:
        return names[0]
    shared = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return _END_OF_NAME.sub("", "".join(letters[0] for letters in shared))
