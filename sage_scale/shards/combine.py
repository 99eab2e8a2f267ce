"""Datasets made from datasets: several into one (`merge_datasets`), one into parts (`split_dataset`).

Nothing is decoded: the bytes of a sample are copied as they are, after their hash was checked, into shards with
headers of their own. What is made follows from the sources and the arguments alone, so that a run that was killed is
taken up by running it again, as precompute is.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sage_scale.config.recipe import flat, values_of
from sage_scale.errors import DatasetError, UsageError
from sage_scale.shards.commit import finish_dataset, publish_shard, restore_marker, start_dataset
from sage_scale.shards.dataset import Dataset, in_parallel, list_units, open_finished, read_rejects
from sage_scale.shards.generations import Progress
from sage_scale.shards.layout import DatasetInfo, PlannedUnit, Reject, ShardHeader, canonical_json
from sage_scale.shards.removed import PREFIX
from sage_scale.shards.sample import sample_hash
from sage_scale.shards.tar import BLOCK, header, padding
from sage_scale.shards.writer import write_copies
from sage_scale.storage import Store
from sage_scale.untrusted.json_values import parse_stored

READ_BYTES = 32 << 20
"""Neighbouring samples are read together, up to this many bytes."""
MAY_DIFFER = ("jpeg_quality",)
"""Settings of `vision` that leave two datasets alike."""
NAMED = 3


@dataclass(frozen=True)
class Run:
    """Samples of one source unit: rows of the source's records."""

    source: int
    unit: int
    """Ordinal of the unit in its dataset."""
    rows: tuple[int, ...]


@dataclass(frozen=True)
class NewUnit:
    """A shard to be made."""

    split: str
    runs: tuple[Run, ...]
    rejects_of: tuple[tuple[int, int], ...] = ()
    """(source, unit) whose rejects it takes over."""
    rename: bool = False
    """Write `split` into the samples' descriptions."""

    @property
    def samples(self) -> int:
        return sum(len(run.rows) for run in self.runs)


def merge_datasets(
    out: Store, sources: Sequence[Dataset], *, first_wins: bool = False, progress: Progress | None = None
) -> Dataset:
    """All samples of the sources, unit after unit, as one dataset in `out`.

    Raises UsageError where the sources are not alike, or hold a clip twice, unless the first one is to win.
    """
    alike = _common_info(sources)
    _check_places(out, sources)
    seen: set[int] = set()
    doubles: list[str] = []
    units: list[NewUnit] = []
    planned: list[PlannedUnit] = []
    for number, source in enumerate(sources):
        for ordinal, rows in enumerate(_rows_by_unit(source)):
            kept = []
            for row in rows:
                key = int(source.records[row]["key"])
                if key in seen:
                    doubles.append(f"{key:016x} (of {source.url})")
                else:
                    seen.add(key)
                    kept.append(row)
            unit = source.units[ordinal]
            units.append(NewUnit(unit.split, (Run(number, ordinal, tuple(kept)),), ((number, ordinal),)))
            planned.append(PlannedUnit(split=unit.split, clips=len(kept) + unit.rejects))
    if doubles and not first_wins:
        named = ", ".join(doubles[:NAMED]) + (", ..." if len(doubles) > NAMED else "")
        raise UsageError(
            f"{len(doubles)} clips are in more than one dataset: {named}; nothing was done. With "
            "--duplicates first each is taken from the dataset that is named first"
        )
    info = DatasetInfo(
        units=tuple(planned),
        manifest=_digest(*(source.info.manifest for source in sources)),
        notes={"made_by": "merge", "made_from": [source.digest for source in sources], **_differing(sources)},
        **alike,
    )
    return _compose(out, info, sources, units, progress)


def split_dataset(
    source: Dataset,
    outs: Mapping[str, Store],
    parts: Mapping[str, np.ndarray],
    *,
    as_splits: bool = False,
    progress: Progress | None = None,
) -> dict[str, Dataset]:
    """The rows of each part as a dataset of its own, in which the splits are as they were.

    With `as_splits` all parts become one dataset (the store of each is then the same) whose splits they are; of each
    sample only the word `split` in its description is written anew. What the source left out (its rejects) stays there.
    """
    for out in outs.values():
        _check_places(out, [source])
    alike = _common_info([source])
    clips = max((unit.samples for unit in source.units), default=1)
    units = {name: _chunks(source, rows, clips, name if as_splits else "") for name, rows in parts.items()}
    if as_splits:
        joined = [unit for name in parts for unit in units[name]]
        units, outs = {"": joined}, {"": next(iter(outs.values()))}
    made = {}
    for name, new in units.items():
        info = DatasetInfo(
            units=tuple(PlannedUnit(split=unit.split, clips=unit.samples) for unit in new),
            manifest=_digest(
                source.info.manifest, *(str(row) for unit in new for run in unit.runs for row in run.rows)
            ),
            notes={
                "made_by": f"split {name}".strip(),
                "made_from": [source.digest],
                **_differing([source]),
            },
            **alike,
        )
        made[name] = _compose(outs[name], info, [source], new, progress)
    return made


def _compose(
    out: Store,
    info: DatasetInfo,
    sources: Sequence[Dataset],
    units: Sequence[NewUnit],
    progress: Progress | None,
) -> Dataset:
    start_dataset(out, info)
    for source in sources:  # who was taken out of a source is out of what is made from it
        for entry in source.store.list(PREFIX):
            out.put_if_absent(entry.name, source.store.get(entry.name))
    finished = open_finished(out)
    if finished is not None:
        return finished
    listing = list_units(out)
    sizes = [_size(sources, unit) for unit in units]
    done = [number for number in range(len(units)) if number in listing.done]
    left = [number for number in range(len(units)) if number not in listing.done]

    def make(number: int) -> None:
        if number in listing.unmarked:
            restore_marker(out, number)
        else:
            with tempfile.TemporaryDirectory(prefix="sage-scale-") as folder:
                unit = units[number]
                head = ShardHeader(unit=number, split=unit.split, dataset=info.digest)
                tar = Path(folder) / "new.tar"
                publish_shard(out, write_copies(tar, head, _copies(sources, unit), _rejects(sources, unit)))
        done.append(number)
        if progress:
            progress(len(done), len(units), sum(sizes[n] for n in done))

    in_parallel(make, left, threads=4)
    return finish_dataset(out)


def _copies(sources: Sequence[Dataset], unit: NewUnit) -> Iterator[bytes]:
    for run in unit.runs:
        source = sources[run.source]
        tar = source.units[run.unit].tar
        for begin, end, rows in _spans(source.records, run.rows):
            data = source.store.get_range(tar, begin, end - begin)
            for row in rows:
                record = source.records[row]
                start = int(record["offset"]) - begin
                piece = data[start : start + int(record["length"])]
                key = f"{int(record['key']):016x}"
                if sample_hash(piece) != record["hash"].tobytes():
                    raise DatasetError(
                        f"{source.url}/{tar}, sample {key}: its bytes differ from the index's hash; run `sage-scale "
                        f"shards repair {source.url}`, then this command again"
                    )
                yield with_split(piece, unit.split) if unit.rename else piece


def with_split(data: bytes, split: str) -> bytes:
    """The sample with another `split` in its description, which is its first member; all other bytes as they are."""
    size = int(data[124:135], 8)
    meta = parse_stored(data[BLOCK : BLOCK + size])
    text = canonical_json({**meta, "split": split})
    name = data[:100].split(b"\0", 1)[0].decode("ascii")
    return header(name, len(text)) + text + padding(len(text)) + data[BLOCK + size + (-size % BLOCK) :]


def _spans(records: np.ndarray, rows: Sequence[int]) -> Iterator[tuple[int, int, list[int]]]:
    """Runs of neighbouring samples: first byte, end, rows."""
    begin = end = 0
    run: list[int] = []
    for row in rows:
        start, length = int(records[row]["offset"]), int(records[row]["length"])
        if run and (start != end or end + length - begin > READ_BYTES):
            yield begin, end, run
            run = []
        if not run:
            begin = start
        end = start + length
        run = [*run, row]
    if run:
        yield begin, end, run


def _rejects(sources: Sequence[Dataset], unit: NewUnit) -> list[Reject]:
    return [
        reject
        for source, ordinal in unit.rejects_of
        for reject in read_rejects(sources[source].store, sources[source].units[ordinal])
    ]


def _chunks(source: Dataset, rows: np.ndarray, clips: int, split: str) -> list[NewUnit]:
    """Units of at most `clips` samples of these rows, each of one split."""
    ordinals = np.repeat(np.arange(len(source.units)), [unit.samples for unit in source.units])
    by_split: dict[str, list[int]] = {}
    for row in rows.tolist():
        by_split.setdefault(split or source.units[int(ordinals[row])].split, []).append(row)
    units = []
    for name, chosen in by_split.items():
        for begin in range(0, len(chosen), clips):
            some = chosen[begin : begin + clips]
            runs = []
            for ordinal in dict.fromkeys(ordinals[some].tolist()):
                runs.append(Run(0, ordinal, tuple(row for row in some if ordinals[row] == ordinal)))
            units.append(NewUnit(name, tuple(runs), rename=bool(split)))
    return units


def _rows_by_unit(dataset: Dataset) -> list[range]:
    begins = np.cumsum([0, *(unit.samples for unit in dataset.units)]).tolist()
    return [range(begin, end) for begin, end in pairwise(begins)]


def _size(sources: Sequence[Dataset], unit: NewUnit) -> int:
    return sum(
        int(sources[run.source].records["length"][list(run.rows)].sum()) for run in unit.runs if run.rows
    )


def _check_places(out: Store, sources: Sequence[Dataset]) -> None:
    urls = [source.url.rstrip("/") for source in sources]
    if out.url.rstrip("/") in urls:
        raise UsageError(f"{out.url} is one of the sources: write to another place")
    for number, url in enumerate(urls):
        if url in urls[:number]:
            raise UsageError(f"{url} is given twice")


def _common_info(sources: Sequence[Dataset]) -> dict[str, Any]:
    """What dataset.json of the outcome says that all sources agree on. Raises UsageError where they must and do not."""
    first = sources[0]
    for other in sources[1:]:
        _must_agree(first, other)
    infos = [source.info for source in sources]
    versions = {
        name: " | ".join(sorted({str(info.versions.get(name, "none")) for info in infos}))
        for name in sorted({name for info in infos for name in info.versions})
    }
    part = dict(infos[0].recipe_part)
    for info in infos[1:]:
        part = _shared(part, info.recipe_part)
    recipes = sorted({info.recipe for info in infos})
    return {
        "kind": first.info.kind,
        "recipe": recipes[0] if len(recipes) == 1 else _digest(*recipes),
        "recipe_part": part,
        "versions": versions,
        "device": " | ".join(sorted({info.device for info in infos})),
    }


def _differing(sources: Sequence[Dataset]) -> dict[str, dict[str, list[Any]]]:
    """A note of the recipe keys in which the sources, or their own parts, differ; empty where they do not."""
    values = values_of(
        [flat(source.info.recipe_part) for source in sources],
        [source.info.notes.get("differing") for source in sources],
    )
    differing = {key: several for key, several in values.items() if len(several) > 1}
    return {"differing": differing} if differing else {}


def _must_agree(one: Dataset, other: Dataset) -> None:
    def settings(dataset: Dataset) -> dict[str, Any]:
        vision = {
            k: v for k, v in dict(dataset.info.recipe_part).get("vision", {}).items() if k not in MAY_DIFFER
        }
        weights = dataset.info.versions.get("backbone_sha256", "") if dataset.info.kind == "features" else ""
        return {"kind": dataset.info.kind, **vision, "backbone_sha256": weights}

    ours, theirs = settings(one), settings(other)
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            raise UsageError(
                f"{one.url} and {other.url} are not alike: {name} is {ours.get(name)} in the one and "
                f"{theirs.get(name)} in the other; precompute one of them again with the other's recipe"
            )


def _shared(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    both: dict[str, Any] = {}
    for name in one.keys() & other.keys():
        if isinstance(one[name], Mapping) and isinstance(other[name], Mapping):
            both[name] = _shared(one[name], other[name])
        elif one[name] == other[name]:
            both[name] = one[name]
    return dict(sorted(both.items()))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
