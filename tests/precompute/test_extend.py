"""`--extend`: new clips make new shards, and nothing else changes; and what an output refuses to take in."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from factories.datasets import Killed
from factories.precompute import (
    CLIPS,
    Counted,
    hashes,
    manifest_of,
    recipe_for,
    run_here,
    write_corpus,
)
from factories.videos import write_square

from sage_scale.corpora.manifest import Manifest
from sage_scale.errors import Reject, TooManyRejects, UsageError
from sage_scale.precompute.plan import Unit
from sage_scale.shards import Dataset, open_dataset, verify_dataset
from sage_scale.shards.remove import remove_clips
from sage_scale.storage.folder import FolderStore
from sage_scale.streaming import open_stream

MORE = 3
"""New training clips; there is one new dev clip as well."""


@pytest.fixture(scope="module")
def larger(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with new clips, some of which stand before old ones in the manifest."""
    root = shutil.copytree(corpus_root, tmp_path_factory.mktemp("larger") / "videos")
    for name in ("train/a_first", "train/train03b", "train/z_last", "dev/dev00b"):
        write_square(root / f"{name}.mp4", frames=30, seed=len(name))
        (root / f"{name}.txt").write_text(f"Neu ist {name}.\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def base(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished output of the smaller corpus. Read-only."""
    out = tmp_path_factory.mktemp("base") / "out"
    run_here(recipe_for(corpus_root), out).execute()
    return out


@pytest.fixture(scope="module")
def extended(base: Path, larger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, extended by a run that nothing happened to. Read-only."""
    out = shutil.copytree(base, tmp_path_factory.mktemp("extended") / "out")
    run_here(recipe_for(larger), out, extend=True).execute()
    return out


def ids(dataset: Dataset) -> list[str]:
    table = dataset.samples()
    return sorted(dataset.read(table, row).meta["id"] for row in range(len(table)))


def ids_of(root: Path) -> list[str]:
    return sorted(clip.id for clip in manifest_of(recipe_for(root)).clips)


def test_new_clips_make_new_shards_and_old_ones_stay_byte_for_byte(base, extended, larger) -> None:
    before, after = hashes(base), hashes(extended)
    assert {name: after[name] for name in before if name != "index.json"} == {
        name: before[name] for name in before if name != "index.json"
    }
    new = {f"{unit:06d}.{kind}" for unit in range(5, 8) for kind in ("tar", "idx", "json")}
    assert after.keys() - before.keys() == new | {"addition-0001.json"}
    dataset = open_dataset(extended)
    assert ids(dataset) == ids_of(larger)  # every clip once
    assert dataset.splits == {"train": CLIPS + MORE, "dev": 3}
    assert dataset.digest != open_dataset(base).digest
    assert verify_dataset(extended).problems == ()


def test_readers_stream_old_and_new_clips(extended, larger) -> None:
    recipe = recipe_for(larger, stream={"lanes": 4})
    seen = [
        meta["id"]
        for batch in open_stream(str(extended), recipe, batch_size=4, epochs=1)
        for meta in batch.metas
    ]
    assert sorted(seen) == [name for name in ids_of(larger) if name.startswith("train")]


@pytest.mark.parametrize("extend", [True, False])
def test_a_second_run_over_an_extended_output_is_a_get_and_a_head(extended, larger, extend) -> None:
    run = run_here(recipe_for(larger), extended, extend=extend)
    run.store = Counted(extended)
    summary = run.execute()
    assert run.store.requests == ["get", "exists", "size"]
    assert (summary.clips, summary.rejects, summary.shards) == (CLIPS + MORE + 3, 0, 8)


def test_the_first_corpus_still_finds_its_output_finished(extended, corpus_root) -> None:
    before = hashes(extended)
    assert run_here(recipe_for(corpus_root), extended).execute().clips == CLIPS + MORE + 3
    assert hashes(extended) == before


@pytest.mark.parametrize("kill_at", [5, 6, 7])
@pytest.mark.parametrize("extend", [True, False])
def test_a_killed_extension_is_gone_on_with(
    base, extended, corpus_root, larger, tmp_path, kill_at, extend
) -> None:
    out = shutil.copytree(base, tmp_path / "out")

    def kill(unit: Unit) -> None:
        if unit.number == kill_at:
            raise Killed

    run = run_here(recipe_for(larger), out, extend=True)
    run.interrupt = kill
    with pytest.raises(Killed):
        run.execute()
    assert ids(open_dataset(out)) == ids_of(corpus_root)  # as finished as it was
    told = [
        f"{kill_at - 5} of 3 shards of precompute's --extend" in line for line in verify_dataset(out).problems
    ]
    assert told == [True] * (kill_at > 5)
    again = run_here(recipe_for(larger), out, extend=extend)
    done: list[int] = []
    again.interrupt = lambda unit: done.append(unit.number)
    again.execute()
    assert done == list(range(kill_at, 8))
    assert hashes(out) == hashes(extended)


def test_an_extension_cut_off_before_its_index_is_written_is_finished(
    base, extended, larger, tmp_path
) -> None:
    out = shutil.copytree(extended, tmp_path / "out")
    shutil.copy(base / "index.json", out / "index.json")
    (out / "000006.json").unlink()
    run = run_here(recipe_for(larger), out, extend=True)
    run.interrupt = lambda unit: None if unit.number == 6 else pytest.fail(f"unit {unit.number} done again")
    run.execute()
    assert hashes(out) == hashes(extended)


def test_a_manifest_of_new_clips_alone_does_the_same(base, larger, corpus_root, tmp_path) -> None:
    out = shutil.copytree(base, tmp_path / "out")
    old = set(ids_of(corpus_root))
    clips = tuple(clip for clip in manifest_of(recipe_for(larger)).clips if clip.id not in old)
    summary = run_here(recipe_for(larger), out, manifest=Manifest(clips), extend=True).execute()
    assert (summary.clips, summary.rejects) == (CLIPS + MORE + 3, 0)
    assert ids(open_dataset(out)) == ids_of(larger)


def test_two_drivers_that_extend_by_other_clips_make_no_double(base, larger, tmp_path) -> None:
    """The second plans while the first has planned but not stored; what both have is done once."""
    out = shutil.copytree(base, tmp_path / "out")
    recipe = recipe_for(larger)
    clips = manifest_of(recipe).clips
    fewer = tuple(clip for clip in clips if "z_last" not in clip.id)
    more = tuple(clip for clip in clips if "a_first" not in clip.id)
    other = run_here(recipe, out, manifest=Manifest(fewer), extend=True)
    run = run_here(recipe, out, manifest=Manifest(more), extend=True)
    store = run.store.put_if_absent

    def late(name: str, data: bytes | Path) -> bool:
        if name == "addition-0001.json":
            other.execute()
        return store(name, data)

    run.store.put_if_absent = late
    run.execute()
    assert ids(open_dataset(out)) == ids_of(larger)
    assert verify_dataset(out).problems == ()
    assert sorted(path.name for path in out.glob("addition-*")) == [
        f"addition-000{number}.json" for number in (1, 2)
    ]


def test_a_video_downloaded_since_is_new_and_an_unreadable_one_is_for_retry_rejects(
    corpus_root, tmp_path
) -> None:
    root = shutil.copytree(corpus_root, tmp_path / "corpus")
    (root / "train" / "train01.mp4").write_text("not a video")
    recipe = recipe_for(root, shards={"max_reject_rate": 0.2})
    clips = manifest_of(recipe).clips
    absent, rest = clips[5], (*clips[:5], *clips[6:])
    rows = (Reject(id=absent.id, reason="not-downloaded", detail="no file of that name"),)
    out = tmp_path / "out"
    first = run_here(recipe, out, manifest=Manifest(rest, rows)).execute()
    assert (first.clips, first.rejects) == (CLIPS, 2)
    second = run_here(recipe, out, manifest=Manifest(clips), extend=True).execute()
    assert (second.clips, second.rejects) == (CLIPS + 1, 1)
    assert ids(open_dataset(out)) == sorted(clip.id for clip in clips if "train01" not in clip.id)
    shutil.copy(corpus_root / "train" / "train01.mp4", root / "train" / "train01.mp4")
    third = run_here(recipe, out, retry_rejects=True).execute()
    assert (third.clips, third.rejects) == (CLIPS + 2, 0)
    assert ids(open_dataset(out)) == ids_of(root)
    assert verify_dataset(out).problems == ()


def test_new_rows_that_are_set_aside_are_told_once(base, larger, tmp_path) -> None:
    out = shutil.copytree(base, tmp_path / "out")
    recipe = recipe_for(larger, shards={"max_reject_rate": 0.2})
    rows = (Reject(id="line 9", reason="bad-row", detail=f"{larger}/train.tsv has no end"),)
    manifest = Manifest(manifest_of(recipe).clips, rows)
    for _ in range(2):
        summary = run_here(recipe, out, manifest=manifest, extend=True).execute()
        assert (summary.rejects, summary.reasons) == (1, {"bad-row": 1})
    default = recipe_for(
        larger, shards={"max_reject_rate": 0.02}
    )  # one row of 14 is more, and yet no trouble
    assert run_here(default, out, manifest=manifest, extend=True).execute().rejects == 1
    tight = recipe_for(larger, shards={"max_reject_rate": 0.0})
    with pytest.raises(TooManyRejects, match="1 of 14"):
        run_here(tight, out, manifest=manifest, extend=True).execute()


def test_clips_taken_out_stay_out_of_an_extension(base, larger, corpus_root, tmp_path) -> None:
    out = shutil.copytree(base, tmp_path / "out")
    gone = [ids_of(corpus_root)[2], next(name for name in ids_of(larger) if "z_last" in name)]
    remove_clips(FolderStore(out), gone, ignore_unknown=True)
    summary = run_here(recipe_for(larger), out, extend=True).execute()
    assert (summary.clips, summary.rejects, summary.removed) == (CLIPS + MORE + 1, 0, 2)
    assert ids(open_dataset(out)) == [name for name in ids_of(larger) if name not in gone]
    assert verify_dataset(out).problems == ()


def test_an_output_that_is_not_whole_is_finished_first(base, larger, tmp_path) -> None:
    out = shutil.copytree(base, tmp_path / "out")
    for name in ("index.json", "000003.tar", "000003.idx", "000003.json"):
        (out / name).unlink()
    before = hashes(out)
    with pytest.raises(UsageError, match=r"1 of 5 units are open \(first 000003\).*as it was"):
        run_here(recipe_for(larger), out, extend=True).execute()
    assert hashes(out) == before


def test_a_larger_corpus_is_refused_and_told_of_extend(base, larger) -> None:
    before = hashes(base)
    with pytest.raises(UsageError, match=r"9 clips there, 13 here.*--extend"):
        run_here(recipe_for(larger), base).execute()
    assert hashes(base) == before


@pytest.mark.parametrize("extend", [True, False])
def test_another_recipe_is_refused_by_its_keys(base, larger, extend) -> None:
    recipe = recipe_for(larger, vision={"jpeg_quality": 50}, shards={"clips_per_unit": 3})
    with pytest.raises(UsageError, match=r"vision\.jpeg_quality is 92 there, 50 here") as caught:
        run_here(recipe, base, extend=extend).execute()
    assert "shards.clips_per_unit is 2 there, 3 here" in str(caught.value)


@pytest.mark.parametrize("extend", [True, False])
def test_other_filters_of_the_corpus_are_refused_by_their_keys(base, larger, extend) -> None:
    recipe = recipe_for(larger)
    captions = dataclasses.replace(recipe.corpus.captions, min_seconds=0.25, credits=False)
    recipe = dataclasses.replace(recipe, corpus=dataclasses.replace(recipe.corpus, captions=captions))
    before = hashes(base)
    with pytest.raises(
        UsageError, match=r"corpus\.captions\.min_seconds is 1\.0 there, 0\.25 here"
    ) as caught:
        run_here(recipe, base, extend=extend).execute()
    assert "corpus.captions.credits is True there, False here" in str(caught.value)
    assert hashes(base) == before


def test_filters_that_change_no_clip_refuse_nothing(base, corpus_root) -> None:
    recipe = recipe_for(corpus_root, corpus={"captions": {"min_seconds": 0.25}})
    assert run_here(recipe, base).execute().clips == CLIPS + 2


def test_overwrite_takes_the_additions_away_too(extended, corpus_root, base, tmp_path) -> None:
    out = shutil.copytree(extended, tmp_path / "out")
    run_here(recipe_for(corpus_root), out, overwrite=True).execute()
    (out / "changed.json").unlink()
    assert hashes(out) == hashes(base)


def test_a_made_corpus_may_grow(tmp_path) -> None:
    """write_corpus with two clips, then with four: the first two are done once."""
    out = tmp_path / "out"
    run_here(recipe_for(write_corpus(tmp_path / "two", clips=2)), out).execute()
    four = write_corpus(tmp_path / "four", clips=4)
    done: list[str] = []
    run = run_here(recipe_for(four), out, extend=True)
    run.interrupt = lambda unit: done.extend(clip.id for clip in unit.clips)
    run.execute()
    assert done == ["train/train02.mp4", "train/train03.mp4"]
    assert ids(open_dataset(out)) == ids_of(four)


@pytest.mark.parametrize("lost", [False, True])
def test_an_extension_beside_an_unfinished_retry_ends_it_and_says_so(
    corpus_root, tmp_path, capsys, lost
) -> None:
    root = shutil.copytree(corpus_root, tmp_path / "corpus")
    (root / "train" / "train01.mp4").write_text("not a video")
    recipe, out = recipe_for(root, shards={"max_reject_rate": 0.5}), tmp_path / "out"
    run_here(recipe, out).execute()

    def kill(unit: Unit) -> None:
        raise Killed

    shutil.copy(corpus_root / "train" / "train01.mp4", root / "train" / "train01.mp4")
    retry = run_here(recipe, out, retry_rejects=True)
    retry.interrupt = kill
    with pytest.raises(Killed):
        retry.execute()
    shutil.copy(corpus_root / "train" / "train02.mp4", root / "train" / "train99.mp4")
    (root / "train" / "train99.txt").write_text("Neu.\n", encoding="utf-8")
    if lost:
        (root / "train" / "train01.mp4").unlink()
        (root / "train" / "train01.txt").unlink()
    run = run_here(recipe, out, extend=True)
    run.quiet = False
    summary = run.execute()
    said = capsys.readouterr().err
    assert "holds an unfinished --retry-rejects: its 1 open units are done as well" in said
    assert ("1 of them hold clips that this corpus lacks" in said) == lost
    assert summary.clips == CLIPS + (2 if lost else 3) and summary.rejects == int(lost)
