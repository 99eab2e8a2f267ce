"""Damage of every kind is found, named by shard and sample, and never delivered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from factories.datasets import fill, make_sample, publish, snapshot

from sage_scale.cli.main import run
from sage_scale.errors import DatasetError, StorageError
from sage_scale.shards import open_dataset, sample_key, verify_dataset
from sage_scale.storage import Store, open_store

Damage = Callable[[Store, np.random.Generator], tuple[str, str]]


def sample_at(store: Store, unit: int, byte: int) -> str:
    """The key of the sample that this byte of a tar belongs to, or nothing."""
    table = open_dataset(store).samples()
    for row in range(len(table)):
        if table.unit[row] == unit and 0 <= byte - table.offset[row] < table.length[row]:
            return f"{int(table.key[row]):016x}"
    return ""


def flip(store: Store, rng: np.random.Generator) -> tuple[str, str]:
    unit = int(rng.integers(0, 3))
    data = bytearray(store.get(f"{unit:06d}.tar"))
    at = int(rng.integers(0, len(data)))
    data[at] ^= 1 << int(rng.integers(0, 8))
    key = sample_at(store, unit, at)
    store.put(f"{unit:06d}.tar", bytes(data))
    return f"{unit:06d}.tar", key


def truncate(store: Store, rng: np.random.Generator) -> tuple[str, str]:
    unit = int(rng.integers(0, 3))
    data = store.get(f"{unit:06d}.tar")
    at = int(rng.integers(0, len(data)))
    key = sample_at(store, unit, at)
    store.put(f"{unit:06d}.tar", data[:at])
    return f"{unit:06d}.tar", key


def drop_member(store: Store, rng: np.random.Generator) -> tuple[str, str]:
    from sage_scale.shards.tar import walk

    unit = int(rng.integers(0, 3))
    data = store.get(f"{unit:06d}.tar")
    members = list(walk(data, ""))
    gone = members[int(rng.integers(0, len(members)))]
    store.put(f"{unit:06d}.tar", data[: gone.start] + data[gone.end :])
    return f"{unit:06d}.tar", sample_at(store, unit, gone.start)


def swap(store: Store, rng: np.random.Generator) -> tuple[str, str]:
    one, other = rng.permutation(3)[:2].tolist()
    names = [f"{n:06d}.{ending}" for ending in ("tar", "idx", "json") for n in (one, other)]
    data = [store.get(name) for name in names]
    count = int(rng.integers(1, 4)) * 2  # the tars alone, with their indexes, with their markers too
    for i in range(0, count, 2):
        store.put(names[i], data[i + 1])
        store.put(names[i + 1], data[i])
    return f"{one:06d}.tar", ""


def flip_beside(store: Store, rng: np.random.Generator) -> tuple[str, str]:
    name = ["000000.idx", "000001.json", "000002.idx", "dataset.json"][int(rng.integers(0, 4))]
    data = bytearray(store.get(name))
    data[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
    store.put(name, bytes(data))
    return name, ""


def lose(store: Store, rng: np.random.Generator) -> tuple[str, str]:
    names = [entry.name for entry in store.list() if entry.name != "index.json"]
    name = names[int(rng.integers(0, len(names)))]
    store.delete(name)
    return name, ""


def stale(store: Store, rng: np.random.Generator) -> tuple[str, str]:
    """A shard made again from other clips, with index and marker that agree with it; index.json knows the old."""
    info = open_dataset(store).info
    unit = int(rng.integers(0, 2))
    for ending in ("tar", "idx", "json"):
        store.delete(f"{unit:06d}.{ending}")
    samples = [make_sample(f"new {rng.integers(0, 1000)} {n}") for n in range(6)]
    publish(store, samples, unit=unit, split="train", dataset=info.digest)
    return f"{unit:06d}.tar", ""


KINDS: dict[Damage, int] = {
    flip: 50,
    truncate: 15,
    drop_member: 15,
    swap: 8,
    flip_beside: 15,
    lose: 10,
    stale: 3,
}


@pytest.mark.parametrize("damage", KINDS, ids=lambda damage: damage.__name__)
def test_all_damage_is_found_and_named(store: Store, whole: dict[str, bytes], damage: Damage) -> None:
    rng = np.random.default_rng(KINDS[damage])
    for turn in range(KINDS[damage]):
        name, key = damage(store, rng)
        problems = verify_dataset(store, threads=1).problems
        assert any(name in problem for problem in problems), (turn, name, problems)
        assert not key or any(key in problem for problem in problems), (turn, name, key, problems)
        assert not any("\n" in problem for problem in problems)
        _deliver_only_what_was_written(store)
        fill(store, whole)
    assert verify_dataset(store, threads=2).problems == ()


def _deliver_only_what_was_written(store: Store) -> None:
    """A reader gets each sample as it was written, or an error that names shard and sample, and nothing else."""
    dataset = open_dataset(store)
    table = dataset.samples()
    for row in range(len(table)):
        unit = dataset.units[int(table.unit[row])]
        key = f"{int(table.key[row]):016x}"
        try:
            sample = dataset.read(table, row)
        except (DatasetError, StorageError) as error:
            assert unit.tar in str(error)
            assert isinstance(error, StorageError) or key in str(error)
        else:
            ours = make_sample(sample.meta["id"], split=sample.meta["split"])
            assert sample.features is not None and ours.features is not None
            assert sample.key == key and sample.features.tobytes() == ours.features.tobytes()


def test_a_shard_too_many_is_a_stale_index(store: Store) -> None:
    store.put("000007.tar", b"")
    (problem,) = verify_dataset(store).problems
    assert "000007.tar" in problem and "stale" in problem


def test_progress_counts_every_shard(store: Store, whole: dict[str, bytes]) -> None:
    calls: list[tuple[int, int, int]] = []
    report = verify_dataset(store, threads=3, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)]
    size = sum(len(data) for name, data in whole.items() if name.endswith(".tar"))
    assert calls[-1][2] == report.bytes == size and (report.units, report.samples) == (3, 14)


def test_the_verbs_and_their_exit_codes(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    url = store.url

    def call(*arguments: str, code: int = 0) -> str:
        assert run(["shards", *arguments]) == code
        captured = capsys.readouterr()
        return captured.out + captured.err

    assert "3 shards, 14 samples" in call("verify", url)
    assert "train 12, dev 2; finished" in call("ls", url)
    assert "dev-2-1" in call("ls", url, "--samples", "--split", "dev")
    assert "dev-x  too-short  3 frames" in call("ls", url, "--rejects")
    assert '"id": "train-1-3"' in call("cat", url, "train-1-3", "--out", str(tmp_path / "members"))
    key = make_sample("train-1-3").key
    members = {path.name for path in (tmp_path / "members").iterdir()}
    assert members == {f"{key}.json", f"{key}.segments.npy", f"{key}.features.npy"}
    assert f'"key": "{key}"' in call("cat", url, key)
    assert "has no clip 'nobody'" in call("cat", url, "nobody", code=2)
    for name in ("dev-x", sample_key("dev-x")):
        assert "'dev-x' was rejected" in (said := call("cat", url, name, code=2))
        assert "000002.tar: too-short: 3 frames" in said and len(said.splitlines()) == 1
    assert "train: 12 clips in 2 shards" in call("stats", url)
    assert '"gloss_types": 3' in call("stats", url, "--json")
    store.put("000001.tar", store.get("000001.tar")[:-2000])
    text = call("verify", url, code=1)
    assert "000001.tar" in text and "problems" in text and "Traceback" not in text
    for name in ("000001.json", "000001.idx", "000001.tar", "index.json"):
        store.delete(name)
    assert "1 of 3 units are open (000001)" in call("verify", url, code=1)
    assert "is not a dataset" in call("verify", str(tmp_path), code=2)


def test_index_makes_everything_again(store: Store, whole: dict[str, bytes]) -> None:
    for name in ("000000.idx", "000001.json", "index.json"):
        store.delete(name)
    assert run(["shards", "index", store.url]) == 0
    assert snapshot(store) == whole


@pytest.mark.system
def test_a_byte_that_flips_on_the_way_from_s3_is_noticed(ceph, behind_proxy, whole: dict[str, bytes]) -> None:
    fill(open_store(ceph.url), whole)
    assert verify_dataset(ceph.url).problems == ()
    proxy = behind_proxy(ceph)
    dataset = open_dataset(ceph.url)
    table = dataset.samples("train")
    proxy.add("corrupt", path=r"000000\.tar", at=700)
    with pytest.raises(
        DatasetError, match=rf"000000\.tar, sample {int(table.key[2]):016x}: its bytes differ"
    ):
        dataset.read(table, 2)
    dataset.read(table, 2)
    proxy.add("corrupt", path="index.json", at=700)
    with pytest.raises(DatasetError, match=r"index\.json is damaged"):
        open_dataset(ceph.url)
