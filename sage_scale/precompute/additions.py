"""Planning what is added to an output behind its planned units: `--extend` and `--retry-rejects`.

New clips and second tries come down to one thing: manifest and shards give a list of clips, which is cut into units as
any manifest is, and the plan is stored before any of its work is done (sage_scale.shards.addition_plan).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict

from sage_scale.corpora.manifest import Clip, Manifest, Rejected, is_expected
from sage_scale.parallel import map_threads
from sage_scale.precompute.plan import Limits, Unit, plan_units
from sage_scale.shards import Dataset, UnitListing
from sage_scale.shards.addition_plan import AddedUnit, AdditionPlan, load_additions
from sage_scale.shards.layout import Reject, addition_name
from sage_scale.shards.rejects import read_rejects, reject_key
from sage_scale.storage import Store


def units_of(plan: AdditionPlan, clips: dict[str, Clip]) -> list[Unit]:
    """The work units of an addition, those left out that hold a clip which is not among `clips`."""
    return [
        Unit(
            number=number,
            split=unit.split,
            clips=tuple(clips[clip] for clip in unit.clips),
            rejected=tuple(Rejected(**row) for row in unit.rejected),
        )
        for number, unit in enumerate(plan.units, start=plan.first_unit)
        if all(clip in clips for clip in unit.clips)
    ]


def plan_extension(
    manifest: Manifest,
    limits: Limits,
    dataset: Dataset,
    listing: UnitListing,
    additions: Sequence[AdditionPlan],
) -> AdditionPlan:
    """The clips of `manifest` of which no shard tells, as units behind all others.

    Clips that an earlier shard rejected are left to --retry-rejects, unless they were set aside while the corpus was
    read (a video that was not downloaded then). Every planned unit is done.
    """
    rejects = _rejects_by_key(dataset)
    planned_before = {clip for addition in additions for clip in addition.clips}
    samples = {f"{key:016x}" for key in dataset.records["key"].tolist()}
    set_aside = {key for key, reject in rejects.items() if is_expected(reject.reason)}
    known = samples | (rejects.keys() - set_aside)
    new = [clip for clip in manifest.clips if clip.id not in planned_before and clip.key not in known]
    told = {reject.id for reject in rejects.values()}
    rows = tuple(row for row in manifest.rejected if row.id not in told)
    before = {clip.id for clip in new if clip.key in set_aside}
    return _cut(manifest.digest(), Manifest(tuple(new), rows), limits, listing, dataset, additions, before)


def plan_retry(
    manifest: Manifest,
    limits: Limits,
    dataset: Dataset,
    listing: UnitListing,
    additions: Sequence[AdditionPlan],
    taken_out: Collection[str],
) -> AdditionPlan | None:
    """The clips of `manifest` that are rejected as things stand, as units behind all others; None where there are none.

    A clip's last outcome counts. `taken_out` are keys of clips that were taken out on request.
    """
    samples = {f"{key:016x}" for key in dataset.records["key"].tolist()}
    rejected = _rejects_by_key(dataset).keys() - samples - set(taken_out)
    again = tuple(clip for clip in manifest.clips if clip.key in rejected)
    if not again:
        return None
    before = {clip.id for clip in again}
    return _cut("", Manifest(again), limits, listing, dataset, additions, before)


def store_addition(store: Store, plan: AdditionPlan, number: int) -> bool:
    """Store the plan as number `number`; False where another driver has planned that one."""
    return store.put_if_absent(addition_name(number), plan.to_bytes())


def stored_additions(store: Store, listing: UnitListing) -> list[AdditionPlan]:
    """The plans of all additions of an output."""
    return load_additions(store, listing.additions)


def _cut(
    digest: str,
    manifest: Manifest,
    limits: Limits,
    listing: UnitListing,
    dataset: Dataset,
    additions: Sequence[AdditionPlan],
    before: Collection[str],
) -> AdditionPlan:
    ends = [len(dataset.info.units), *(addition.addition.units.stop for addition in additions)]
    first = max([*ends, *(unit + 1 for unit in listing.generation)])
    units = tuple(
        AddedUnit(
            split=unit.split,
            clips=tuple(clip.id for clip in unit.clips),
            before=sum(clip.id in before for clip in unit.clips),
            rejected=tuple(asdict(row) for row in unit.rejected),
        )
        for unit in plan_units(manifest, limits)
    )
    return AdditionPlan(manifest=digest, first_unit=first, units=units)


def _rejects_by_key(dataset: Dataset) -> dict[str, Reject]:
    """The last reject of every clip of which a shard tells one, by key."""
    found: Iterable[tuple[Reject, ...]] = map_threads(
        lambda unit: read_rejects(dataset.store, unit), dataset.units
    )
    return {reject_key(reject): reject for rejects in found for reject in rejects}
