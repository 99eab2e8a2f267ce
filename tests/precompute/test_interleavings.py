"""Commands at once on one output: drawn by hypothesis, and the orders of requests that once broke a dataset."""

from __future__ import annotations

from collections.abc import Iterator

import interleavings
import pytest
from factories.interleaving import Process, Simulation, Task
from factories.simulated_bucket import SimulatedStore
from factories.simulated_commands import FIRST, GROWN, SPOILT

from sage_scale.errors import UnitsOpen, UsageError
from sage_scale.shards import open_dataset, verify_dataset
from sage_scale.shards.layout import INDEX_JSON


def test_every_end_is_a_whole_dataset_or_open_units() -> None:
    """2,000 examples and more: tests/campaigns/interleavings.py."""
    interleavings.run(interleavings.Interleavings, 50, None)


def test_every_end_of_merges_is_a_whole_dataset_or_open_units() -> None:
    interleavings.run(interleavings.Merges, 8, None)


class Scene(interleavings.Interleavings):
    """Commands whose requests a test grants itself."""

    def command(self, kind: str, name: str = "") -> Process:
        """Returns a command at its first request."""
        return self.simulation.process(kind, self.work_of(kind, name))

    def next_of(self, process: Process) -> Task:
        """Returns the next request of a command, or of actors while it waits for them."""
        waiting = self.simulation.requests
        own = [task for task in waiting if task.process is process]
        return (own or [task for task in waiting if task.process.name.startswith("actor")])[0]

    def grant_until(self, process: Process, request: str) -> None:
        """Grant the command's requests up to the first of its own that begins so."""
        while not ((task := self.next_of(process)).process is process and task.request.startswith(request)):
            self.take(task)

    def to_the_end(self, process: Process) -> BaseException | None:
        """Grant all requests of a command; returns its error."""
        while not process.ended:
            self.take(self.next_of(process))
        return process.error

    def drop(self, unit: int) -> None:
        """What a repair with --drop-shards does to a shard."""
        for key in [key for key in self.simulation.objects if f"/{unit:06d}." in key or INDEX_JSON in key]:
            del self.simulation.objects[key]

    def clips(self) -> set[str]:
        """Ids in a dataset without a fault."""
        assert verify_dataset(self.store).problems == ()
        keys = {f"{key:016x}" for key in open_dataset(self.store).records["key"].tolist()}
        return {one.id for one in GROWN.clips if one.key in keys}


ALL = {one.id for one in FIRST.clips}


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    try:
        yield made
    finally:
        for process in made.simulation.processes:
            made.simulation.kill(process)
        made.closing.close()


@pytest.fixture
def finished(scene: Scene) -> Scene:
    scene.alone("precompute")
    return scene


def test_an_extension_does_not_take_clips_of_a_dropped_shard_for_new_ones(finished: Scene) -> None:
    extend = finished.command("extend")
    finished.grant_until(extend, "GET data/000000.json")
    finished.drop(0)
    assert isinstance(finished.to_the_end(extend), UsageError)
    assert not finished.store.exists("addition-0001.json")
    finished.alone("precompute")
    finished.alone("extend")
    assert finished.clips() == {one.id for one in GROWN.clips} - {SPOILT}


def test_a_retry_that_loses_its_number_to_an_extension_plans_again(finished: Scene) -> None:
    finished.corpus.mended = True
    retry = finished.command("retry")
    finished.grant_until(retry, "PUT-IF-ABSENT data/addition-0001.json")
    extend = finished.command("extend")
    assert finished.to_the_end(extend) is None
    assert finished.to_the_end(retry) is None
    assert finished.clips() == {one.id for one in GROWN.clips}


def test_a_retry_does_not_plan_without_a_shard_that_was_away(finished: Scene) -> None:
    finished.corpus.mended = True
    finished.alone("retry")
    del finished.simulation.objects["data/index.json"]
    retry = finished.command("retry")
    away = {key: stored for key, stored in finished.simulation.objects.items() if "/000003." in key}
    finished.grant_until(retry, "GET data/dataset.json")
    finished.take(finished.simulation.requests[0])
    finished.grant_until(retry, "GET data/dataset.json")
    finished.drop(3)
    finished.grant_until(retry, "GET data/000000.json")
    finished.simulation.objects.update(away)
    assert finished.to_the_end(retry) is None
    assert finished.clips() == ALL and not finished.store.exists("addition-0002.json")


def test_a_shard_that_is_made_again_leaves_a_clip_to_its_second_try(finished: Scene) -> None:
    finished.corpus.mended = True
    finished.alone("retry")
    finished.drop(1)
    finished.alone("precompute")
    assert finished.clips() == ALL
    units = open_dataset(finished.store).units
    assert units[1].reasons == {"tried-later": 1} and sum(unit.samples for unit in units) == len(ALL)


def test_rejects_lost_to_damage_are_tried_again(finished: Scene) -> None:
    data, put_id = finished.simulation.objects["data/000001.tar"]
    at = data.index(b"__rejects__")
    finished.damaged = finished.corpus.mended = True
    finished.simulation.objects["data/000001.tar"] = data[:at] + b"?" + data[at + 1 :], put_id
    finished.alone("keep")
    assert finished.clips() == ALL - {SPOILT}
    finished.alone("retry")
    assert finished.clips() == ALL


@pytest.mark.parametrize("died", [False, True])
def test_an_older_index_json_stored_late_is_looked_through(scene: Scene, died: bool) -> None:
    late = scene.command("precompute")
    scene.grant_until(late, "PUT data/index.json")
    assert scene.to_the_end(scene.command("remove", "train-0")) is None
    if died:
        scene.take(scene.next_of(late))
        scene.simulation.kill(late)
        assert any("missing" in problem for problem in verify_dataset(scene.store).problems)
        scene.alone("precompute")
    else:
        assert scene.to_the_end(late) is None
    assert scene.clips() == ALL - {SPOILT, "train-0"}


def test_a_removal_that_died_is_finished_by_precompute(finished: Scene) -> None:
    remove = finished.command("remove", "train-0")
    finished.grant_until(remove, "PUT-IF-ABSENT data/000000.g1.tar")
    finished.simulation.kill(remove)
    finished.alone("precompute")
    assert finished.clips() == ALL - {SPOILT, "train-0"}


@pytest.mark.parametrize("kind", ["remove", "keep", "index", "retry"])
def test_a_shard_that_is_replaced_at_any_request_is_met_in_its_new_generation(kind: str) -> None:
    requests = 0
    while True:
        scene = Scene()
        with scene.closing:
            scene.alone("precompute")
            process = scene.command(kind, "dev-0")
            for _ in range(requests):
                if scene.simulation.requests:
                    scene.take(scene.simulation.requests[0])
            over = process.ended
            assert scene.to_the_end(scene.command("remove", "train-0")) is None
            assert scene.to_the_end(process) is None, scene.simulation.log
            scene.alone("precompute")
            assert "train-0" not in scene.clips()
            for one in scene.simulation.processes:
                scene.simulation.kill(one)
        if over:
            return
        requests += 6


def test_a_shard_that_is_being_rewritten_is_not_open(finished: Scene) -> None:
    remove = finished.command("remove", "train-0")
    finished.grant_until(remove, "PUT-IF-ABSENT data/000000.g1.tar")
    del finished.simulation.objects["data/index.json"]
    driver = finished.command("precompute")
    for _ in range(3):  # found; opened; opened to be finished
        finished.grant_until(driver, "GET data/dataset.json")
        finished.take(finished.next_of(driver))
    finished.take(finished.next_of(remove))
    assert finished.to_the_end(driver) is None
    assert finished.to_the_end(remove) is None
    assert finished.clips() == ALL - {SPOILT, "train-0"}


def test_a_shard_deleted_late_by_a_paused_repair_is_made_again(finished: Scene) -> None:
    data, put_id = finished.simulation.objects["data/000000.tar"]
    finished.damaged = True
    finished.simulation.objects["data/000000.tar"] = data[:2000] + b"?" + data[2001:], put_id
    paused = finished.command("drop")
    finished.grant_until(paused, "DELETE data/000000.tar")
    assert finished.to_the_end(finished.command("drop")) is None
    assert finished.to_the_end(finished.command("precompute")) is None
    finished.take(finished.next_of(paused))
    finished.simulation.kill(paused)
    assert not finished.store.exists("000000.tar") and finished.store.exists(INDEX_JSON)
    finished.alone("precompute")
    assert finished.clips() == ALL - {SPOILT}


def test_index_json_of_a_dropped_shard_goes_with_it_whoever_is_later(scene: Scene) -> None:
    for late_driver in (True, False):
        driver = scene.command("overwrite" if scene.commands else "precompute")
        scene.grant_until(driver, "PUT data/index.json")
        scene.damaged = True
        data, put_id = scene.simulation.objects["data/000000.tar"]
        scene.simulation.objects["data/000000.tar"] = data[:2000] + b"?" + data[2001:], put_id
        drop = scene.command("drop")
        if late_driver:
            assert scene.to_the_end(drop) is None
            assert isinstance(scene.to_the_end(driver), UnitsOpen)
        else:
            scene.grant_until(drop, "DELETE data/000000.tar")
            assert scene.to_the_end(driver) is None
            assert scene.to_the_end(drop) is None
        assert not scene.store.exists(INDEX_JSON)
        scene.alone("precompute")
        assert scene.clips() == ALL - {SPOILT}
        del scene.simulation.objects["data/index.json"]


def test_a_name_that_was_taken_and_is_free_again_is_taken_again() -> None:
    simulation = Simulation()
    with simulation.patched():
        store = SimulatedStore(simulation)
        simulation.objects["data/a"] = b"another's", "1"
        process = simulation.process("writer", lambda: store.put_if_absent("a", b"ours"))
        simulation.grant(simulation.requests[0])  # 412
        del simulation.objects["data/a"]
        while not process.ended:
            simulation.grant(simulation.requests[0])
        assert process.tasks[0].value is True and store.get("a") == b"ours"


def test_a_dropped_shard_of_which_only_the_marker_was_missing_is_made_from_its_clips(finished: Scene) -> None:
    for key in ("data/000000.json", "data/index.json"):
        del finished.simulation.objects[key]
    driver = finished.command("precompute")
    while not any(task.process.name.startswith("actor") for task in finished.simulation.requests):
        finished.take(finished.simulation.requests[0])
    finished.drop(0)
    assert finished.to_the_end(driver) is None
    assert finished.clips() == ALL - {SPOILT}
