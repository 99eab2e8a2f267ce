"""Hostile files: no crash, no hang, and each is read or refused for a reason, alone, in a unit and by `inspect`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_files import CAPTIONS, CASES, READ, _good

from sage_scale.config import Corpus, Vision, from_mapping
from sage_scale.corpora.manifest import Clip
from sage_scale.corpora.videos import read_corpus
from sage_scale.errors import ClipRejected
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.plan import Unit
from sage_scale.precompute.progress import UnitDone
from sage_scale.vision.decode import decode_clip, decode_clips

SMALL = Vision(size=16, crop=16, max_frames=500)
LIMIT_S = 20
"""No file may hold the reader longer, seconds."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for name, make, _ in CASES:
        make(folder / name)
    return folder


def test_there_are_sixty_of_them() -> None:
    assert len({name for name, _, _ in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize(("name", "expected"), [(name, reasons) for name, _, reasons in CASES])
def test_each_is_read_or_refused_for_a_reason(hostile: Path, name: str, expected: set[str]) -> None:
    vision = SMALL if not name.endswith((".npz", ".pose")) else Vision(kind="features", backbone="keypoints")
    clip = Clip(id=name, video=str(hostile / name))
    with time_limit(LIMIT_S):
        try:
            decoded = decode_clip(clip, vision)
        except ClipRejected as rejected:
            assert rejected.reason in expected, str(rejected)
            assert "\n" not in rejected.detail.replace(name, "") and str(hostile) not in rejected.detail
        else:
            assert READ in expected and 8 <= decoded.total_frames <= 500
        spans = [Clip(id=f"{k}", video=str(hostile / name), start_s=k / 2, end_s=k / 2 + 1) for k in range(3)]
        together = dict(decode_clips(spans, SMALL))
        for k, span in enumerate(spans):
            try:
                alone = decode_clip(span, SMALL)
            except ClipRejected as rejected:
                assert str(together[k]) == str(rejected)
            else:
                assert together[k].frames.tobytes() == alone.frames.tobytes()


def test_a_growing_file_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "growing.ts"
    data = _good(tmp_path / "whole.ts")
    path.write_bytes(data[: len(data) // 2])
    ended = threading.Event()

    def grow() -> None:
        with path.open("ab") as file:
            while not ended.wait(0.001):
                file.write(bytes(188 * 50))
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        with time_limit(LIMIT_S):
            for _ in range(3):
                with contextlib.suppress(ClipRejected):
                    assert decode_clip(Clip(id="a", video=str(path)), SMALL).total_frames <= 500
    finally:
        ended.set()
        writer.join()


def test_a_unit_of_all_of_them_is_done_and_says_why_each_was_refused(hostile: Path, tmp_path: Path) -> None:
    clips = tuple(Clip(id=name, video=str(hostile / name), sentence="x") for name, _, _ in CASES)
    recipe = from_mapping({
        "corpus": {"name": "videos", "root": str(hostile), "language": "de"},
        "vision": {"size": 16, "crop": 16, "max_frames": 500},
        "text": {"tagger": "none", "target": "sentence"},
    })  # fmt: skip
    unit = Unit(number=0, split="train", clips=clips)
    with time_limit(90):
        *done, last = UnitWorker(recipe, str(tmp_path)).work(unit, "0" * 16)
    assert isinstance(last, UnitDone), last
    assert [event.clip for event in done] == [clip.id for clip in clips]
    for event, (name, _, expected) in zip(done, CASES, strict=True):
        assert (event.reason or READ) in expected | {"no-pictures"}, name
        assert event.frames > 0 if not event.reason else True
    assert last.marker.samples + last.marker.rejects == len(CASES)


@pytest.mark.system
def test_inspect_names_what_is_wrong_with_a_folder_of_them(hostile: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sage_scale.cli.main", "corpus", "inspect", "--corpus", "videos"]
    done = subprocess.run(
        [*command, "--root", str(hostile), "--probe"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for words in (
        "all zeros.mp4 is neither a file nor a folder",
        "and ",
        "more videos that cannot be opened",
    ):
        assert words in done.stdout


def test_captions_that_cannot_be_read_set_their_video_aside(tmp_path: Path) -> None:
    for name, (data, _) in CAPTIONS.items():
        (tmp_path / name).write_bytes(data)
        stem, _, suffix = name.rpartition(".")
        video = f"{stem}-{suffix}"
        (tmp_path / name).rename(tmp_path / f"{video}.{suffix}")
        _good(tmp_path / f"{video}.mp4", 10)
    os.symlink(tmp_path, tmp_path / "round and round")
    manifest = read_corpus(Corpus(name="videos", root=str(tmp_path)))
    reasons = {row.id.split(".mp4")[0]: row.reason for row in manifest.rejected}
    assert reasons == {name.replace(".", "-"): reason for name, (_, reason) in CAPTIONS.items()}
    assert manifest.clips == ()


def test_a_name_that_is_no_text_is_set_aside(tmp_path: Path) -> None:
    name = os.fsdecode(b"gr\xfc\xdfe.mp4")  # Latin-1, from an old disk
    try:
        (tmp_path / name).write_bytes(b"")
    except OSError:
        pytest.skip("this file system has no such names")
    _good(tmp_path / "good.mp4", 10)
    manifest = read_corpus(Corpus(name="videos", root=str(tmp_path)))
    assert [clip.id for clip in manifest.clips] == ["good.mp4"]
    assert [(row.reason, row.id.encode() and row.id) for row in manifest.rejected] == [
        ("bad-name", "gr??e.mp4")
    ]
    assert manifest.digest() and manifest.clips[0].key
