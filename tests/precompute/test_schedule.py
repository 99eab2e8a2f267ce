"""What becomes of failing units, with a made-up pool: nothing but a clip's bytes rejects, and no unit is forgotten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_scale.corpora.manifest import Clip
from sage_scale.errors import TooManyRejects, UnitsOpen, UsageError
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import ClipDone, Event, JobProgress, UnitDone, UnitFailed
from sage_scale.precompute.schedule import RejectLimit, Schedule
from sage_scale.shards.layout import Marker


def units(count: int, clips: int = 3) -> list[Unit]:
    return [
        Unit(
            number=number,
            split="train",
            clips=tuple(Clip(id=f"u{number}c{i}", video=f"{number}-{i}.mp4") for i in range(clips)),
        )
        for number in range(count)
    ]


def marker(unit: Unit) -> Marker:
    return Marker(
        unit=unit.number, split=unit.split, dataset="0" * 16, samples=len(unit.clips), frames=1, segments=1,
        rejects=0, reasons={}, bytes=1, sha256="", index_sha256="",
    )  # fmt: skip


class MadeUpPool:
    """`fate(unit, attempt)` says how an attempt at a unit ends: None is success, else the failure."""

    def __init__(self, actors: int, fate: Callable[[Unit, int], UnitFailed | None]) -> None:
        self.actors, self.fate = actors, fate
        self.running: list[tuple[Unit, bool]] = []
        self.attempts: Counter[int] = Counter()
        self.most_at_once = 0
        self.beside_alone: list[int] = []
        self.done: list[int] = []
        self.wanted: list[int] = []

    @property
    def idle(self) -> int:
        return self.actors - len(self.running)

    @property
    def busy(self) -> int:
        return len(self.running)

    def want(self, units: int) -> None:
        self.wanted.append(units)

    def start(self, unit: Unit, tar_stored: bool, alone: bool = False) -> None:
        assert self.idle > 0, "more units in flight than actors"
        self.running.append((unit, alone))
        self.most_at_once = max(self.most_at_once, len(self.running))
        if any(alone for _, alone in self.running):
            self.beside_alone.append(len(self.running))

    def wait(self, timeout_s: float) -> list[tuple[Unit, Event]]:
        if not self.running:
            return []
        unit, _ = self.running.pop(0)
        self.attempts[unit.number] += 1
        failure = self.fate(unit, self.attempts[unit.number])
        if failure:
            return [(unit, failure)]
        self.done.append(unit.number)
        events: list[tuple[Unit, Event]] = [(unit, ClipDone(clip=clip.id)) for clip in unit.clips]
        return [*events, (unit, UnitDone(marker=marker(unit)))]


def schedule(work: list[Unit], tries: int = 3, rate: float = 0.0) -> Schedule:
    clips = sum(len(unit.clips) for unit in work)
    progress = JobProgress(clips=clips, units=len(work), quiet=True)
    return Schedule(
        work, tries=tries, progress=progress, limit=RejectLimit(rate, clips), pause_s=lambda attempt: 0.0
    )


def killed(clip: str = "") -> UnitFailed:
    return UnitFailed(kind="killed", message="its actor died", clip=clip)


@given(st.data())
def test_every_unit_is_done_or_named_whatever_dies(data: st.DataObject) -> None:
    """Random failures of all kinds: each unit ends either done exactly once or in the message of UnitsOpen."""
    work = units(data.draw(st.integers(1, 6)))
    tries = data.draw(st.integers(0, 3))
    kinds = st.sampled_from(["ok", "killed", "memory", "storage", "error", "time-out"])
    fates = {unit.number: data.draw(st.lists(kinds, max_size=6)) for unit in work}

    def fate(unit: Unit, attempt: int) -> UnitFailed | None:
        planned = fates[unit.number]
        kind = planned[attempt - 1] if attempt <= len(planned) else "ok"
        clip = unit.clips[attempt % 3].id
        return None if kind == "ok" else UnitFailed(kind=kind, message=kind, clip=clip)  # type: ignore[arg-type]

    pool = MadeUpPool(data.draw(st.integers(1, 3)), fate)
    plan = schedule(work, tries)
    try:
        plan.run(pool)
        named: set[int] = set()
    except UnitsOpen as error:
        named = set(plan.open)
        assert error.exit_code == 4
        assert all(f"{number:06d}" in str(error) for number in sorted(named)[:5])
    assert sorted(pool.done) == [unit.number for unit in work if unit.number not in named]
    assert len(set(pool.done)) == len(pool.done)
    assert all(pool.attempts[unit.number] <= tries + 1 for unit in work)


def test_units_in_flight_are_bounded_by_the_actors() -> None:
    pool = MadeUpPool(3, lambda unit, attempt: None)
    schedule(units(20)).run(pool)
    assert pool.most_at_once == 3 and sorted(pool.done) == list(range(20))
    assert pool.wanted == list(range(20, 0, -1)), "the pool is told of the units left"


def test_a_clip_that_kills_its_actor_twice_is_run_alone_and_then_named() -> None:
    def fate(unit: Unit, attempt: int) -> UnitFailed | None:
        return killed("u1c2") if unit.number == 1 else None

    pool = MadeUpPool(3, fate)
    plan = schedule(units(6), tries=9)
    with pytest.raises(UnitsOpen, match=r"000001 at clip 'u1c2'.*--give-up"):
        plan.run(pool)
    assert pool.attempts[1] == 3 and pool.beside_alone == [1]
    assert sorted(pool.done) == [0, 2, 3, 4, 5]


def test_deaths_in_different_clips_do_not_make_one_suspect() -> None:
    pool = MadeUpPool(
        2, lambda unit, attempt: killed(f"u0c{attempt - 1}") if attempt <= 3 and unit.number == 0 else None
    )
    schedule(units(3), tries=5).run(pool)
    assert sorted(pool.done) == [0, 1, 2] and pool.beside_alone == []


def test_a_time_out_is_not_tried_again() -> None:
    pool = MadeUpPool(1, lambda unit, attempt: UnitFailed(kind="time-out", message="took more than 5 s"))
    with pytest.raises(UnitsOpen, match="took more than 5 s"):
        schedule(units(1)).run(pool)
    assert pool.attempts[0] == 1


def test_a_full_disk_ends_the_run_at_once() -> None:
    full = UnitFailed(kind="full", message="the disk of /out is full: free some space")
    pool = MadeUpPool(1, lambda unit, attempt: full if unit.number == 2 else None)
    with pytest.raises(UnitsOpen, match=r"disk of /out is full.*unit 000002; 8 of 10 units are open"):
        schedule(units(10)).run(pool)
    assert pool.done == [0, 1]


def test_wrong_usage_found_by_an_actor_is_wrong_usage() -> None:
    pool = MadeUpPool(1, lambda unit, attempt: UnitFailed(kind="usage", message="no tagger for 'xx'"))
    with pytest.raises(UsageError, match="no tagger"):
        schedule(units(2)).run(pool)


class RejectingPool(MadeUpPool):
    def wait(self, timeout_s: float) -> list[tuple[Unit, Event]]:
        unit, _ = self.running.pop(0)
        self.done.append(unit.number)
        events: list[tuple[Unit, Event]] = [
            (unit, ClipDone(clip=clip.id, reason="unreadable", detail="no moov")) for clip in unit.clips
        ]
        return [*events, (unit, UnitDone(marker=marker(unit)))]


def test_a_run_that_rejects_nearly_everything_stops_early() -> None:
    pool = RejectingPool(1, lambda unit, attempt: None)
    with pytest.raises(TooManyRejects, match=r"of 300 clips were rejected \(\d+ unreadable\).*u\d+c\d"):
        schedule(units(100), rate=0.1).run(pool)
    assert len(pool.done) <= 11  # 31 rejects are more than a tenth of 300


def test_a_small_corpus_is_judged_only_when_it_is_done() -> None:
    pool = RejectingPool(1, lambda unit, attempt: None)
    schedule(units(5), rate=0.0).run(pool)
    assert len(pool.done) == 5


@pytest.mark.parametrize(
    ("rejects", "clips", "rate", "too_many"),
    [(1, 7, 0.02, False), (5, 10, 0.02, False), (6, 100, 0.02, True), (3, 5, 0.02, True), (1, 7, 0.0, True),
     (20, 1000, 0.02, False), (21, 1000, 0.02, True), (1, 1, 0.02, True)],
)  # fmt: skip
def test_a_few_rejects_are_not_too_many_unless_they_are_most_clips(rejects, clips, rate, too_many) -> None:
    assert RejectLimit(rate, clips).exceeded(rejects) == too_many
    assert RejectLimit(rate, clips, expected=9).exceeded(rejects + 9) == too_many


def test_what_the_recipe_asked_to_set_aside_is_no_trouble() -> None:
    limit = RejectLimit(0.1, 100, expected=50)
    assert not limit.exceeded(50) and not limit.exceeded(60) and limit.exceeded(61)
    assert "52 of 150 clips were rejected" in str(limit.error(52, Counter(missing=2)))
