"""The actor's work without Ray: samples, rejects, features, and failures that are none of a clip's."""

from __future__ import annotations

import errno
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import webdataset
from factories.precompute import hashes, manifest_of, recipe_for
from factories.videos import write_square
from PIL import Image

from sage_scale.corpora.manifest import Clip
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import ClipDone, UnitDone, UnitFailed
from sage_scale.precompute.sample_maker import SampleMaker, source_name
from sage_scale.precompute.worker import is_disk_full

DIGEST = "0123456789abcdef"


def unit_of(*clips: Clip, number: int = 0) -> Unit:
    return Unit(number=number, split=clips[0].split, clips=clips)


def test_a_shard_is_what_webdataset_reads(corpus_root: Path, tmp_path: Path) -> None:
    recipe = recipe_for(corpus_root, vision={"background": "median"})
    clips = manifest_of(recipe).clips[:2]
    events = list(UnitWorker(recipe, str(tmp_path)).work(unit_of(*clips), DIGEST))
    assert [type(event) for event in events] == [ClipDone, ClipDone, UnitDone]
    assert events[-1].marker.samples == 2 and events[0].seconds == events[0].frames / 25
    read = list(webdataset.WebDataset(str(tmp_path / "000000.tar"), shardshuffle=False).decode())
    assert [sample["json"]["id"] for sample in read] == [clip.id for clip in clips]
    for sample in read:
        assert sample["segments.npy"].dtype == np.int32
        numbers = sorted(name for name in sample if name.endswith(".jpg") and name != "background.jpg")
        assert numbers == [f"{k:06d}.jpg" for k in range(0, sample["json"]["frames"], 2)]
        assert "background.jpg" in sample


def test_the_background_is_the_still_part_of_the_pictures(tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    write_square(video, frames=60, seed=3, size=64)
    recipe = recipe_for(tmp_path, vision={"background": "median", "size": 64, "crop": 64, "jpeg_quality": 95})
    sample = SampleMaker(recipe).make(Clip(id="clip", video=str(video)))
    still = np.asarray(Image.open(io.BytesIO(sample.background)), np.float32)
    frames = np.stack(
        [np.asarray(Image.open(io.BytesIO(data)), np.float32) for data in sample.frames.values()]
    )
    assert still.max() < 130 < frames.max()  # the bright square is gone
    assert np.abs(still - np.median(frames, axis=0)).mean() < 4


def test_features_follow_from_the_clip_alone(corpus_root: Path, tmp_path: Path) -> None:
    """A frozen backbone's features of a clip are the same bytes whatever stands before it in its unit."""
    recipe = recipe_for(
        corpus_root,
        vision={
            "kind": "features",
            "backbone": "resnet34",
            "allow_random_backbone": True,
            "backbone_batch": 4,
        },
    )
    clips = manifest_of(recipe).clips
    alone, together = SampleMaker(recipe).make(clips[1]), SampleMaker(recipe)
    together.make(clips[0])
    again = together.make(clips[1])
    assert alone.frames is None and alone.features.dtype == np.float16
    assert alone.features.shape == (alone.meta["frames"] // 2, 512)
    assert alone.features.tobytes() == again.features.tobytes()


def test_what_lies_in_the_machine_never_rejects(corpus_root: Path, tmp_path: Path, monkeypatch) -> None:
    recipe = recipe_for(corpus_root)
    worker = UnitWorker(recipe, str(tmp_path))
    unit = unit_of(*manifest_of(recipe).clips[:2])
    for error, kind in (
        (MemoryError(), "memory"),
        (OSError(errno.EIO, "Input/output error"), "storage"),
        (OSError(errno.ENOSPC, "No space left on device"), "full"),
        (IndexError("a defect"), "error"),
    ):
        monkeypatch.setattr(worker.maker, "finish", lambda *_, error=error: (_ for _ in ()).throw(error))
        *before, last = worker.work(unit, DIGEST)
        assert isinstance(last, UnitFailed) and last.kind == kind and last.clip == unit.clips[0].id
        assert before == [] and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a full file system is mounted for this, which takes root")
def test_a_full_disk_leaves_nothing_half_written(corpus_root: Path, tmp_path: Path) -> None:
    import subprocess

    mounted = tmp_path / "small"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(mounted)], capture_output=True
    )
    if done.returncode:
        pytest.skip("this machine does not let root mount a file system")
    try:
        recipe = recipe_for(corpus_root)
        worker = UnitWorker(recipe, str(mounted / "out"))
        *_, last = worker.work(unit_of(*manifest_of(recipe).clips[:2]), DIGEST)
        assert isinstance(last, UnitFailed) and last.kind == "full" and "full" in last.message
        assert [path for path in (mounted / "out").iterdir() if path.suffix == ".tar"] == []
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_full_disk_is_seen_through_the_errors_made_of_it() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("cannot be written") from None
    except RuntimeError as error:
        assert is_disk_full(error)
    assert not is_disk_full(OSError(errno.EIO, "broken")) and not is_disk_full(None)


def test_the_stored_tar_wins_over_other_bytes(corpus_root: Path, tmp_path: Path) -> None:
    recipe = recipe_for(corpus_root)
    unit = unit_of(*manifest_of(recipe).clips[:2])
    list(UnitWorker(recipe, str(tmp_path)).work(unit, DIGEST))
    before = hashes(tmp_path)
    late = UnitWorker(recipe, str(tmp_path), give_up=frozenset({unit.clips[0].id}))
    *_, last = late.work(unit, DIGEST)
    assert isinstance(last, UnitDone) and last.marker.samples == 2
    assert hashes(tmp_path) == before


@pytest.mark.parametrize(
    ("clip", "name"),
    [
        (Clip(id="a", video="/data/x/talk.mp4"), "talk.mp4"),
        (Clip(id="a", video="/data/x/frames/"), "frames"),
        (Clip(id="a", video="C:\\x\\talk.mp4", start_s=1.5, end_s=4.25), "talk.mp4#t=1.5,4.25"),
        (Clip(id="a", video="talk.mp4", start_s=2), "talk.mp4#t=2"),
    ],
)
def test_the_source_is_a_media_fragment_without_a_path(clip: Clip, name: str) -> None:
    assert source_name(clip) == name


def long_video(folder: Path, order: list[int]) -> tuple[Unit, Path]:
    """A unit of overlapping clips of one video, in an order of the manifest's own, between two other videos."""
    video = folder / "long.mp4"
    write_square(video, frames=400, seed=1)
    for name, seed in (("first", 2), ("last", 3)):
        write_square(folder / f"{name}.mp4", frames=30, seed=seed)
    spans = [Clip(id=f"{k}", video=str(video), start_s=k * 1.5, end_s=k * 1.5 + 2) for k in order]
    ends = [Clip(id=name, video=str(folder / f"{name}.mp4")) for name in ("first", "last")]
    return unit_of(ends[0], *spans, ends[1]), video


@pytest.mark.parametrize("order", [list(range(9)), [4, 0, 8, 1, 7, 2, 6, 3, 5]])
def test_one_pass_over_a_video_gives_the_bytes_of_clip_by_clip_in_the_order_of_the_plan(
    tmp_path: Path, monkeypatch, order: list[int]
) -> None:
    from sage_scale.precompute import unit_clips

    unit, _ = long_video(tmp_path, order)
    recipe = recipe_for(tmp_path)
    for name, alone, waiting in (("alone", True, 2**20), ("pass", False, 2**20), ("file", False, 4000)):
        monkeypatch.setattr(unit_clips.ReorderBuffer.__init__, "__defaults__", (waiting,))
        *done, last = UnitWorker(recipe, str(tmp_path / name)).work(unit, DIGEST, alone=alone)
        assert isinstance(last, UnitDone) and [event.clip for event in done] == [c.id for c in unit.clips]
    assert hashes(tmp_path / "pass") == hashes(tmp_path / "alone") == hashes(tmp_path / "file")


def test_a_rejected_clip_leaves_the_others_of_its_video(tmp_path: Path) -> None:
    unit, video = long_video(tmp_path, [0, 1, 2])
    beyond = Clip(id="beyond", video=str(video), start_s=99, end_s=101)
    long = Clip(id="long", video=str(video), start_s=0.5, end_s=15)
    gone = Clip(id="gone", video=str(tmp_path / "gone.mp4"))
    unit = unit_of(beyond, unit.clips[1], long, gone, *unit.clips[2:])
    recipe = recipe_for(tmp_path, vision={"max_frames": 200})
    *done, last = UnitWorker(recipe, str(tmp_path / "out"), give_up=frozenset({"1"})).work(unit, DIGEST)
    assert [(event.clip, event.reason) for event in done] == [
        ("beyond", "beyond-end"), ("0", ""), ("long", "too-long"), ("gone", "missing"), ("1", "given-up"), ("2", ""),
        ("last", ""),
    ]  # fmt: skip
    assert isinstance(last, UnitDone) and last.marker.reasons == {
        "beyond-end": 1, "too-long": 1, "missing": 1, "given-up": 1,
    }  # fmt: skip


def test_a_failure_names_the_clip_in_work_also_before_its_turn(tmp_path: Path, monkeypatch) -> None:
    unit, _ = long_video(tmp_path, [3, 2, 1, 0])
    worker = UnitWorker(recipe_for(tmp_path), str(tmp_path / "out"))
    finish = worker.maker.finish

    def fails(clip: Clip, decoded, rows=None):
        if clip.id == "1":
            raise MemoryError
        return finish(clip, decoded, rows)

    monkeypatch.setattr(worker.maker, "finish", fails)
    for alone, done in ((False, ["first"]), (True, ["first", "3", "2"])):
        *events, last = worker.work(unit, DIGEST, alone=alone)
        assert isinstance(last, UnitFailed) and (last.kind, last.clip) == ("memory", "1")
        assert [event.clip for event in events] == done  # alone, the first not reported is the one being made


def test_annotations_left_out_are_one_note_of_their_file(tmp_path):
    unit, _ = long_video(tmp_path, [3, 2, 1, 0])
    signs = [{"start_s": 0.1, "end_s": 0.3}, {"start_s": 2, "end_s": 1}, {"start_s": -1, "end_s": 1}]
    (tmp_path / "labels.json").write_text(json.dumps({clip.id: {"signs": signs} for clip in unit.clips}))
    recipe = recipe_for(
        tmp_path, segmentation={"tagger": "precomputed", "labels": str(tmp_path / "labels.json")}
    )
    *done, _ = UnitWorker(recipe, str(tmp_path / "out")).work(unit, DIGEST)
    (note,) = {note for event in done for note in event.notes}
    assert note == "labels.json: 2 annotations left out; the first: signs[1]: from 2 s to 1 s"


def test_no_more_than_two_clips_are_decoded_at_a_time() -> None:
    import threading

    from sage_scale.precompute.unit_clips import one_ahead

    alive, most, lock = 0, 0, threading.Lock()

    class Picture:
        def __init__(self) -> None:
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    with one_ahead(Picture() for _ in range(20)) as items:
        count = 0
        for item in items:
            count += 1
            del item
    assert count == 20 and most <= 2 and alive == 0

    def fails():
        yield 1
        raise OSError("broken")

    with one_ahead(fails()) as items, pytest.raises(OSError, match="broken"):
        list(items)
    with one_ahead(n for n in range(10**9)) as items:
        assert next(items) == 0  # and leaving does not wait for the rest
