"""A job that gives each clip files of its own: what is stored, resumed, refused and rejected."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import ray
from factories.precompute import hashes

from sage_scale.config import load_recipe
from sage_scale.corpora.manifest import Clip
from sage_scale.corpora.videos import whole_videos
from sage_scale.errors import ClipRejected, StorageError, TooManyRejects, UsageError
from sage_scale.precompute.file_job import ClipFiles, FileJob, FileWorker, file_name
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import ClipDone, UnitDone, UnitFailed


@dataclasses.dataclass
class Sizes:
    """Writes the size of each video; rejects empty ones."""

    version: str = "1"
    suffixes: tuple[str, ...] = (".size", ".json")
    stage: str = "segment"

    def load(self) -> dict[str, str]:
        return {"sizes": self.version}

    def make(self, clip: Clip, stats: object) -> ClipFiles:
        size = Path(clip.video).stat().st_size
        if not size:
            raise ClipRejected("empty", f"{clip.video} has no byte")
        return ClipFiles(
            files={".size": str(size).encode(), ".json": b"{}"}, frames=size, seconds=size / 25, segments=1
        )


def videos(root: Path, count: int = 9, empty: tuple[int, ...] = (4,)) -> Path:
    for number in range(count):
        path = root / ("deep" if number % 2 else "") / f"talk{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if number in empty else b"x" * (10 + number))
    return root


def job(root: Path, out: Path, files: Sizes | None = None, **more) -> FileJob:
    recipe = load_recipe(
        "demo", [f"corpus.root={root}", "precompute.actors=1", "precompute.object_store_mb=80"]
    )
    return FileJob(
        recipe=recipe, manifest=whole_videos(root), url=str(out), files=files or Sizes(), settings={"n": 1},
        quiet=True, **more,
    )  # fmt: skip


def worked(some: FileJob, **more) -> list:
    """The events of one worker that is given all the clips, without Ray."""
    worker = FileWorker(some.recipe, some.store.url, some.give_up, files=some.files)
    return list(worker.work(Unit(number=0, split="", clips=some.manifest.clips), "", **more))


def test_each_clip_has_its_files_and_a_reject_has_none(tmp_path):
    events = worked(job(videos(tmp_path / "in"), tmp_path / "out"))
    assert [type(event) for event in events] == [ClipDone] * 9 + [UnitDone]
    assert [event.clip for event in events[:-1] if event.reason] == ["talk4"]
    assert events[-1].marker.samples == 8 and events[-1].marker.rejects == 1
    stored = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert (
        "deep/talk1.size" in stored and "talk0.json" in stored and not any("talk4" in name for name in stored)
    )
    assert str(tmp_path) not in next(
        event.detail for event in events if event.reason
    )  # the same on any machine


def test_faults_of_the_machine_reject_nothing(tmp_path, monkeypatch):
    some = job(videos(tmp_path / "in", empty=()), tmp_path / "out")

    def away(*_):
        raise StorageError("the disk is away")

    monkeypatch.setattr(type(some.store), "put_if_absent", away)
    events = worked(some)
    assert [type(event) for event in events] == [UnitFailed]
    assert (events[0].kind, events[0].clip) == ("storage", "talk0")


def test_a_clip_is_rejected_by_hand(tmp_path):
    some = job(videos(tmp_path / "in", empty=()), tmp_path / "out", give_up=frozenset(["talk2"]))
    assert [(event.clip, event.reason) for event in worked(some)[:-1] if event.reason] == [
        ("talk2", "given-up")
    ]
    with pytest.raises(UsageError, match="no clip of that id"):
        job(tmp_path / "in", tmp_path / "out", give_up=frozenset(["talk99"]))


def test_ids_become_names_of_a_store():
    assert file_name(Clip(id="a/b.c", video="v")) == "a/b.c"
    for odd in ("../up", "/root", ".hidden", "_settings", "a//b", "a\\b"):
        clip = Clip(id=odd, video="v")
        assert file_name(clip) == clip.key


def test_whole_videos_are_named_by_their_paths(tmp_path):
    for name in ("a.mp4", "a.webm", "b.pose", "a.pose", "sub/c.MOV", "sub/c.txt", "sub/c.vtt", ".hidden.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert [clip.id for clip in whole_videos(tmp_path).clips] == ["a", "a.webm", "b", "sub/c"]
    assert [clip.id for clip in whole_videos(tmp_path / "sub" / "c.MOV").clips] == ["c"]
    (tmp_path / "none").mkdir()
    for wrong in ("none", "missing", "sub/c.txt"):
        with pytest.raises(UsageError):
            whole_videos(tmp_path / wrong)


@pytest.mark.system
def test_a_job_on_ray_is_continued_and_refuses_other_settings(tmp_path):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file
    root, out = videos(tmp_path / "in"), tmp_path / "out"
    summary = job(root, out).execute()
    assert (summary.clips, summary.made, len(summary.rejects)) == (8, 8, 1) and "1 empty" in summary.line()
    assert json.loads((out / "_rejects.jsonl").read_text())["id"] == "talk4"
    before = hashes(out / "deep")
    (out / "deep" / "talk1.size").unlink()  # as after a kill between two files
    (out / "deep" / "talk3.json").unlink()
    (root / "talk4.mp4").write_bytes(b"repaired")
    (root / "talk9.mp4").write_bytes(b"new")
    again = job(root, out).execute()
    assert (again.clips, again.made, again.rejects) == (10, 4, ()) and hashes(out / "deep") == before
    assert not (out / "_rejects.jsonl").read_text()
    assert job(root, out).execute().made == 0  # without starting actors
    with pytest.raises(UsageError, match="n is 1 there, 2 here"):
        dataclasses.replace(job(root, out), settings={"n": 2}).execute()
    (out / "talk0.size").unlink()
    with pytest.raises(UsageError, match="sizes is 1 there, 2 here"):
        job(root, out, Sizes(version="2")).execute()
    for path in root.glob("*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(
        TooManyRejects, match=r"the first: 'talk0': empty.*repair them and repeat the command"
    ):
        job(root, tmp_path / "other").execute()
