"""Merge and split: every sample once, byte for byte, and a run that was killed is taken up by running it again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from factories.datasets import DyingStore, Killed, equal, make_dataset, make_sample, snapshot, write_dataset

from sage_scale.errors import DatasetError, UsageError
from sage_scale.shards import (
    Dataset,
    open_dataset,
    read_rejects,
    read_sample,
    verify_dataset,
)
from sage_scale.shards.merge import merge_datasets, with_split
from sage_scale.shards.remove import remove_clips
from sage_scale.shards.split import by_count, by_ids, by_share, by_signer, split_dataset, with_rest
from sage_scale.storage import open_store


def dataset_of(place: Path, *clips: str, size: int = 64, kind: str = "features") -> Dataset:
    part = {"vision": {"kind": kind, "fps": 25.0, "size": size}, "text": {"a": place.name}}
    units = [("train", [make_sample(clip, kind) for clip in clips])]
    return write_dataset(place, units, f"r{size}", manifest="m", recipe_part=part)  # type: ignore[return-value]


@pytest.fixture
def one(tmp_path: Path) -> Dataset:
    """14 clips in train and dev, and one reject."""
    return make_dataset(open_store(tmp_path / "one"))


def pieces(dataset: Dataset) -> dict[str, tuple[str, bytes]]:
    """Split and bytes of each sample by key."""
    table, found = dataset.samples(), {}
    for row in range(len(table)):
        unit = dataset.units[int(table.unit[row])]
        data = dataset.store.get_range(unit.tar, int(table.offset[row]), int(table.length[row]))
        found[f"{int(table.key[row]):016x}"] = (unit.split, data)
    return found


def test_parts_put_together_again_hold_the_same_bytes(one: Dataset, tmp_path: Path) -> None:
    parts = with_rest(one, by_share(one, {"a": 0.25, "b": 0.5}), "rest")
    outs = {name: open_store(tmp_path / name) for name in parts}
    made = split_dataset(one, outs, parts)
    assert set(made) == {"a", "b", "rest"}
    whole = pieces(one)
    taken = [pieces(dataset) for dataset in made.values()]
    assert sum(map(len, taken)) == 14 and {key: v for part in taken for key, v in part.items()} == whole
    for dataset in made.values():
        assert verify_dataset(dataset.store).problems == ()
    merged = merge_datasets(open_store(tmp_path / "merged"), list(made.values()))
    assert pieces(merged) == whole and verify_dataset(merged.store).problems == ()


def test_shares_are_kept_in_every_split_and_stay_when_clips_are_added(tmp_path: Path) -> None:
    small = make_dataset(open_store(tmp_path / "s"), clips=40)
    parts = by_share(small, {"a": 0.25, "b": 0.75})
    units = np.repeat([0, 0, 2], [40, 40, 2])
    assert [int((units[rows] == 0).sum()) for rows in parts.values()] == [20, 60]
    assert not set(parts["a"].tolist()) & set(parts["b"].tolist())
    other = by_share(small, {"a": 0.25}, seed=1)["a"]
    assert len(other) == len(parts["a"]) and other.tolist() != parts["a"].tolist()
    large = make_dataset(open_store(tmp_path / "l"), clips=44)
    a_small = {int(key) for key in small.records["key"][parts["a"]]}
    a_large = {int(key) for key in large.records["key"][by_share(large, {"a": 0.25})["a"]]}
    assert len(a_small & a_large) >= 15


def test_counts_signers_and_ids(one: Dataset, tmp_path: Path) -> None:
    counts = by_count(one, {"x": 3, "y": 100})
    assert [len(rows) for rows in counts.values()] == [3 + 2, 9]
    assert [len(rows) for rows in by_signer(one, {"all": ["s1"]}).values()] == [14]
    ids = by_ids(one, {"p": ["train-0-3", make_sample("dev-2-0").key], "q": ["train-1-1"]})
    assert ids["p"].tolist() == [3, 12] and ids["q"].tolist() == [7]
    for wrong in (
        lambda: by_signer(one, {"a": ["s2"]}),
        lambda: by_signer(one, {"a": ["s1"], "b": ["s1"]}),
        lambda: by_ids(one, {"a": ["nobody"]}),
        lambda: by_share(one, {"a": 0.7, "b": 0.7}),
        lambda: by_count(one, {"a": 0}),
        lambda: with_rest(one, ids, "p"),
        lambda: with_rest(one, {}, ""),
    ):
        with pytest.raises(UsageError):
            wrong()


def test_parts_as_splits_change_one_word(one: Dataset, tmp_path: Path) -> None:
    parts = with_rest(one, by_share(one, {"train": 0.5, "dev": 0.25}), "test")
    out = open_store(tmp_path / "out")
    (made,) = split_dataset(one, dict.fromkeys(parts, out), parts, as_splits=True).values()
    assert made.splits == {name: len(rows) for name, rows in parts.items()}
    assert verify_dataset(out).problems == ()
    before, after = pieces(one), pieces(made)
    assert before.keys() == after.keys()
    for key, (split, data) in after.items():
        theirs, ours = read_sample(before[key][1], key=key), read_sample(data, key=key)
        assert ours.meta == {**theirs.meta, "split": split}
        assert equal(ours, type(ours)(**{**vars(theirs), "meta": ours.meta}))
        assert with_split(data, before[key][0]) == before[key][1]


def test_merging_asks_for_likeness_and_for_each_clip_once(tmp_path: Path) -> None:
    a = dataset_of(tmp_path / "a", "x", "y")
    b = dataset_of(tmp_path / "b", "y", "z")
    out = open_store(tmp_path / "out")
    with pytest.raises(UsageError, match=r"not alike: size is 64 in the one and 32 in the other"):
        merge_datasets(out, [a, dataset_of(tmp_path / "c", "w", size=32)])
    with pytest.raises(UsageError, match="not alike: kind is"):
        merge_datasets(out, [a, dataset_of(tmp_path / "d", "w", kind="frames")])
    with pytest.raises(UsageError, match=rf"1 clips are in more than one dataset: {make_sample('y').key}"):
        merge_datasets(out, [a, b])
    with pytest.raises(UsageError, match="given twice"):
        merge_datasets(out, [a, a])
    with pytest.raises(UsageError, match="one of the sources"):
        merge_datasets(open_store(tmp_path / "a"), [a, b])
    assert not list(out.list())
    merged = merge_datasets(out, [a, b], first_wins=True)
    assert [f"{int(key):016x}" for key in merged.records["key"]] == [make_sample(n).key for n in "xyz"]
    assert merged.info.recipe_part == {"text": {}, "vision": {"fps": 25.0, "kind": "features", "size": 64}}
    with pytest.raises(DatasetError, match="holds another dataset"):
        merge_datasets(out, [b, dataset_of(tmp_path / "e", "v")])


def test_rejects_and_removals_go_along(one: Dataset, tmp_path: Path) -> None:
    other = dataset_of(tmp_path / "b", "z")
    remove_clips(one.store, ["train-0-0"])
    alike = dataset_of(tmp_path / "c", "train-0-0")  # the same clip, in a dataset that still has it
    out = open_store(tmp_path / "out")
    source = open_dataset(one.store)
    merged = split_dataset(source, {"all": out}, with_rest(source, {}, "all"))["all"]
    assert {unit.rejects for unit in merged.units} == {0}
    both = merge_datasets(open_store(tmp_path / "both"), [other, alike])
    assert len(both.records) == 2
    remove_clips(other.store, ["z"])
    again = merge_datasets(open_store(tmp_path / "again"), [open_dataset(other.store), alike])
    assert len(again.records) == 1
    assert [r.reason for unit in again.units for r in read_rejects(again.store, unit)] == ["removed"]


@pytest.mark.parametrize("at", range(0, 12))
def test_a_merge_that_was_killed_goes_on(tmp_path: Path, at: int) -> None:
    sources = [dataset_of(tmp_path / name, name, f"{name}2") for name in "abc"]
    done = open_store(tmp_path / "done")
    merge_datasets(done, sources)
    place = tmp_path / "out"
    try:
        merge_datasets(DyingStore(place, at), sources)
    except Killed:
        with pytest.raises(DatasetError):
            open_dataset(place)
    merge_datasets(open_store(place), sources)
    assert snapshot(open_store(place)) == snapshot(done)


def test_damage_is_not_copied(one: Dataset, tmp_path: Path) -> None:
    data = bytearray(one.store.get("000001.tar"))
    data[int(one.records[8]["offset"]) + 2900] ^= 1
    one.store.put("000001.tar", bytes(data))
    key = f"{int(one.records[8]['key']):016x}"
    with pytest.raises(DatasetError, match=rf"000001\.tar, sample {key}: .*shards repair"):
        split_dataset(one, {"all": open_store(tmp_path / "out")}, with_rest(one, {}, "all"))


def test_the_verbs(one: Dataset, tmp_path: Path, shards) -> None:
    out = str(tmp_path / "out")
    assert "12 clips" in shards("split", one.url, "--out", out, "--share", "a=0.2", "--rest", "b")
    assert "14 clips of 2 datasets" in shards("merge", str(tmp_path / "m"), f"{out}/a", f"{out}/b")
    shards("merge", str(tmp_path / "m"), f"{out}/a", f"{out}/b")
    assert "choose how to split" in shards("split", one.url, "--out", out, code=2)
    assert "--share and --count cannot be given together" in shards(
        "split", one.url, "--out", out, "--share", "a=1", "--count", "b=1", code=2
    )
    assert "write NAME=VALUE" in shards("split", one.url, "--out", out, "--share", "../x=1", code=2)
    assert "'x' is no number" in shards("split", one.url, "--out", out, "--share", "a=x", code=2)
    assert "must be refuse or first" in shards("merge", out, one.url, "--duplicates", "maybe", code=2)
    (tmp_path / "ids").write_text("train-0-1\ntrain-0-2\n")
    said = shards(
        "split", one.url, "--out", str(tmp_path / "i"), "--ids", f"d={tmp_path / 'ids'}", "--rest", ""
    )
    assert "2 clips in 1 shards (train 2)" in said


@pytest.mark.system
def test_between_s3_and_folders(s3, one: Dataset, tmp_path: Path) -> None:
    parts = with_rest(one, by_share(one, {"a": 0.5}), "b")
    remote = split_dataset(one, {name: open_store(f"{s3.url}/{name}") for name in parts}, parts)
    here = split_dataset(one, {name: open_store(tmp_path / name) for name in parts}, parts)
    for name in parts:
        assert snapshot(remote[name].store) == snapshot(here[name].store)
    merged = merge_datasets(open_store(tmp_path / "m"), [remote["a"], remote["b"]])
    assert pieces(merged) == pieces(one)
