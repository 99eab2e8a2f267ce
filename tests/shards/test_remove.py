"""A person asks to be taken out: the data vanish, everything else stays byte for byte, kills do no harm."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories.datasets import (
    DyingStore,
    Killed,
    equal,
    fill,
    make_dataset,
    make_sample,
    publish,
    snapshot,
    write_dataset,
)

from sage_scale.cli.main import run
from sage_scale.errors import DatasetError, Reject, UsageError
from sage_scale.shards import (
    Dataset,
    Sample,
    finish_dataset,
    list_units,
    open_dataset,
    publish_shard,
    read_metadata,
    read_rejects,
    sample_key,
    verify_dataset,
)
from sage_scale.shards.rejects import removed_keys
from sage_scale.shards.remove import remove_clips
from sage_scale.storage import Store, open_store

GONE = ("train-0-2", "dev-2-1")


def clips_of(dataset: Dataset) -> Iterator[str]:
    table = dataset.samples()
    for row in range(len(table)):
        sample = dataset.read(table, row)
        assert equal(sample, make_sample(sample.meta["id"], split=sample.meta["split"]))
        yield sample.meta["id"]


def test_the_data_vanish_and_nothing_else_changes(store: Store, whole: dict[str, bytes]) -> None:
    before = set(clips_of(open_dataset(store)))
    report = remove_clips(store, GONE)
    assert (report.samples, report.shards, report.objects, report.left) == (2, 2, 6, 12)
    assert set(clips_of(open_dataset(store))) == before - set(GONE)
    after = snapshot(store)
    assert {name for name in whole if name not in after} == {
        f"00000{unit}.{ending}" for unit in (0, 2) for ending in ("tar", "idx", "json")
    }
    untouched = {name for name in whole if name.startswith("000001")} | {"dataset.json"}
    assert all(after[name] == whole[name] for name in untouched)
    everything = b"".join(after.values())
    for clip in GONE:
        sample = make_sample(clip, split=clip.partition("-")[0])
        assert clip.encode() not in everything  # not even the id is kept
        assert sample.features is not None and sample.features.tobytes() not in everything
    assert verify_dataset(store).problems == ()


def test_a_removal_leaves_a_record_by_key_that_a_rerun_respects(store: Store) -> None:
    remove_clips(store, [GONE[0]])
    unit = open_dataset(store).units[0]
    assert unit.tar == "000000.g1.tar" and unit.reasons == {"removed": 1}
    (reject,) = read_rejects(store, unit)
    assert (reject.id, reject.reason) == (f"key:{sample_key(GONE[0])}", "removed")
    assert removed_keys(store) == {sample_key(GONE[0])}
    before = snapshot(store)
    assert remove_clips(store, [GONE[0]]).samples == 0 and remove_clips(store, []).samples == 0
    assert snapshot(store) == before
    remove_clips(store, ["train-0-3", GONE[1]])
    assert open_dataset(store).units[0].tar == "000000.g2.tar"
    assert removed_keys(store) == {sample_key(clip) for clip in (*GONE, "train-0-3")}
    assert verify_dataset(store).problems == ()


@pytest.mark.parametrize("at", range(14))
def test_a_kill_at_any_moment_leaves_a_dataset_that_opens(tmp_path: Path, whole, at: int) -> None:
    done = fill(open_store(tmp_path / "done"), whole)
    remove_clips(done, GONE)
    store = fill(open_store(tmp_path / "data"), whole)
    with pytest.raises(Killed):
        remove_clips(DyingStore(tmp_path / "data", at), GONE)
    left = set(clips_of(open_dataset(store)))  # every sample it names can still be read
    assert len(left) in (12, 14)
    problems = verify_dataset(store).problems
    begun = bool(removed_keys(store)) and snapshot(store) != snapshot(done)
    assert bool(problems) == begun and (not begun or "sage-scale shards re" in " ".join(problems))
    # the same command, the command without ids, or whatever else finishes the dataset completes it
    if begun:
        [lambda: remove_clips(store, GONE), lambda: remove_clips(store, []), lambda: finish_dataset(store)][
            at % 3
        ]()
        assert snapshot(store) == snapshot(done)


def test_a_writer_that_was_thought_dead_brings_nothing_back(store: Store, whole, tmp_path: Path) -> None:
    late = tmp_path / "late.tar"
    late.write_bytes(whole["000000.tar"])
    remove_clips(store, GONE)
    before = snapshot(store)
    marker = publish_shard(store, late)
    assert marker.generation == 1 and snapshot(store) == before
    store.put("000000.tar", late)  # killed between its PUT and its look round
    assert list_units(store).superseded == ("000000.tar",)
    assert "older generations" in verify_dataset(store).problems[0]
    finish_dataset(store)
    assert snapshot(store) == before


def test_two_removals_of_one_shard_at_once_both_hold(store: Store, whole, monkeypatch) -> None:
    from sage_scale.shards import publish as writing

    first = writing.publish_copies
    other = fill(open_store(Path(store.url).parent / "other"), whole)
    remove_clips(other, ["train-0-4"])
    winner = other.get("000000.g1.tar")

    def beaten(to: Store, header, pieces, rejects):
        if not to.exists("000000.g1.tar"):  # another removal stores its tar of this generation first
            to.put("000000.g1.tar", winner)
        return first(to, header, pieces, rejects)

    monkeypatch.setattr(writing, "publish_copies", beaten)
    remove_clips(store, ["train-0-2"])
    clips = set(clips_of(open_dataset(store)))
    assert not {"train-0-2", "train-0-4"} & clips and len(clips) == 12
    assert open_dataset(store).units[0].generation == 2


def test_clips_of_units_still_to_be_made_are_left_out_when_they_are_made(tmp_path: Path) -> None:
    store = open_store(tmp_path / "data")
    make_dataset(store, finish=False)
    report = remove_clips(store, ["train-1-0", "dev-2-0"])
    assert (report.samples, report.absent, report.unfinished_units) == (1, 1, 1)
    assert list_units(store).generation == {0: 0, 1: 1} and not list_units(store).superseded
    info = open_dataset(store, unfinished=True).info
    samples = [make_sample(f"dev-2-{n}", split="dev") for n in range(2)]  # by a writer that does not look
    publish(store, samples, unit=2, split="dev", dataset=info.digest)
    finish_dataset(store)
    assert "dev-2-0" not in set(clips_of(open_dataset(store)))
    assert verify_dataset(store).problems == ()


def test_a_damaged_shard_is_not_blessed(store: Store) -> None:
    data = bytearray(store.get("000000.tar"))
    data[int(open_dataset(store).records[4]["offset"]) + 2800] ^= 1  # another sample's features
    store.put("000000.tar", bytes(data))
    with pytest.raises(DatasetError, match=r"000000\.tar is not the tar.*run `sage-scale shards repair"):
        remove_clips(store, GONE)
    assert len(open_dataset(store).records) == 14


def test_rejects_of_a_person_are_forgotten_too(store: Store) -> None:
    report = remove_clips(store, ["dev-x"])
    assert (report.samples, report.shards) == (0, 1)
    (reject,) = read_rejects(store, open_dataset(store).units[2])
    assert (reject.id, reject.reason, reject.detail) == (f"key:{sample_key('dev-x')}", "removed", "")


def test_readers_of_an_older_index_are_told_that_the_shard_is_gone(store: Store) -> None:
    old = open_dataset(store)
    table = old.samples()
    remove_clips(store, GONE)
    with pytest.raises(
        DatasetError, match=r"000000\.tar, sample .*: the shard is missing.*open the dataset again"
    ):
        old.read(table, 0)


def test_the_verb(store: Store, tmp_path: Path, shards) -> None:
    before = snapshot(store)
    said = shards("remove", store.url, "--ids", f"{GONE[0]},nobody", code=2)
    assert "has no clip 'nobody' (1 unknown); nothing was done" in said
    assert snapshot(store) == before
    with pytest.raises(UsageError):
        remove_clips(store, ["nobody"])
    (tmp_path / "ids.txt").write_text(f"{GONE[0]}\n\n{sample_key(GONE[1])}\nnobody\n")
    said = shards("remove", store.url, "--ids", str(tmp_path / "ids.txt"), "--ignore-unknown")
    assert "2 clips removed, 2 shards rewritten, 6 older objects deleted; 12 clips are left" in said
    (tmp_path / "empty.txt").write_text("\n")
    assert "names no clip" in shards("remove", store.url, "--ids", str(tmp_path / "empty.txt"), code=2)
    assert run(["shards", "remove", str(tmp_path / "nowhere"), "--ids", "x"]) == 2


@pytest.mark.parametrize("name", ["ids.txt", "GONE.CSV", "./ids", "/lists/ids", "~/ids", "../ids"])
def test_a_file_that_is_not_there_is_no_id(store: Store, capsys, name: str) -> None:
    """Nor with --ignore-unknown, which would pass over it and take nobody out."""
    before = snapshot(store)
    for ids in (name, f"{GONE[0]},{name}"):
        assert run(["shards", "remove", store.url, "--ids", ids, "--ignore-unknown"]) == 2
        said = capsys.readouterr().err
        assert f"there is no file {name}" in said and len(said.splitlines()) == 1
    assert snapshot(store) == before
    inside = "a folder/clip.mp4@1.000-2.500"  # as ids of videos in folders are
    assert run(["shards", "remove", store.url, "--ids", inside, "--ignore-unknown"]) == 0


@pytest.mark.system
def test_sigkill_at_random_times(tmp_path: Path, whole) -> None:
    """The command itself, killed by the kernel: what is left opens, and the last call completes it."""
    done = fill(open_store(tmp_path / "done"), whole)
    remove_clips(done, GONE)
    rng = random.Random(0)
    command = [sys.executable, "-m", "sage_scale.cli.main", "shards", "remove"]
    killed = 0
    for turn in range(5):
        store = fill(open_store(tmp_path / f"data{turn}"), whole)
        process = subprocess.Popen([*command, store.url, "--ids", ",".join(GONE)], stdout=subprocess.DEVNULL)
        while process.poll() is None and not removed_keys(store):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.08))
        process.kill()
        killed += process.wait() == -9
        assert len(set(clips_of(open_dataset(store)))) in (12, 14)
        subprocess.run([*command, store.url], check=True, stdout=subprocess.DEVNULL)
        assert snapshot(store) == snapshot(done)
    assert killed >= 2


@pytest.mark.system
def test_a_removal_on_a_ceph_gateway(ceph, whole, shards) -> None:
    store = fill(open_store(ceph.url), whole)
    remove_clips(store, GONE)
    assert len(set(clips_of(open_dataset(store)))) == 12 and verify_dataset(store).problems == ()
    assert not any(entry.name.startswith("000000.") and ".g1." not in entry.name for entry in store.list())
    shards("remove", ceph.url, "--signer", "s1", "--video", "dev-x")
    left = b"".join(snapshot(store).values())
    assert len(open_dataset(store).records) == 0 and not any(n in left for n in (b"dev-x", b"train-1", b"s1"))


@pytest.mark.parametrize(
    ("option", "name", "gone"),
    [
        ("--signer", "anna", 3),
        ("--video", "talk.mp4", 2),
        ("--video", "talk", 2),
        ("--source", "folder/talk.mp4", 2),
    ],
)
def test_all_clips_of_a_signer_or_a_video(tmp_path, shards, option, name, gone) -> None:
    def clip(number: int) -> Sample:
        meta = {
            "signer": "anna" if number % 2 else "ben",
            "source": f"folder/{'talk' if number in (1, 2) else number}.mp4#t={number}.0",
        }
        made = make_sample(f"c-{number}")
        return dataclasses.replace(made, meta={**made.meta, **meta})

    url = str(tmp_path / "set")
    write_dataset(url, [("train", [clip(n) for n in range(3)]), ("train", [clip(n) for n in range(3, 6)])])
    before = snapshot(open_store(url))
    assert f"{gone} clips in" in shards("remove", url, option, name, "--dry-run")
    assert snapshot(open_store(url)) == before
    assert f"{gone} clips removed" in shards("remove", url, option, name)
    left = [meta["id"] for meta in read_metadata(url)]
    assert len(left) == 6 - gone and verify_dataset(open_store(url)).problems == ()
    everything = b"".join(snapshot(open_store(url)).values())
    for number in range(6):
        assert (f"c-{number}".encode() in everything) == (f"c-{number}" in left)


def test_an_unknown_signer_or_video_changes_nothing(store: Store, whole: dict[str, bytes], shards) -> None:
    for option in ("--signer", "--video"):
        said = shards("remove", store.url, option, "nobody", code=2)
        assert "has no clip of" in said and "'nobody'" in said and len(said.splitlines()) == 1
    assert snapshot(store) == whole


def signed(place: Path) -> Dataset:
    """Returns a dataset with two signers, whose videos are cut into clips."""
    clips = [make_sample(f"clip-{n}") for n in range(6)]
    for n, clip in enumerate(clips):
        clip.meta["signer"] = f"signer-{n % 2}"
        clip.meta["source"] = f"talk{n // 3}.mp4#t={n},{n + 1}"
    dev = [dataclasses.replace(clip, meta={**clip.meta, "split": "dev"}) for clip in clips[4:]]
    rejects = {1: [Reject(id=f"videos/talk{n}.mp4", reason="corrupt", detail="") for n in range(2)]}
    made = write_dataset(open_store(place), [("train", clips[:4]), ("dev", dev)], rejects=rejects)
    assert made is not None
    return made


def test_choices_add_up_and_nothing_of_the_signer_stays(tmp_path: Path, shards) -> None:
    dataset = signed(tmp_path)
    choice = ("remove", str(tmp_path), "--signer", "signer-0", "--video", "talk0", "--ids", "clip-5")
    said = shards(*choice, "--dry-run")
    assert "5 clips in 2 shards would be removed, with 1 rejects" in said and "1 rejects stay" in said
    shards(*choice)
    assert [meta["id"] for meta in read_metadata(open_dataset(tmp_path))] == ["clip-3"]
    everything = b"".join(snapshot(dataset.store).values())
    assert not any(word in everything for word in (b"signer-0", b"talk0", b"clip-5"))


def test_signers_are_named_where_one_is_unknown(tmp_path: Path, shards) -> None:
    dataset = signed(tmp_path)
    before = snapshot(dataset.store)
    said = shards("remove", str(tmp_path), "--signer", "signer-1", "--signer", "Bob", code=2)
    assert "no clip of signer 'Bob'; nothing was done. Signers with the most clips: signer-" in said
    assert snapshot(dataset.store) == before
