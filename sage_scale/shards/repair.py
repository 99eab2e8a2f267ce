"""Repairing a damaged dataset: what is whole is kept, what is lost is named, and nothing is ever done silently.

Two ways with a damaged shard. `keep`: a new generation of it with the samples that are whole; the lost ones become
rejects with the reason `damaged`, so that the dataset is finished and can be trained on, and `precompute
--retry-rejects` makes them again in new shards. `drop`: the shard is deleted, and the same precompute command makes it
again, byte for byte as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from shlex import quote
from typing import Literal

from sage_scale.errors import DatasetError
from sage_scale.shards.commit import finish_dataset, restore_marker
from sage_scale.shards.dataset import list_units
from sage_scale.shards.diagnosis import Frame, Lost, Patient, examine, read_frame
from sage_scale.shards.generations import put_generation, sweep
from sage_scale.shards.layout import (
    DAMAGED,
    DATASET_JSON,
    INDEX_JSON,
    DatasetInfo,
    Reject,
    ShardHeader,
    index_name,
    marker_name,
    tar_name,
)
from sage_scale.shards.removed import KEY_PREFIX
from sage_scale.shards.stored import stored_tar
from sage_scale.storage import Store

Mode = Literal["keep", "drop"]


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What is wrong with a dataset, and so what a repair does."""

    store: Store
    frame: Frame
    patients: tuple[Patient, ...]
    """Units with something wrong, by number."""
    bytes: int
    """Bytes that were read to find it."""

    @property
    def damaged(self) -> tuple[Patient, ...]:
        """Units whose tar is not whole."""
        return tuple(patient for patient in self.patients if patient.cure in ("tar", "unknown"))

    @property
    def lost(self) -> tuple[Lost, ...]:
        """Clips whose bytes are gone."""
        return tuple(lost for patient in self.patients for lost in patient.lost)

    @property
    def stale(self) -> bool:
        """Whether index.json is missing or damaged, or does not name what is stored, although every unit is there."""
        frame, newest = self.frame, self.frame.listing.generation
        if frame.indexed is None:
            return newest.keys() >= set(range(len(frame.info.units)))
        return {unit.unit: unit.generation for unit in frame.indexed.units} != newest

    @property
    def nothing(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.patients or self.frame.problems or self.frame.listing.superseded or self.stale)


def diagnose(
    store: Store, *, threads: int = 4, progress: Callable[[int, int, int], None] | None = None
) -> Repair:
    """Read every byte and find what is damaged, as `verify` does. Changes nothing.

    Raises DatasetError where it cannot be told what the dataset is; then nothing may be dropped.
    """
    frame = read_frame(store)
    units = frame.units
    found: dict[int, Patient | None] = {}
    read = 0
    with ThreadPoolExecutor(max(1, threads)) as pool:
        jobs = {pool.submit(examine, store, frame, unit): unit for unit in units}
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                found[jobs[job]] = job.result()
                read += frame.listing.tar_bytes.get(jobs[job], 0)
                if progress:
                    progress(done, len(jobs), read)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    patients = tuple(patient for unit in sorted(found) if (patient := found[unit]) is not None)
    exchanged = [patient for patient in patients if "exchanged" in patient.problem]
    if frame.indexed is None and len(exchanged) > max(1, len(units) // 2):
        raise DatasetError(
            f"{store.url}: most shards say that they belong to another dataset than {DATASET_JSON}, which is damaged "
            "or was exchanged, and there is no index.json to tell by: restore it; nothing was changed"
        )
    return Repair(store=store, frame=frame, patients=patients, bytes=read)


def carry_out(repair: Repair, mode: Mode = "keep") -> bool:
    """Do what the diagnosis calls for; True where the dataset is finished afterwards.

    May be killed at any moment and run again from the diagnosis on.
    """
    store, frame = repair.store, repair.frame
    if frame.restore_info:
        store.put(DATASET_JSON, frame.info.to_bytes())
    if any(drops(patient, mode) for patient in repair.patients):
        # Before its shards: what is left is an unfinished dataset, never a wrong one. Older generations go too, or the
        # newest of them would take the place of the one that is dropped.
        store.delete(INDEX_JSON)
        sweep(store)
    for patient in repair.patients:
        if patient.cure == "marker":
            restore_marker(store, patient.unit)
        elif drops(patient, mode):
            _drop(store, patient)
        else:
            _keep_what_is_whole(store, frame.info, patient)
    stored = list_units(store)
    if set(range(len(frame.info.units))) <= stored.generation.keys():
        finish_dataset(store)
        return True
    for unit in sorted(stored.unmarked):
        restore_marker(store, unit)
    sweep(store)
    return False


def drops(patient: Patient, mode: Mode) -> bool:
    """Whether the unit's objects are deleted; one whose clips nobody knows cannot be kept in part."""
    return patient.cure in ("stray", "unknown") or (patient.cure == "tar" and mode == "drop")


def rejects_after(patient: Patient) -> list[Reject]:
    """The rejects of a damaged shard's new generation."""
    lost = [
        Reject(id=lost.id or f"{KEY_PREFIX}{lost.key}", reason=DAMAGED, detail="lost to damage of the shard")
        for lost in patient.lost
    ]
    return [*(patient.rejects or ()), *lost]


def precompute_command(url: str, info: DatasetInfo, mode: Mode) -> str:
    """The command that makes again what was lost, as far as dataset.json tells it; empty where none can."""
    if "made_from" in info.notes:
        return ""
    corpus = dict(info.recipe_part).get("corpus", {}).get("name", "NAME")
    again = " --retry-rejects" if mode == "keep" else ""
    return f"sage-scale precompute --corpus {quote(str(corpus))} --root ROOT --out {quote(url)} --recipe RECIPE{again}"


def _drop(store: Store, patient: Patient) -> None:
    # The tar goes last: a listing knows its index and marker by it.
    for name in (marker_name, index_name, tar_name):
        store.delete(name(patient.unit, patient.generation))


def _keep_what_is_whole(store: Store, info: DatasetInfo, patient: Patient) -> None:
    header = ShardHeader(
        unit=patient.unit, split=patient.split, dataset=info.digest, generation=patient.generation + 1
    )
    if not len(patient.kept):
        put_generation(store, header, (), rejects_after(patient))
        return
    with stored_tar(store, tar_name(patient.unit, patient.generation)) as view:
        places = [(int(record["offset"]), int(record["length"])) for record in patient.kept]
        pieces = [view[start : start + length] for start, length in places]
        try:
            put_generation(store, header, pieces, rejects_after(patient))
        finally:
            for piece in pieces:
                piece.release()
