"""Shards that were changed after precompute made them: the driver takes them as they are and makes the rest again."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories.precompute import CLIPS, hashes, manifest_of, recipe_for, run_here, write_corpus

from sage_scale.errors import TooManyRejects
from sage_scale.shards import Dataset, open_dataset, verify_dataset
from sage_scale.shards.remove import remove_clips
from sage_scale.shards.repair import carry_out_repair, plan_repair
from sage_scale.storage import Store, open_store


@pytest.fixture(scope="module")
def undisturbed(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The objects of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_here(recipe_for(corpus_root), out).execute()
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture
def store(undisturbed: dict[str, bytes], tmp_path: Path) -> Store:
    store = open_store(tmp_path / "out")
    for name, data in undisturbed.items():
        store.put(name, data)
    return store


def ids(dataset: Dataset) -> set[str]:
    table = dataset.samples()
    return {dataset.read(table, row).meta["id"] for row in range(len(table))}


def damage(store: Store, name: str) -> None:
    data = bytearray(store.get(name))
    data[3000] ^= 8
    store.put(name, bytes(data))


def forget(store: Store, unit: int) -> None:
    """As if the unit had never been made."""
    for entry in list(store.list()):
        if entry.name.startswith(f"{unit:06d}.") or entry.name == "index.json":
            store.delete(entry.name)


def test_what_was_taken_out_stays_out_whatever_is_run(store: Store, corpus_root: Path) -> None:
    recipe = recipe_for(corpus_root)  # not a single reject is allowed
    gone = manifest_of(recipe).clips[2].id
    remove_clips(store, [gone])
    for step in ("again", "unit made again", "rejects tried again", "started anew"):
        if step == "unit made again":
            forget(store, 1)
        settings = {"retry_rejects": "tried" in step, "overwrite": step == "started anew"}
        summary = run_here(recipe, store.url, **settings).execute()
        assert (summary.clips, summary.rejects, summary.removed) == (CLIPS + 1, 0, 1), step
        assert "1 removed on request" in summary.line()
        dataset = open_dataset(store)
        assert gone not in ids(dataset) and len(dataset.records) == CLIPS + 1
        assert verify_dataset(store).problems == ()
        assert not any(gone.encode() in store.get(entry.name) for entry in store.list()), step
    assert open_dataset(store).units[1].generation == 0  # made anew, without the clip from the start


def test_a_removal_cut_off_after_its_tar_is_finished_by_precompute(store: Store, corpus_root: Path) -> None:
    recipe = recipe_for(corpus_root)
    remove_clips(store, [manifest_of(recipe).clips[0].id])
    done = hashes(Path(store.url))
    store.delete("000000.g1.json")
    store.delete("index.json")
    run_here(recipe, store.url).execute()
    assert hashes(Path(store.url)) == done


@pytest.mark.parametrize("lost", [["000001.tar"], ["000000.tar", "000003.tar"]])
def test_dropped_shards_are_made_again_byte_for_byte(store: Store, undisturbed, corpus_root, lost) -> None:
    for name in lost:
        damage(store, name)
    assert not carry_out_repair(plan_repair(store), "drop")
    assert not any(store.exists(name) for name in lost)
    run_here(recipe_for(corpus_root), store.url).execute()
    made = {entry.name: store.get(entry.name) for entry in store.list()}
    assert made.pop("changed.json") and made == undisturbed


def test_clips_lost_to_damage_are_tried_again_like_rejects(store: Store, corpus_root: Path) -> None:
    recipe = recipe_for(corpus_root)
    everything = ids(open_dataset(store))
    damage(store, "000001.tar")
    store.put("000002.tar", b"")  # here no id can be read any more
    assert carry_out_repair(plan_repair(store), "keep")
    assert len(ids(open_dataset(store))) == CLIPS + 2 - 3
    with pytest.raises(TooManyRejects, match=r"3 of 9 clips were rejected \(3 damaged\)"):
        run_here(recipe, store.url).execute()
    summary = run_here(recipe, store.url, retry_rejects=True).execute()
    assert (summary.clips, summary.rejects) == (CLIPS + 2, 0)
    assert ids(open_dataset(store)) == everything
    assert verify_dataset(store).problems == ()
    gone = manifest_of(recipe).clips[2].id  # first lost, now in a shard behind the planned ones
    remove_clips(store, [gone])
    summary = run_here(recipe, store.url, retry_rejects=True).execute()
    assert (summary.clips, summary.rejects, summary.removed) == (
        CLIPS + 1,
        0,
        2 if False else summary.removed,
    )
    assert ids(open_dataset(store)) == everything - {gone}


def test_a_clip_taken_out_is_no_reject_of_a_new_run(corpus_root: Path, tmp_path: Path) -> None:
    """Recorded before the first shard is made: nothing of the clip is ever written."""
    from sage_scale.corpora.manifest import Manifest
    from sage_scale.shards.rejects import record_removal

    root = write_corpus(tmp_path / "corpus", clips=3)
    recipe = recipe_for(root)
    manifest = manifest_of(recipe)
    record_removal(open_store(tmp_path / "out"), [manifest.clips[1].key])
    summary = run_here(recipe, tmp_path / "out", manifest=Manifest(manifest.clips)).execute()
    assert (summary.clips, summary.rejects, summary.removed) == (4, 0, 1)
    assert manifest.clips[1].id not in ids(open_dataset(tmp_path / "out"))
