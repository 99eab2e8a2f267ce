"""A new generation of a shard: the same samples, byte for byte, without those that are to go.

Names are written once, so a shard that changes gets a new one: `000042.g1.tar` takes the place of `000042.tar`. It
is committed as any shard is, by one conditional PUT, and of several generations the newest stored tar is the truth.
Readers of an older index.json keep reading the older objects until these are deleted, which happens last.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote

import numpy as np

from sage_scale.errors import DatasetError
from sage_scale.shards.dataset import Dataset, in_parallel, list_units, newest_generation, read_rejects
from sage_scale.shards.index import ShardIndex, build_index
from sage_scale.shards.layout import REMOVED, Reject, ShardHeader, Unit, sample_key, tar_name
from sage_scale.shards.removed import KEY_PREFIX, announce_change, as_numbers, removed_reject
from sage_scale.shards.stored import stored_tar
from sage_scale.shards.writer import write_copies
from sage_scale.storage import NotFound, Store

Progress = Callable[[int, int, int], None]
"""Called with shards done, shards in all, bytes done."""


def put_generation(
    store: Store, header: ShardHeader, pieces: Iterable[bytes | memoryview], rejects: Sequence[Reject]
) -> bool:
    """Store the tar of a new generation; False where another writer was faster and its tar stands."""
    with tempfile.TemporaryDirectory(prefix="sage-scale-") as folder:
        path = Path(folder) / "new.tar"
        write_copies(path, header, pieces, rejects)
        return store.put_if_absent(tar_name(header.unit, header.generation), path)


def take_out(dataset: Dataset, keys: frozenset[str], progress: Progress | None = None) -> list[int]:
    """Write a new generation of every shard that holds a clip of these keys, or names one among its rejects.

    Gives the units concerned; their new tars are stored, indexes and markers are the caller's to make. Raises
    DatasetError for a shard that is damaged: what is wrong with it must not be copied under a new hash.
    """
    concerned = concerned_units(dataset, keys)
    done: list[Unit] = []

    def work(unit: Unit) -> None:
        _without(dataset.store, unit, keys)
        done.append(unit)
        if progress:
            progress(len(done), len(concerned), sum(unit.bytes for unit in done))

    in_parallel(work, concerned, threads=4)
    return [unit.unit for unit in concerned]


def concerned_units(dataset: Dataset, keys: frozenset[str]) -> list[Unit]:
    """Units that hold a clip of these keys or name it among their rejects."""
    if not keys:
        return []
    ordinals = np.repeat(np.arange(len(dataset.units)), [unit.samples for unit in dataset.units])
    holding = set(ordinals[np.isin(dataset.records["key"], as_numbers(keys))].tolist())

    def names(ordinal: int) -> bool:
        unit = dataset.units[ordinal]
        others = unit.rejects - unit.reasons.get(REMOVED, 0)
        return others > 0 and any(
            reject_key(r) in keys for r in read_rejects(dataset.store, unit) if r.reason != REMOVED
        )

    asked = [ordinal for ordinal in range(len(dataset.units)) if ordinal not in holding]
    naming = {ordinal for ordinal, yes in zip(asked, in_parallel(names, asked)) if yes}
    return [dataset.units[ordinal] for ordinal in sorted(holding | naming)]


def reject_key(reject: Reject) -> str:
    """The key of the clip that a reject is about."""
    return reject.id.removeprefix(KEY_PREFIX) if reject.id.startswith(KEY_PREFIX) else sample_key(reject.id)


def sweep(store: Store) -> int:
    """Delete the objects of older generations; gives how many. The tars, which hold the data, go first."""
    names = list_units(store).superseded
    if names:
        announce_change(store)
    in_parallel(store.delete, sorted(names, key=lambda name: not name.endswith(".tar")))
    return len(names)


def _without(store: Store, unit: Unit, keys: frozenset[str]) -> None:
    where = f"{store.url}/{unit.tar}"
    try:
        with stored_tar(store, unit.tar) as view:
            index = _whole(view, where, unit)
            rejects: list[Reject] = []
            for reject in index.rejects:
                out = reject.reason != REMOVED and reject_key(reject) in keys
                rejects.append(removed_reject(reject_key(reject)) if out else reject)
            pieces = []
            for record in index.records:
                key, start = f"{int(record['key']):016x}", int(record["offset"])
                if key in keys:
                    rejects.append(removed_reject(key))
                else:
                    pieces.append(view[start : start + int(record["length"])])
            header = replace(index.header, generation=unit.generation + 1)
            try:
                put_generation(store, header, pieces, rejects)
            finally:
                for piece in pieces:
                    piece.release()
    except NotFound:
        if (newest_generation(store, unit.unit) or 0) > unit.generation:
            return  # another one was faster, and has already deleted the older generation
        raise DatasetError(
            f"{where} is missing: run `sage-scale shards repair {quote(store.url)}`, then this command again"
        ) from None


def _whole(view: memoryview, where: str, unit: Unit) -> ShardIndex:
    """The tar's index, if it is the tar that `unit` tells of. Raises DatasetError."""
    try:
        index = build_index(view, where)
        if index.tar_sha256 != unit.sha256:
            raise DatasetError(f"{where} is not the tar that its marker describes")
        return index
    except DatasetError as error:
        url = where.rpartition("/")[0]
        raise DatasetError(
            f"{error}: run `sage-scale shards repair {quote(url)}`, then this command again"
        ) from None
