"""Damage of every kind is found, named by shard and sample, and never delivered."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories.datasets import fill, make_sample, snapshot

from sage_scale.cli.main import run
from sage_scale.errors import DatasetError
from sage_scale.shards import open_dataset, sample_key, verify_dataset
from sage_scale.storage import Store, open_store


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


def test_the_verbs_and_their_exit_codes(store: Store, shards, tmp_path: Path) -> None:
    url = store.url

    assert "3 shards, 14 samples" in shards("verify", url)
    assert "train 12, dev 2; finished" in shards("ls", url)
    assert "dev-2-1" in shards("ls", url, "--samples", "--split", "dev")
    assert "dev-x  too-short  3 frames" in shards("ls", url, "--rejects")
    assert '"id": "train-1-3"' in shards("cat", url, "train-1-3", "--out", str(tmp_path / "members"))
    key = make_sample("train-1-3").key
    members = {path.name for path in (tmp_path / "members").iterdir()}
    assert members == {f"{key}.json", f"{key}.segments.npy", f"{key}.features.npy"}
    assert f'"key": "{key}"' in shards("cat", url, key)
    assert "has no clip 'nobody'" in shards("cat", url, "nobody", code=2)
    for name in ("dev-x", sample_key("dev-x")):
        assert "'dev-x' was rejected" in (said := shards("cat", url, name, code=2))
        assert "000002.tar: too-short: 3 frames" in said and len(said.splitlines()) == 1
    assert "train: 12 clips in 2 shards" in shards("stats", url)
    assert '"gloss_types": 3' in shards("stats", url, "--json")
    store.put("000001.tar", store.get("000001.tar")[:-2000])
    text = shards("verify", url, code=1)
    assert "000001.tar" in text and "problems" in text and "Traceback" not in text
    for name in ("000001.json", "000001.idx", "000001.tar", "index.json"):
        store.delete(name)
    assert "1 of 3 units are open (000001)" in shards("verify", url, code=1)
    assert "is not a dataset" in shards("verify", str(tmp_path), code=2)


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
