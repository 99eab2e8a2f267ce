"""The actor's work without Ray: samples, rejects, features, and failures that are none of a clip's."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from small_corpus import hashes, manifest_of, recipe_for, write_video

from sage_scale.corpora.clip import Clip
from sage_scale.precompute.actor import UnitWorker, is_disk_full, scratch_folder
from sage_scale.precompute.events import ClipDone, UnitDone, UnitFailed
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.sample import SampleMaker, source_name

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
    write_video(video, frames=60, seed=3, size=64)
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
        monkeypatch.setattr(worker.maker, "make", lambda clip, error=error: (_ for _ in ()).throw(error))
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


def test_local_tars_of_dead_actors_are_removed() -> None:
    folder = scratch_folder()
    dead, alive = folder / "999999999-000000.tar", folder / f"{os.getpid()}-000000.tar"
    for file in (dead, alive):
        file.write_bytes(b"")
    try:
        scratch_folder()
        assert not dead.exists() and alive.exists()
    finally:
        alive.unlink()


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
