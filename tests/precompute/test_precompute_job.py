"""The driver without Ray: what one run leaves, and what the next makes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
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

from sage_scale.config import override
from sage_scale.corpora.manifest import Manifest
from sage_scale.errors import CheckpointError, RecipeError, Reject, TooManyRejects, UsageError
from sage_scale.precompute.plan import Unit
from sage_scale.shards import open_dataset, verify_dataset
from sage_scale.shards.rejects import current_rejects
from sage_scale.shards.statistics import statistics
from sage_scale.storage import Store


@pytest.fixture(scope="module")
def undisturbed(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_here(recipe_for(corpus_root), out).execute()
    return out


def test_a_run_gives_every_clip_once_and_verifies(undisturbed: Path, corpus_root: Path) -> None:
    dataset = open_dataset(undisturbed)
    assert dataset.splits == {"train": CLIPS, "dev": 2}
    table = dataset.samples()
    samples = [dataset.read(table, row) for row in range(len(table))]
    expected = {clip.id: clip for clip in manifest_of(recipe_for(corpus_root)).clips}
    assert sorted(sample.meta["id"] for sample in samples) == sorted(expected)
    for sample in samples:
        clip = expected[sample.meta["id"]]
        assert sample.key == clip.key
        assert sample.meta["sentence"] == clip.sentence and sample.meta["split"] == clip.split
        # 24 + 2 n frames were written; every second one is stored
        assert sample.meta["frames"] == 24 + 2 * int(clip.id.removesuffix(".mp4")[-2:])
        assert list(sample.frames) == list(range(0, sample.meta["frames"], 2))
        assert str(corpus_root) not in json.dumps(sample.meta)
    assert verify_dataset(undisturbed).problems == ()


def test_the_bytes_do_not_depend_on_where_the_corpus_lies(undisturbed, corpus_root, tmp_path) -> None:
    moved = shutil.copytree(corpus_root, tmp_path / "elsewhere" / "ünd mit Lücke")
    run_here(recipe_for(moved), tmp_path / "out").execute()
    assert hashes(tmp_path / "out") == hashes(undisturbed)


def test_a_finished_output_is_recognised_by_a_get_and_a_head(undisturbed, corpus_root) -> None:
    run = run_here(recipe_for(corpus_root), undisturbed)
    run.store = Counted(undisturbed)
    before = hashes(undisturbed)
    summary = run.execute()
    assert run.store.requests == ["get", "exists", "size"]  # the second of changed.json
    assert (summary.clips, summary.rejects, summary.shards) == (CLIPS + 2, 0, 5)
    assert hashes(undisturbed) == before


@pytest.mark.parametrize("kill_at", range(5))
def test_a_kill_between_units_is_taken_up_by_one_listing(undisturbed, corpus_root, tmp_path, kill_at) -> None:
    def kill(unit: Unit) -> None:
        if unit.number == kill_at:
            raise Killed

    run = run_here(recipe_for(corpus_root), tmp_path / "out")
    run.interrupt = kill
    with pytest.raises(Killed):
        run.execute()
    again = run_here(recipe_for(corpus_root), tmp_path / "out")
    again.store = Counted(tmp_path / "out")
    done: list[int] = []
    again.interrupt = lambda unit: done.append(unit.number)
    again.execute()
    assert done == list(range(kill_at, 5))
    before_work = again.store.requests[: again.store.requests.index("list") + 1]
    assert before_work == ["get", "get", "list"]  # index.json, dataset.json, the listing
    assert hashes(tmp_path / "out") == hashes(undisturbed)


def test_nothing_is_listed_while_units_are_made(corpus_root, tmp_path) -> None:
    """One listing before the work, those of finishing after it; what a unit costs is counted."""
    counted = Counted(tmp_path / "out")

    class Watched(type(run_here(recipe_for(corpus_root), tmp_path / "out"))):
        @contextlib.contextmanager
        def pool(self, units, check):
            with super().pool(units, check) as pool:
                pool.worker.store = counted
                yield pool
                self.worked = list(counted.requests)

    recipe = recipe_for(corpus_root)
    run = Watched(recipe=recipe, url=str(tmp_path / "out"), quiet=True, manifest=manifest_of(recipe))
    run.execute()
    each = ["exists", "size", "put_if_absent", "exists", "size", "put", "put"]  # `exists` asks for the size
    assert run.worked == each * 5


@pytest.mark.parametrize("lost", ["000001.json", "000001.idx", "000001.json 000001.idx index.json"])
def test_what_follows_from_a_tar_is_made_from_the_stored_tar(
    undisturbed, corpus_root, tmp_path, lost
) -> None:
    out = shutil.copytree(undisturbed, tmp_path / "out")
    for name in [*lost.split(), "index.json"]:
        (out / name).unlink(missing_ok=True)
    run = run_here(recipe_for(corpus_root), out)
    # A driver that made other bytes would show: the clips of unit 1 are gone by now.
    run.give_up = frozenset(clip.id for clip in run.units[1].clips)
    run.execute()
    assert hashes(out) == hashes(undisturbed)


def test_two_drivers_whose_bytes_differ_leave_one_whole_dataset(corpus_root, tmp_path) -> None:
    """The second driver rejects a clip by hand, so every tar it makes of unit 0 differs."""
    out = tmp_path / "out"
    recipe = recipe_for(corpus_root, shards={"max_reject_rate": 0.5})
    clip = manifest_of(recipe).clips[0].id
    other = run_here(recipe, out, give_up=frozenset({clip}))

    def overtake(unit: Unit) -> None:
        if unit.number == 0:
            other.execute()

    run = run_here(recipe, out)
    run.interrupt = overtake
    summary = run.execute()
    assert summary.rejects == 1 and summary.reasons == {"given-up": 1}
    assert verify_dataset(out).problems == ()


def test_another_recipe_is_refused_by_naming_what_differs(undisturbed, corpus_root) -> None:
    before = hashes(undisturbed)
    with pytest.raises(UsageError, match=r"vision\.size is 32 there, 40 here"):
        run_here(recipe_for(corpus_root, vision={"size": 40, "crop": 32}), undisturbed).execute()
    assert hashes(undisturbed) == before


def test_another_manifest_is_refused(undisturbed, corpus_root) -> None:
    recipe = recipe_for(corpus_root)
    clips = manifest_of(recipe).clips
    with pytest.raises(UsageError, match=r"another manifest .*--overwrite"):
        run_here(recipe, undisturbed, manifest=Manifest(clips[1:])).execute()


def test_resources_and_the_reject_limit_are_no_part_of_a_dataset(undisturbed, corpus_root) -> None:
    recipe = recipe_for(corpus_root, shards={"max_reject_rate": 0.9}, precompute={"actors": 7})
    assert run_here(recipe, undisturbed).execute().clips == CLIPS + 2


def test_shards_without_dataset_json_are_not_mixed_with_new_ones(undisturbed, corpus_root, tmp_path) -> None:
    out = shutil.copytree(undisturbed, tmp_path / "out")
    (out / "dataset.json").unlink()
    (out / "index.json").unlink()
    with pytest.raises(UsageError, match=r"holds shards but no dataset\.json"):
        run_here(recipe_for(corpus_root), out).execute()
    run_here(recipe_for(corpus_root), out, overwrite=True).execute()
    (out / "changed.json").unlink()
    assert hashes(out) == hashes(undisturbed)


def test_overwrite_deletes_the_dataset_and_nothing_else(undisturbed, corpus_root, tmp_path) -> None:
    out = shutil.copytree(undisturbed, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    (out / "000001.tar.bak").write_text("mine too")
    recipe = recipe_for(corpus_root, shards={"clips_per_unit": 5})
    summary = run_here(recipe, out, overwrite=True).execute()
    assert summary.shards == 3 and (out / "notes.txt").exists() and (out / "000001.tar.bak").exists()
    assert sorted(out.glob("*.tar")) == [out / f"{unit:06d}.tar" for unit in range(3)]
    assert verify_dataset(out).problems == ()


def test_overwrite_repeated_after_a_kill_goes_on(undisturbed, corpus_root, tmp_path) -> None:
    out = tmp_path / "out"
    run_here(recipe_for(corpus_root, shards={"clips_per_unit": 3}), out).execute()

    def kill(unit: Unit) -> None:
        if unit.number == 3:
            raise Killed

    run = run_here(recipe_for(corpus_root), out, overwrite=True)
    run.interrupt = kill
    with pytest.raises(Killed):
        run.execute()
    done: list[int] = []
    again = run_here(recipe_for(corpus_root), out, overwrite=True)
    again.interrupt = lambda unit: done.append(unit.number)
    again.execute()
    assert done == [3, 4]
    (out / "changed.json").unlink()
    assert hashes(out) == hashes(undisturbed)


@pytest.fixture
def broken_root(tmp_path: Path) -> Path:
    """A corpus with one video of text, one that is cut off and one that is too short."""
    root = write_corpus(tmp_path / "broken", clips=4)
    (root / "train" / "train01.mp4").write_text("not a video")
    (root / "dev" / "dev00.mp4").write_bytes((root / "dev" / "dev00.mp4").read_bytes()[:400])
    write_square(root / "train" / "train02.mp4", frames=3, seed=1)
    return root


def test_rejects_are_recorded_with_reasons_and_end_the_run_with_code_3(broken_root, tmp_path) -> None:
    out = tmp_path / "out"
    with pytest.raises(TooManyRejects, match=r"3 of 6 clips were rejected .*max_reject_rate=0") as caught:
        run_here(recipe_for(broken_root), out).execute()
    assert caught.value.exit_code == 3
    assert not (out / "index.json").exists()  # a trainer does not start from it by accident
    allowed = recipe_for(broken_root, shards={"max_reject_rate": 0.5})
    summary = run_here(allowed, out).execute()  # nothing is computed again
    assert (summary.clips, summary.rejects) == (3, 3)
    assert summary.reasons["too-short"] == 1 and sum(summary.reasons.values()) == 3
    refused = b"".join(path.read_bytes() for path in sorted(out.glob("*.tar")))
    assert str(broken_root).encode() not in refused


def test_a_dataset_without_any_clip_is_no_dataset(tmp_path) -> None:
    root = write_corpus(tmp_path / "corpus", clips=1)
    for video in root.rglob("*.mp4"):
        video.write_text("not a video")
    with pytest.raises(TooManyRejects, match="3 of 3"):
        run_here(recipe_for(root, shards={"max_reject_rate": 1.0}), tmp_path / "out").execute()


def test_rows_set_aside_while_reading_count_as_rejects(corpus_root, tmp_path) -> None:
    recipe = recipe_for(corpus_root, shards={"max_reject_rate": 0.2})
    clips = manifest_of(recipe).clips
    rows = (Reject(id="line 9", reason="bad-row", detail=f"{corpus_root}/train.tsv has no end"),)
    summary = run_here(recipe, tmp_path / "out", manifest=Manifest(clips, rows)).execute()
    assert (summary.clips, summary.rejects, summary.reasons) == (CLIPS + 2, 1, {"bad-row": 1})
    assert b"train.tsv has no end" in (tmp_path / "out" / "000000.tar").read_bytes()


def test_retried_rejects_make_new_shards_and_leave_the_old_ones(broken_root, tmp_path) -> None:
    out = tmp_path / "out"
    recipe = recipe_for(broken_root, shards={"max_reject_rate": 0.5})
    run_here(recipe, out).execute()
    old = hashes(out)
    write_square(broken_root / "train" / "train01.mp4", frames=30, seed=5)  # downloaded again, say
    summary = run_here(recipe, out, retry_rejects=True).execute()
    assert (summary.clips, summary.rejects) == (4, 2)
    assert sum(summary.reasons.values()) == 2
    told = [reject.id for _, reject in current_rejects(open_dataset(out))]
    assert len(told) == 2 and not any("train01" in clip for clip in told)
    assert sum(split.rejects for split in statistics(open_dataset(out))) == 2
    new = hashes(out)
    assert {name: new[name] for name in old if name != "index.json"} == {
        name: old[name] for name in old if name != "index.json"
    }
    dataset = open_dataset(out)
    ids = [dataset.read(table, row).meta["id"] for table in [dataset.samples()] for row in range(len(table))]
    assert len(ids) == len(set(ids)) == 4
    assert verify_dataset(out).problems == ()
    # Once more: the two that are left; and then a plain run finds all of it by one GET.
    write_square(broken_root / "train" / "train02.mp4", frames=30, seed=6)
    summary = run_here(recipe, out, retry_rejects=True).execute()
    assert (summary.clips, summary.rejects) == (5, 1)
    assert run_here(recipe_for(broken_root, shards={"max_reject_rate": 0.2}), out).execute().clips == 5


def test_a_retry_that_was_killed_is_gone_on_with(broken_root, tmp_path) -> None:
    out = tmp_path / "out"
    recipe = recipe_for(broken_root, shards={"max_reject_rate": 0.5})
    run_here(recipe, out).execute()
    write_square(broken_root / "train" / "train01.mp4", frames=30, seed=5)

    def kill(unit: Unit) -> None:
        raise Killed

    run = run_here(recipe, out, retry_rejects=True)
    run.interrupt = kill
    with pytest.raises(Killed):
        run.execute()
    assert run_here(recipe, out).execute().rejects == 3  # the dataset is as finished as it was
    assert run_here(recipe, out, retry_rejects=True).execute().rejects == 2
    assert sorted(path.name for path in out.glob("addition-*")) == ["addition-0001.json"]


@pytest.mark.parametrize("added", ["extend", "retry_rejects"])
def test_overwrite_does_not_delete_what_is_to_be_added_to(corpus_root, tmp_path, added) -> None:
    recipe = recipe_for(corpus_root)
    run_here(recipe, tmp_path / "out").execute()
    old = hashes(tmp_path / "out")
    with pytest.raises(UsageError, match="give one of the two"):
        run_here(recipe, tmp_path / "out", overwrite=True, **{added: True}).execute()
    assert hashes(tmp_path / "out") == old


def test_a_language_without_a_tagger_is_named_before_anything_is_made(corpus_root, tmp_path) -> None:
    recipe = recipe_for(corpus_root, text={"target": "pseudo_gloss"})  # and no tagger at all
    clips = list(manifest_of(recipe).clips)
    clips[-1] = dataclasses.replace(clips[-1], language="xx")
    with pytest.raises(
        UsageError, match=rf"^1 of {len(clips)} clips are in 'xx', the first '{clips[-1].id}'"
    ):
        run_here(recipe, tmp_path / "out", manifest=Manifest(tuple(clips))).execute()
    assert not list((tmp_path / "out").glob("*"))


def test_give_up_refuses_an_unknown_clip(corpus_root, tmp_path) -> None:
    with pytest.raises(UsageError, match="--give-up nobody"):
        run_here(recipe_for(corpus_root), tmp_path / "out", give_up=frozenset({"nobody"}))


def test_other_versions_are_refused_unless_mixing_is_allowed(undisturbed, corpus_root, tmp_path) -> None:
    out = shutil.copytree(undisturbed, tmp_path / "out")
    for name in ("index.json", "000003.tar", "000003.idx", "000003.json"):
        (out / name).unlink()
    described = json.loads((out / "dataset.json").read_text())
    described["versions"]["av"] = "1.0"
    (out / "dataset.json").write_text(
        json.dumps(described, sort_keys=True, ensure_ascii=False, indent=1) + "\n"
    )
    with pytest.raises(UsageError, match=r"versions\.av was 1\.0.*allow_mixed"):
        run_here(recipe_for(corpus_root), out).execute()
    assert not (out / "000003.tar").exists()


def test_a_store_is_the_only_effect(corpus_root, tmp_path) -> None:
    """Local tars are gone after a run, and nothing but the dataset's files is in the output."""
    run = run_here(recipe_for(corpus_root), tmp_path / "out")
    assert isinstance(run.store, Store)
    run.execute()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    shards = {f"{unit:06d}.{kind}" for unit in range(5) for kind in ("tar", "idx", "json")}
    assert names == shards | {"dataset.json", "index.json"}


def test_missing_weights_are_told_before_ray_is_started(corpus_root: Path, tmp_path: Path) -> None:
    for changes, message in (
        ([], "needs vision.backbone_weights"),
        ([f"vision.backbone_weights={tmp_path}/none.pth"], "there is no"),
    ):
        recipe = override(
            recipe_for(corpus_root), ["vision.kind=features", "vision.backbone=resnet34", *changes]
        )
        with pytest.raises((RecipeError, CheckpointError), match=message):
            run_here(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("backbone", "width"), [("resnet34", 512), ("dinov2-vits14", 384), ("keypoints", 134)]
)
def test_features_of_another_width_than_the_models_are_refused_before_anything_begins(
    corpus_root: Path, tmp_path: Path, backbone: str, width: int
) -> None:
    changes = ["vision.kind=features", f"vision.backbone={backbone}", "vision.allow_random_backbone=true"]
    recipe = override(recipe_for(corpus_root), [*changes, "model.feature_dim=7"])
    with pytest.raises(RecipeError, match=f"model.feature_dim is 7: set model.feature_dim={width}"):
        run_here(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run_here(override(recipe, [f"model.feature_dim={width}"]), tmp_path / "out")


def test_a_stored_clip_cannot_be_given_up_and_that_is_said(corpus_root: Path, tmp_path: Path) -> None:
    run_here(recipe_for(corpus_root), tmp_path / "out").execute()
    before = hashes(tmp_path / "out")
    clip = manifest_of(recipe_for(corpus_root)).clips[1].id
    again = run_here(recipe_for(corpus_root), tmp_path / "out", give_up=frozenset({clip})).execute()
    assert again.kept == (clip,) and hashes(tmp_path / "out") == before
