"""Object storage that goes away while a run saves: sat out where it comes back, one line in time where it does not."""

from __future__ import annotations

import json

import pytest
import torch
from factories.training import make_language_folder, make_shards, tiny_recipe

from sage_scale.config import override
from sage_scale.errors import StorageError
from sage_scale.storage import s3
from sage_scale.training.checkpoint.checkpoints import Checkpoints
from sage_scale.training.export import load_tensors
from sage_scale.training.stage import STAGE1, run_stage

pytestmark = pytest.mark.system
PATIENCE_S = 3.0


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "ATTEMPTS", 1)  # its own repeating comes before ours
    language = make_language_folder(tmp_path / "language")
    recipe = tiny_recipe(
        "features",
        f"model.language_model={language}",
        "pretrain.save_every=2",
        f"stream.give_up_after_s={PATIENCE_S}",
    )
    return recipe, make_shards(tmp_path / "shards", recipe, [("train", 24), ("dev", 4)])


@pytest.mark.parametrize("server", ["s3", "ceph"])
def test_an_outage_during_a_save_changes_nothing(server, world, tmp_path, behind_proxy, request, capfd):
    recipe, data = world
    run_stage("pretrain", recipe, tmp_path / "calm", data)
    bucket = request.getfixturevalue(server)
    proxy = behind_proxy(bucket)
    # Attempts at 0, .2 and .7 s fail, the one at 1.7 s goes through: the outage is shorter than the patience.
    outage = proxy.add("refuse", method="PUT", times=3, skip=4)
    proxy.add("status", method="PUT", times=3, skip=20)
    proxy.add("lost_response", method="PUT", times=2, skip=30)
    run_stage(
        "pretrain", override(recipe, [f"pretrain.checkpoints={bucket.url}/runs"]), tmp_path / "run", data
    )
    assert outage.hits == 3
    assert "waits for its storage" in capfd.readouterr().err
    one, other = (load_tensors(tmp_path / run / STAGE1) for run in ("calm", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    remote = Checkpoints(f"{bucket.url}/runs/run/pretrain")
    assert len(remote.steps()) == 2 and all(remote.damage(step) is None for step in remote.steps())
    listed = {entry.name for entry in remote.store.list()}
    assert len(listed) == sum(1 + len(remote.state(step)["files"]) for step in remote.steps())
    assert not (tmp_path / "run" / "pretrain" / "checkpoints").exists()


@pytest.mark.timeout(120)
def test_an_outage_that_lasts_ends_the_run_in_time_and_it_goes_on_later(world, tmp_path, behind_proxy, s3):
    recipe, data = world
    proxy = behind_proxy(s3)
    remote = override(recipe, [f"pretrain.checkpoints={s3.url}/runs"])
    run_stage("pretrain", override(remote, ["pretrain.max_steps=4"]), tmp_path / "run", data)
    steps_done = len((tmp_path / "run" / "pretrain" / "log.jsonl").read_text().splitlines())
    gone = proxy.add("refuse", method="PUT", times=10**9, skip=1)  # after the trial that a run begins with
    with pytest.raises(
        StorageError,
        match=r"checkpoint of step 6 could not be written \(rank 0[^)]* (cannot be reached|broke)",
    ):
        run_stage("pretrain", override(remote, ["pretrain.max_steps=0"]), tmp_path / "run", data)
    assert gone.hits > 3
    rows = (tmp_path / "run" / "pretrain" / "log.jsonl").read_text().splitlines()
    assert len(rows) > steps_done  # training went on meanwhile
    proxy.rules.clear()
    run_stage("pretrain", override(remote, ["pretrain.max_steps=0"]), tmp_path / "run", data)
    events = [
        json.loads(row) for row in (tmp_path / "run" / "pretrain" / "log.jsonl").read_text().splitlines()
    ]
    assert max(row["step"] for row in events if row["event"] == "step") == 16
