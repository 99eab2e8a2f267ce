"""`sage-scale keypoints` without Ray: what is made, skipped, refused and rejected; and the stage of precompute."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from common import sage
from factories.datasets import Killed
from factories.precompute import HerePool, manifest_of, recipe_for
from factories.videos import write_video
from PIL import Image
from plugins.toy_extractor import brightest

from sage_scale.cli import main
from sage_scale.config import Recipe
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import StorageError, TooManyRejects, UnitsOpen, UsageError
from sage_scale.extraction import extractor as extractors
from sage_scale.extraction.extractor import ExtractorFailed
from sage_scale.keypoints.files import read_track
from sage_scale.keypoints.names import HOLISTIC_75
from sage_scale.precompute import file_job, keypoint_job
from sage_scale.precompute.file_job import FileWorker, _Progress
from sage_scale.precompute.keypoint_job import KeypointFiles, extract_keypoints, extract_missing
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import ClipDone, FramesDone, UnitDone
from sage_scale.shards import open_dataset
from sage_scale.vision.decode import decode_clip

SEEN: list[str] = []
"""Videos that an extractor was given in this test."""
KILL: dict[str, Callable[[Unit], None]] = {}
"""What happens before a unit is done."""
FAIL: dict[str, list[BaseException]] = {}
"""Errors that the worker meets at a video, by its name."""


class Bright:
    """The toy's answer, in this process."""

    names = HOLISTIC_75
    has_z = True

    def __init__(self, vision):
        self.facts = {"version": str(vision.extractor_complexity)}

    def __call__(self, pictures):
        for picture in pictures:
            x, y, _ = brightest(picture)
            yield np.tile(np.array([[x, y, 0.5]]), (75, 1)), np.ones(75)


class Worker(FileWorker):
    def _made(self, clip):
        SEEN.append(clip.id)
        if errors := FAIL.get(clip.id):
            raise errors.pop(0)
        return super()._made(clip)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Runs jobs in this process."""
    SEEN.clear()
    FAIL.clear()

    @contextlib.contextmanager
    def actors(recipe, make, most, check):
        worker = make(0)
        yield HerePool(worker, check(worker.environment()), KILL.get("at"))

    def actor(kind, recipe, url, give_up, memory_mb, **more):
        return Worker(recipe, url, give_up, **more)

    monkeypatch.setattr(file_job, "ray_actors", actors)
    monkeypatch.setattr(file_job, "new_actor", actor)
    monkeypatch.setitem(extractors._factories, "bright", Bright)
    monkeypatch.setattr(extractors, "import_plugins", lambda: None)


def recipe(complexity: int = 1, **sections: dict) -> Recipe:
    base = recipe_for(Path("."), **sections)
    vision = dataclasses.replace(base.vision, extractor="bright", extractor_complexity=complexity)
    return dataclasses.replace(base, vision=vision)


def video(path: Path, frames: int = 4) -> Path:
    pictures = []
    for t in range(frames):
        picture = np.full((32, 48, 3), 20, np.uint8)
        picture[8:16, 4 + 4 * t : 12 + 4 * t] = 250
        pictures.append(picture)
    return write_video(path, pictures)


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "videos"
    video(folder / "talk.mp4", 4)
    video(folder / "a" / "talk.v2.mp4", 8)
    for t in range(3):
        (folder / "a" / "frames.x").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (40 * t, 0, 0)).save(folder / "a" / "frames.x" / f"{t}.png")
    (folder / "bad.mp4").write_text("none")
    (folder / "thumb.jpg").touch()
    return folder


LOOSE = {"shards": {"max_reject_rate": 0.5}}


def run(root: Path, out: Path, **options):
    changed = options.pop("recipe", recipe(**LOOSE))
    return extract_keypoints(root, out, changed, quiet=True, **options)


def test_each_video_gets_a_file_under_its_name(root, tmp_path):
    out = tmp_path / "out"
    summary = run(root, out)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == ["_rejects.jsonl", "_settings.json", "a/frames.x.pose", "a/talk.v2.pose", "talk.pose"]
    assert [len(read_track(out / name)) for name in files if name.endswith(".pose")] == [3, 8, 4]
    assert (summary.clips, summary.made, summary.frames) == (3, 3, 15)
    assert [(reject.id, reject.reason) for reject in summary.rejects] == [("bad", "unreadable")]
    assert json.loads((out / "_settings.json").read_text()) == {
        "settings": {"extractor": "bright", "source_fps": 25.0}, "versions": {"version": "1"},
    }  # fmt: skip


def test_a_repeated_run_makes_only_what_is_missing(root, tmp_path):
    out = tmp_path / "out"
    run(root, out)
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    SEEN.clear()
    again = run(root, out)
    assert SEEN == ["bad"] and (again.clips, again.made, len(again.rejects)) == (3, 0, 1)
    (out / "talk.pose").unlink()
    run(root, out)
    assert SEEN == ["bad", "talk", "bad"] and {path: path.read_bytes() for path in before} == before
    video(root / "bad.mp4")
    assert run(root, out).clips == 4 and not (out / "_rejects.jsonl").read_text()


def test_beside_the_videos_other_keypoints_are_kept(root):
    (root / "talk.npz").write_bytes(b"made elsewhere")
    assert run(root, root).made == 2 and not (root / "talk.pose").exists()


def test_a_run_killed_before_any_video_goes_on_to_the_same_files(root, tmp_path, monkeypatch):
    run(root, tmp_path / "whole")

    def hashes(out: Path):
        return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    for moment in range(4):

        def deadly(unit: Unit, moment=moment):
            if unit.number == moment:
                raise Killed

        monkeypatch.setitem(KILL, "at", deadly)
        with pytest.raises(Killed):
            run(root, tmp_path / f"out{moment}")
        KILL.clear()
        run(root, tmp_path / f"out{moment}")
        assert hashes(tmp_path / f"out{moment}") == hashes(tmp_path / "whole")


def test_other_settings_are_refused_in_one_line(root, tmp_path):
    run(root, tmp_path / "out")
    (tmp_path / "out" / "talk.pose").unlink()
    with pytest.raises(UsageError, match="other settings: version is 1 there, 2 here"):
        run(root, tmp_path / "out", recipe=recipe(2, **LOOSE))


def test_too_many_rejects_end_with_3_and_name_the_first(root, tmp_path):
    with pytest.raises(TooManyRejects, match=r"1 of 4 .*first: 'bad': unreadable") as caught:
        run(root, tmp_path / "out", recipe=recipe(shards={"max_reject_rate": 0.0}))
    assert caught.value.exit_code == 3 and (tmp_path / "out" / "talk.pose").exists()


def test_the_verb_names_the_first_ten_rejects(root, tmp_path, capsys, monkeypatch):
    for number in range(11):
        (root / f"bad{number:02d}.mp4").write_text("none")
    given = recipe(shards={"max_reject_rate": 0.9})
    monkeypatch.setattr("sage_scale.config.load_recipe", lambda *_: given)
    code = main.run(["keypoints", "--root", str(root), "--out", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    named = [line for line in err.splitlines() if line.startswith("rejected: ")]
    assert code == 0 and "12 rejects (12 unreadable)" in out
    assert (
        len(named) == 10 and named[0].startswith("rejected: 'bad': unreadable (") and "'bad08'" in named[-1]
    )
    assert "12 are rejected" in err and "_rejects.jsonl names all" in err


def test_failures_of_the_extractor_are_tried_again_and_never_reject_or_end_the_run(root, tmp_path):
    FAIL["talk"] = [ExtractorFailed("died", "died by signal 9"), StorageError("away")]
    assert run(root, tmp_path / "out").clips == 3 and SEEN.count("talk") == 3
    FAIL["a/talk.v2"] = [ExtractorFailed("hung", "gave no answer for 120 s, at picture 3")] * 20
    FAIL["talk"] = [ExtractorFailed("nonsense", "answered b''")] * 20
    with pytest.raises(
        UnitsOpen, match=r"2 of 4 units are open .*at clip 'a/talk.v2': gave no answer"
    ) as caught:
        run(root, tmp_path / "other")
    assert caught.value.exit_code == 4 and (tmp_path / "other" / "a" / "frames.x.pose").exists()
    FAIL.clear()
    summary = run(root, tmp_path / "other", give_up=["talk"])
    assert sorted(reject.reason for reject in summary.rejects) == ["given-up", "unreadable"]
    assert (tmp_path / "other" / "a" / "talk.v2.pose").exists()


def test_roots_without_videos(tmp_path):
    for root, said in ((tmp_path / "none", "there is no"), (tmp_path, "no video")):
        with pytest.raises(UsageError, match=said):
            run(root, tmp_path / "out")


def test_precompute_extracts_beside_the_videos_that_have_none(root, tmp_path, monkeypatch):
    monkeypatch.setattr(keypoint_job, "tell", lambda *lines: None)
    for name in ("talk", "bad"):
        (root / f"{name}.txt").write_text("Ein Satz.\n")
    video(root / "known.mp4")
    (root / "known.npz").write_bytes(b"made elsewhere")
    settings = recipe(**LOOSE)
    settings = dataclasses.replace(settings, corpus=dataclasses.replace(settings.corpus, root=str(root)))
    extract_missing(settings, manifest_of(settings), quiet=True)
    assert sorted(SEEN) == ["a/talk.v2", "bad", "talk"]
    assert len(read_track(root / "talk.pose")) == 4 and not (root / "known.pose").exists()
    extract_missing(settings, manifest_of(settings), quiet=True)
    assert len(SEEN) == 4  # rejects are tried again
    (root / "bad.mp4").unlink()
    (root / "bad.txt").unlink()
    root.chmod(0o555)
    extract_missing(settings, manifest_of(settings), quiet=True)  # nothing is left: nothing is written


def test_precompute_extracts_into_the_folder_of_keypoints(root, tmp_path):
    settings = recipe(**LOOSE)
    corpus = dataclasses.replace(settings.corpus, root=str(root))
    vision = dataclasses.replace(settings.vision, keypoints=str(tmp_path / "poses"))
    settings = dataclasses.replace(settings, corpus=corpus, vision=vision)
    manifest = manifest_of(settings)
    extract_missing(settings, manifest, quiet=True)
    assert not list(root.rglob("*.pose")) and len(read_track(tmp_path / "poses" / "a" / "talk.v2.pose")) == 8
    good = next(clip for clip in manifest.clips if clip.video.endswith("v2.mp4"))
    track = decode_clip(good, dataclasses.replace(vision, min_frames=1), keypoints=True).track
    assert track is not None and len(track) == 8


def test_time_left_follows_bytes_and_parts_of_videos():
    progress = _Progress({"long": 900, "short": 100}, clips=2, units=2, quiet=True)
    assert progress.left_s is None and "starting the actors" in progress.line()
    progress.part(FramesDone(clip="long", frames=90, share=0.5))
    progress._working_since -= 9.0
    assert progress.left_s == pytest.approx(9.0 * (1000 / 450 - 1), rel=0.05)
    clip = Clip(id="long", video="long")
    progress.clip(Unit(number=0, split="", clips=(clip,)), ClipDone(clip="long", frames=90))
    assert progress.left_s == pytest.approx(1.0, rel=0.1) and progress.frames == 180


def test_a_long_video_reports_its_parts(root, tmp_path, monkeypatch):
    monkeypatch.setattr(keypoint_job, "REPORT_S", -1.0)
    files = KeypointFiles(recipe().vision)
    worker = FileWorker(recipe(), str(tmp_path / "out"), files=files)
    worker.environment()
    clip = Clip(id="talk", video=str(root / "talk.mp4"))
    events = list(worker.work(Unit(number=0, split="", clips=(clip,)), ""))
    assert [type(event) for event in events] == [FramesDone] * 4 + [ClipDone, UnitDone]
    assert sum(event.frames for event in events[:-1]) == 4


@pytest.mark.system
def test_precompute_extracts_on_ray_and_makes_its_samples_of_the_keypoints(root, tmp_path):
    """Actors import the plug-in that has the extractor; samples are features of the tracks beside the videos."""
    (root / "bad.mp4").unlink()
    for name in ("talk", "a/talk.v2"):
        (root / f"{name}.txt").write_text("Ein Satz.\n")
    changes = (
        "vision.extractor=toy vision.kind=features vision.backbone=keypoints vision.background=none "
        "vision.min_frames=2 segmentation.tagger=uniform text.tagger=none text.target=sentence precompute.actors=1 "
        "precompute.object_store_mb=80"
    )
    command = [
        "precompute",
        "--corpus",
        "videos",
        "--root",
        root,
        "--out",
        tmp_path / "out",
        *changes.split(),
    ]
    path = f"{Path(__file__).parents[1] / 'plugins'}:{os.environ.get('PYTHONPATH', '')}"
    variables = {**os.environ, "PYTHONPATH": path, "SAGE_SCALE_PLUGINS": "toy_extractor"}
    done = subprocess.run(sage(*command), env=variables, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 clips, 0 rejects; 2 of them in this run, 12 frames" in done.stderr
    assert len(read_track(root / "a" / "talk.v2.pose")) == 8
    records = open_dataset(tmp_path / "out").records
    assert len(records) == 2
