"""RepairPlan: whatever is damaged, the dataset is whole afterwards, and every clip that is gone was named."""

from __future__ import annotations

import numpy as np
import pytest
from factories.datasets import equal, make_sample, snapshot

from sage_scale.cli.main import run
from sage_scale.errors import DatasetError
from sage_scale.shards import open_dataset, read_rejects, sample_key, verify_dataset
from sage_scale.shards.remove import remove_clips
from sage_scale.shards.repair import carry_out_repair, plan_repair
from sage_scale.storage import Store


def all_keys(whole: dict[str, bytes]) -> set[str]:
    names = [f"train-{unit}-{n}" for unit in (0, 1) for n in range(6)] + ["dev-2-0", "dev-2-1"]
    return {sample_key(name) for name in names}


def read_all(store: Store) -> set[str]:
    dataset = open_dataset(store)
    table = dataset.samples()
    keys = set()
    for row in range(len(table)):
        sample = dataset.read(table, row)
        assert equal(sample, make_sample(sample.meta["id"], split=sample.meta["split"]))
        keys.add(sample.key)
    return keys


def flip(store: Store, name: str, rng: np.random.Generator) -> None:
    data = bytearray(store.get(name))
    data[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
    store.put(name, bytes(data))


def cut(store: Store, name: str, rng: np.random.Generator) -> None:
    data = store.get(name)
    store.put(name, data[: int(rng.integers(0, len(data)))])


def lose(store: Store, name: str, rng: np.random.Generator) -> None:
    store.delete(name)


def exchange(store: Store, name: str, rng: np.random.Generator) -> None:
    others = [entry.name for entry in store.list() if entry.name != name and entry.name[-4:] == name[-4:]]
    store.put(name, store.get(others[int(rng.integers(0, len(others)))]) if others else b"")


@pytest.mark.parametrize("seed", range(24))
def test_any_damage_is_repaired_and_every_loss_is_named(store: Store, whole, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = sorted(whole)
    tars = 0
    hit = int(rng.integers(1, 4))
    for name in rng.permutation(names)[:hit].tolist():
        [flip, cut, lose, exchange][int(rng.integers(0, 4))](store, name, rng)
        tars += name.endswith(".tar")
    if not {"dataset.json", "index.json"} - {
        n for n in names if not store.exists(n) or store.get(n) != whole[n]
    }:
        with pytest.raises(DatasetError):
            plan_repair(store)
        return
    damaged = snapshot(store)
    found = plan_repair(store)
    assert snapshot(store) == damaged  # looking changes nothing
    assert found.empty == (damaged == whole)
    lost = {lost.key for lost in found.lost}
    unknown = [unit for unit in found.damaged if unit.fault == "unknown"]
    if carry_out_repair(found):
        assert not unknown and verify_dataset(store).problems == ()
        assert read_all(store) == all_keys(whole) - lost
        if not tars and hit <= 2:  # one witness is left of every shard: nothing is given up
            assert not lost and snapshot(store) == whole
        assert plan_repair(store).empty
    else:
        assert unknown and not store.exists("index.json")
    # a clip whose id could be read is named by it, and is what it says
    assert all(sample_key(clip.id) == clip.key for clip in found.lost if clip.id)


def test_the_lost_become_rejects_that_can_be_tried_again(store: Store) -> None:
    at = int(open_dataset(store).records[3]["offset"]) + 2900
    data = bytearray(store.get("000000.tar"))
    data[at] ^= 1
    store.put("000000.tar", bytes(data))
    carry_out_repair(plan_repair(store))
    unit = open_dataset(store).units[0]
    assert unit.tar == "000000.g1.tar" and unit.samples == 5
    (reject,) = read_rejects(store, unit)
    assert (reject.id, reject.reason) == ("train-0-3", "damaged")


def test_what_a_shard_left_out_is_kept(store: Store) -> None:
    data = bytearray(store.get("000002.tar"))
    data[int(open_dataset(store).records[12]["offset"]) + 2900] ^= 1
    store.put("000002.tar", bytes(data))
    carry_out_repair(plan_repair(store))
    reasons = {reject.id: reject.reason for reject in read_rejects(store, open_dataset(store).units[2])}
    assert reasons == {"dev-x": "too-short", "dev-2-0": "damaged"}


def test_clips_that_were_taken_out_do_not_come_back_by_repair(store: Store, whole) -> None:
    remove_clips(store, ["train-0-0"])
    store.put("000000.tar", whole["000000.tar"])  # an old copy turns up, and the newer shard is lost
    store.delete("000000.g1.tar")
    assert carry_out_repair(plan_repair(store))
    assert read_all(store) == all_keys(whole) - {sample_key("train-0-0")}
    assert verify_dataset(store).problems == ()


def test_a_dataset_json_that_fits_no_shard_drops_none(store: Store, whole) -> None:
    store.delete("index.json")
    store.put("dataset.json", whole["dataset.json"].replace(b"0123456789abcdef", b"0123456789abcdee"))
    before = snapshot(store)
    with pytest.raises(DatasetError, match="restore it; nothing was changed"):
        plan_repair(store)
    assert snapshot(store) == before


def test_an_index_is_not_made_over_damage(store: Store) -> None:
    data = bytearray(store.get("000001.tar"))
    data[int(open_dataset(store).records[8]["offset"]) + 2900] ^= 1  # a feature: the tar still reads
    store.put("000001.tar", bytes(data))
    assert run(["shards", "index", store.url]) == 1
    assert "000001.tar" in " ".join(verify_dataset(store).problems)


def test_the_verb(store: Store, whole, shards) -> None:
    assert "nothing to repair" in shards("repair", store.url)
    store.put("000001.tar", whole["000001.tar"][:-9000])
    store.delete("000000.idx")
    before = snapshot(store)
    said = shards("repair", store.url, "--dry-run", code=1)
    assert snapshot(store) == before
    assert "000001.tar" in said and "nothing was changed (--dry-run)" in said and "lost" in said
    said = shards("repair", store.url)
    key = sample_key("train-1-5")
    assert f"lost  {key}" in said and "000000.idx" in said and "--retry-rejects" in said
    assert run(["shards", "verify", store.url]) == 0
    store.delete("000002.tar")
    said = shards("repair", store.url, "--drop-shards", code=4)
    assert (
        "shard deleted, to be made again" in said
        and "sage-scale precompute" in said
        and f"--out {store.url}" in said
    )
    assert "--retry-rejects" not in said
