"""Saving in the background: what is saved is the moment of the save; neither kills nor storage harm the last one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from factories.ranks import run_ranks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_stage import Toy

from sage_scale.config import Stage
from sage_scale.errors import CheckpointError, StorageError
from sage_scale.storage import Unavailable
from sage_scale.storage.folder import FolderStore
from sage_scale.training import distributed
from sage_scale.training.checkpoint import saving
from sage_scale.training.checkpoint.checkpoints import Checkpoints, TrainingProgress, _digest
from sage_scale.training.checkpoint.saving import Saver
from sage_scale.training.engine import Engine, LossScale

STAGE = Stage(zero_stage=1, optimizer="adamw", lr=0.05, clip=0.5)


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it happens."""


class TrickyStore(FolderStore):
    """A folder that blocks, fails for a while, or is the last thing a process does."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.failures = 0
        self.calls_left = 10**9
        self.calls = 0

    def _trick(self) -> None:
        assert self.may_go_on.wait(20)
        self.calls += 1
        self.calls_left -= 1
        if self.calls_left < 0:
            raise Killed
        if self.failures > 0:
            self.failures -= 1
            raise Unavailable("the store is away")

    def put_if_absent(self, name, data):
        self._trick()
        return super().put_if_absent(name, data)

    def put(self, name, data):
        self._trick()
        super().put(name, data)

    def delete(self, name):
        self._trick()
        super().delete(name)


@pytest.fixture(scope="module")
def ranks():
    return distributed.initialise()


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(saving, "FILE_BYTES", 250)  # several files a checkpoint
    monkeypatch.setattr(saving, "PAUSES_S", (0.01,))


def make(ranks, folder: Path, **settings) -> tuple[Engine, Checkpoints, TrickyStore, Saver]:
    torch.manual_seed(0)
    engine = Engine(Toy(), STAGE, ranks)
    checkpoints = Checkpoints(folder, keep=2)
    store = checkpoints.store = TrickyStore(folder)
    return engine, checkpoints, store, Saver(checkpoints, ranks, **settings)


def train(engine: Engine, progress: TrainingProgress, steps: int = 1) -> None:
    for _ in range(steps):
        generator = torch.Generator().manual_seed(progress.step)
        x, y = torch.randn(6, 5, generator=generator), torch.randn(6, 3, generator=generator)
        engine.backward(engine.forward(x, y, 6))
        engine.step(0.0)
        progress.step += 1
        progress.updates += 1


def values(engine: Engine) -> dict[str, torch.Tensor]:
    found = {f"buffer/{name}": value.clone() for name, value in engine.model.named_buffers()}
    for name, parameter in engine.trainable_parameters():
        found[f"weight/{name}"] = engine.weight(parameter).clone()
        for kind in ("exp_avg", "exp_avg_sq"):
            found[f"{kind}/{name}"] = engine.optimizer_state(parameter, kind).clone()
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stored(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def named(checkpoints: Checkpoints) -> set[str]:
    """Files that the complete checkpoints consist of, and nothing else."""
    names = set()
    for step in checkpoints.steps():
        files = json.loads(checkpoints.store.get(f"step-{step:08d}/state.json"))["files"]
        names |= {f"step-{step:08d}/{name}" for name in ("state.json", *files)}
    return names


def test_training_goes_on_while_the_state_of_the_save_is_written(ranks, tmp_path):
    engine, checkpoints, store, saver = make(ranks, tmp_path)
    progress = TrainingProgress()
    train(engine, progress, 3)
    then = values(engine)
    store.may_go_on.clear()
    saver.save(engine, progress)  # comes back although nothing can be written yet
    train(engine, progress, 4)
    assert checkpoints.steps() == []
    store.may_go_on.set()
    saver.finish()
    assert checkpoints.steps() == [3]
    assert same(checkpoints.tensors(3), then) and not same(values(engine), then)
    assert len(checkpoints.state(3)["files"]) > 2
    assert checkpoints.load(engine, 3).step == 3
    assert same(values(engine), then)
    assert [saved.step for saved in saver.finished_saves()] == [3] and saver.finished_saves() == []


def test_a_save_killed_at_any_moment_harms_nothing_and_is_swept(ranks, tmp_path):
    """After each write or deletion of a save: the old or the new checkpoint is resumed, whole; the next save sweeps."""
    killed = 0
    for calls in range(100):
        folder = tmp_path / str(calls)
        engine, checkpoints, store, saver = make(ranks, folder)
        progress, states = TrainingProgress(), {}
        for _ in range(3):
            train(engine, progress, 2)
            states[progress.step] = values(engine)
            saver.save(engine, progress)
            saver.finish()
        train(engine, progress, 2)
        states[progress.step] = values(engine)
        store.calls_left = calls
        saver.save(engine, progress)
        save = saver._save
        save.join()
        if save.error is None:
            break
        killed += 1
        assert isinstance(save.error, Killed)
        engine, checkpoints, store, saver = make(ranks, folder)  # the next process
        found = checkpoints.load_latest(engine)
        assert found is not None and found.step in (6, 8)
        assert same(values(engine), states[found.step])
        train(engine, found, 10 - found.step)
        saver.save(engine, found)
        saver.finish()
        assert checkpoints.steps()[-1] == 10
        assert stored(folder) == named(checkpoints)
        assert len(checkpoints.steps()) == 2
    assert killed > 8


def test_a_save_of_the_same_step_takes_nothing_from_a_killed_one(ranks, tmp_path):
    engine, checkpoints, store, saver = make(ranks, tmp_path)
    progress = TrainingProgress()
    train(engine, progress, 2)
    store.calls_left = 3
    saver.save(engine, progress)
    saver._save.join()
    before = stored(tmp_path)
    assert before and checkpoints.steps() == []
    engine, checkpoints, store, saver = make(ranks, tmp_path)
    progress = TrainingProgress()
    train(engine, progress, 2)
    saver.save(engine, progress)
    saver.finish()
    assert not before & stored(tmp_path)
    assert stored(tmp_path) == named(checkpoints)


def test_storage_that_comes_back_is_sat_out_and_told(ranks, tmp_path):
    lines: list[str] = []
    engine, checkpoints, store, saver = make(ranks, tmp_path, say=lines.append)
    progress = TrainingProgress()
    train(engine, progress, 1)
    store.failures = 20
    saver.save(engine, progress)
    train(engine, progress, 1)
    saver.finish()
    assert checkpoints.steps() == [1]
    assert len(lines) == 1 and "step 1" in lines[0] and "the store is away" in lines[0]


def test_storage_that_stays_away_ends_the_next_save_with_one_line(ranks, tmp_path):
    engine, checkpoints, store, saver = make(ranks, tmp_path, give_up_after_s=0.2)
    progress = TrainingProgress()
    train(engine, progress, 1)
    saver.save(engine, progress)
    saver.finish()
    store.failures = 10**9
    train(engine, progress, 1)
    saver.save(engine, progress)  # not yet: training goes on
    assert saver.finished_saves() != []
    train(engine, progress, 1)
    assert saver.finished_saves() == []
    with pytest.raises(StorageError, match=r"step 2 could not be written \(rank 0: the store is away"):
        saver.save(engine, progress)
    assert checkpoints.steps() == [1] and checkpoints.damage(1) is None


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_resumed(ranks, tmp_path):
    engine, checkpoints, _, saver = make(ranks, tmp_path)
    progress, states = TrainingProgress(), {}
    for _ in range(2):
        train(engine, progress, 2)
        states[progress.step] = values(engine)
        saver.save(engine, progress)
    saver.finish()
    files = sorted((tmp_path / "step-00000004").iterdir())
    for path in files:
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 4
        for change in (bytes(flipped), data[:-1], b"", None):
            path.unlink() if change is None else path.write_bytes(change)
            lines: list[str] = []
            found = checkpoints.load_latest(engine, lines.append)
            assert found is not None and found.step == 2 and same(values(engine), states[2])
            if path.name == "state.json" and change is None:
                assert lines == []  # not damaged: it is no checkpoint
            else:
                assert len(lines) == 1 and path.name in lines[0] and "step 2" in lines[0]
            path.write_bytes(data)
    assert checkpoints.load_latest(engine).step == 4
    for step in (2, 4):
        next((tmp_path / f"step-{step:08d}").glob("tensors-*")).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint before it; put the file back, or delete"):
        checkpoints.load_latest(engine)


def test_the_best_and_the_last_are_kept(ranks, tmp_path):
    engine, checkpoints, _, saver = make(ranks, tmp_path)
    progress = TrainingProgress()
    for step in range(1, 8):
        train(engine, progress, 1)
        progress.best_step = min(step, 3)
        saver.save(engine, progress)
    saver.finish()
    assert checkpoints.steps() == [3, 6, 7]
    assert stored(tmp_path) == named(checkpoints)


def test_checkpoints_in_object_storage_are_the_same(ranks, tmp_path, s3):
    states = []
    for place in (str(tmp_path), f"{s3.url}/run/pretrain"):
        torch.manual_seed(0)
        engine = Engine(Toy(), STAGE, ranks)
        checkpoints = Checkpoints(place, keep=1)
        saver = Saver(checkpoints, ranks)
        progress = TrainingProgress()
        for _ in range(2):
            train(engine, progress, 2)
            saver.save(engine, progress)
        saver.finish()
        assert checkpoints.steps() == [4] and checkpoints.damage(4) is None
        assert {entry.name for entry in checkpoints.store.list()} == named(checkpoints)
        states.append(checkpoints.tensors(4))
    assert same(*states)


def test_a_loss_scale_that_was_found_is_kept(ranks, tmp_path):
    def scaling(engine: Engine) -> LossScale:
        engine.loss_scale = LossScale(enabled=True, value=2.0**16, patience=2)
        return engine.loss_scale

    engine, checkpoints, _, saver = make(ranks, tmp_path)
    scaler = scaling(engine)
    for overflow in (True, True, False, True, False):
        scaler.update(not overflow)
    saver.save(engine, TrainingProgress(step=1))
    saver.finish()
    engine, checkpoints, _, saver = make(ranks, tmp_path)
    resumed = scaling(engine)
    checkpoints.load(engine, 1)
    scales = []
    for both in (scaler, resumed):
        scales.append([both.value])
        for overflow in (False, False, True, False, False, False):
            both.update(not overflow)
            scales[-1].append(both.value)
    assert scales[0] == scales[1] and scales[0][0] < 2**16


@pytest.mark.system
def test_hosts_that_share_no_folder_are_told_so(tmp_path):
    for output in run_ranks(Path(__file__).with_name("rank_tasks.py"), 2, ["unshared_folders", tmp_path]):
        assert "step 1 could not be written (rank 0: what rank 1 wrote to" in output
        assert "the hosts share no such folder" in output


@pytest.mark.system
def test_every_host_proves_that_it_sees_the_checkpoints_before_the_first_step(tmp_path):
    outputs = run_ranks(Path(__file__).with_name("rank_tasks.py"), 2, ["shared_place", tmp_path])
    for output in outputs:
        found = json.loads(output.splitlines()[-1])
        assert found["one"] == "shared"
        assert found["own"].startswith("2 rank 1 on ") and "does not see what rank 0 writes" in found["own"]
        assert "set pretrain.checkpoints=s3://" in found["own"]
        assert found["file"].startswith("2 ") and "Not a directory" in found["file"]
    # Nothing is left of the trials but the folders of the places that serve.
    assert json.loads(outputs[0].splitlines()[-1])["left"] == [
        "host-0",
        "host-0/late",
        "host-1",
        "host-1/late",
        "one",
        "one/file",
    ]


def sealed(state: dict) -> bytes:
    body = {key: value for key, value in state.items() if key != "xxh3_128"}
    return json.dumps({**body, "xxh3_128": _digest(body)}).encode()


def changed(*path: str, value: object) -> Callable[[dict], bytes]:
    """state.json with another value at a place in it, and with its right hash."""

    def change(state: dict) -> bytes:
        node = state
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        return sealed(state)

    return change


STATES: dict[str, Callable[[dict], bytes]] = {
    "list": lambda state: b"[]",
    "text": lambda state: b'"state"',
    "empty": lambda state: b"",
    "null": lambda state: b"null",
    "deep": lambda state: b"[" * 200_000,
    "deep with a hash": changed("recipe", value=json.loads("[" * 90 + "]" * 90)),
    "infinite": lambda state: sealed(state).replace(b'"seconds": ', b'"seconds": Infinity, "x": ', 1),
    "400 digits": changed("progress", "step", value=10**400),
    "step -5": changed("progress", "step", value=-5),
    "step of another": changed("progress", "step", value=7),
    "step is text": changed("progress", "step", value="3"),
    "step is true": changed("progress", "step", value=True),
    "since_best -1": changed("progress", "since_best", value=-1),
    "progress is a list": changed("progress", value=[]),
    "losses of text": changed("progress", "recent_losses", value=["x"]),
    "no files": lambda state: sealed({key: value for key, value in state.items() if key != "files"}),
    "files is a list": changed("files", value=[]),
    "a file outside": changed("files", "../../x", value={"bytes": 1, "xxh3_128": "0"}),
    "a file with a surrogate": changed("files", "tensors-\ud800.safetensors", value={"bytes": 1, "xxh3_128": "0"}),
    "a file without size": changed("files", "tensors-x.safetensors", value={}),
    "shapes of text": changed("shapes", "weight", value="(3, 5)"),
}  # fmt: skip


@pytest.mark.parametrize("damage", STATES)
def test_a_state_that_is_none_is_named_and_the_checkpoint_before_it_taken(ranks, tmp_path, damage):
    engine, checkpoints, _, saver = make(ranks, tmp_path)
    progress = TrainingProgress()
    for _ in range(2):
        train(engine, progress)
        saver.save(engine, progress)
        saver.finish()
    path = tmp_path / "step-00000002" / "state.json"
    path.write_bytes(STATES[damage](json.loads(path.read_bytes())))
    lines: list[str] = []
    assert checkpoints.load_latest(engine, lines.append).step == 1
    assert len(lines) == 1 and "step-00000002/state.json is damaged (" in lines[0] and len(lines[0]) < 400


json_values = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["progress", "files", "format", "step", "x"]), inner)
    ),
    max_leaves=6,
)


@given(st.binary(max_size=300) | json_values)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_as_a_state_are_damage(tmp_path, given_state):
    data = given_state if isinstance(given_state, bytes) else json.dumps(given_state).encode()
    if isinstance(given_state, dict):
        data = sealed(given_state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.store.put("step-00000001/state.json", data)
    with pytest.raises(CheckpointError, match=r"state\.json (is damaged|has format)"):
        checkpoints.state(1)
