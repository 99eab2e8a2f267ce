"""A folder as a store: kills, full disks, permissions."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sage_scale.errors import StorageError, UsageError
from sage_scale.storage import NotFound, open_store
from sage_scale.storage.folder import FolderStore


def _claim(root: str, body: bytes, start: float) -> bool:
    while time.time() < start:
        pass
    return open_store(root).put_if_absent("name", body)


@pytest.mark.system
def test_of_many_racing_processes_exactly_one_wins(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for turn in range(5):
            root, start = str(tmp_path / str(turn)), time.time() + 0.2
            won = pool.starmap(_claim, [(root, b"%d" % n * 100_000, start) for n in range(4)])
            assert won.count(True) == 1
            assert (tmp_path / str(turn) / "name").read_bytes() == b"%d" % won.index(True) * 100_000


@pytest.mark.system
def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    body = "from sage_scale.storage import open_store\n" + (
        f"store = open_store({str(tmp_path)!r})\nprint('go', flush=True)\nn = 0\n"
        "while True:\n    store.put_if_absent(f'{n:06d}', b'x' * 3_000_000); store.put('again', b'y' * 3_000_000)\n"
        "    n += 1\n"
    )
    for pause in (0.01, 0.05, 0.11, 0.2, 0.31):
        writer = subprocess.Popen([sys.executable, "-c", body], stdout=subprocess.PIPE)
        assert writer.stdout and writer.stdout.readline() == b"go\n"
        time.sleep(pause)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        for entry in open_store(tmp_path).list():
            assert entry.size == 3_000_000, entry
    hidden = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert len(hidden) <= 1, "only a kill between the two steps of a replacement may leave a hidden file"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (open_store(tmp_path).put, open_store(tmp_path).put_if_absent):
        with pytest.raises(StorageError, match=r"disk of .* is full") as error:
            write("x", b"data")
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_disk_that_fills_up_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sage_scale.storage import folder

    monkeypatch.setattr(folder, "_create_hidden", lambda *_: (open("/dev/full", "wb"), "/dev/full"))  # noqa: SIM115
    with pytest.raises(StorageError, match="is full"):
        open_store(tmp_path).put("x", b"data" * 10_000)
    assert list(tmp_path.iterdir()) == []


def test_file_systems_without_unnamed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_open = os.open

    def no_unnamed(path: str, flags: int, *rest: int, **named: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return true_open(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", no_unnamed)
    store = open_store(tmp_path)
    assert store.put_if_absent("x", b"1") and not store.put_if_absent("x", b"2")
    store.put("y", b"3")
    store.put("y", b"4")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"1", "y": b"4"}


def test_what_killed_writers_left_goes_and_what_is_written_now_stays(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put("a/b.json", b"1")
    names = (".000002.json.0123456789ab.tmp", "a/.b.json.ba9876543210.tmp", ".index.json.00aa11bb22cc.tmp")
    left, below, held = (tmp_path / name for name in names)
    young, foreign = tmp_path / ".x.000000000000.tmp", tmp_path / ".mine.tmp"
    for path in (left, below, held, young, foreign):
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
    os.utime(young)
    with held.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        store.check_writable()
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [tmp_path / "a" / "b.json", held, young, foreign]
    )


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_writer_at_work_holds_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    from sage_scale.storage import folder

    if not unnamed:
        monkeypatch.setattr(folder, "_create_hidden", lambda _, hidden: (open(hidden, "xb"), str(hidden)))  # noqa: SIM115
    true_replace, store = os.replace, open_store(tmp_path)

    def slow(source: Path, target: Path) -> None:
        os.utime(source, (0, 0))
        store.check_writable()
        true_replace(source, target)

    store.put("x", b"1")
    monkeypatch.setattr(os, "replace", slow)
    store.put("x", b"2")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"2"}


def test_places_that_cannot_be_written_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="is not a folder"):
        FolderStore(tmp_path / "file").put("x", b"")  # a file that came after the store was opened
    with pytest.raises(StorageError, match=r"may not be written|cannot be written|does not exist"):
        open_store("/proc/nowhere").put("x", b"")
    with pytest.raises(NotFound, match="source does not exist"):
        open_store(tmp_path).put("x", tmp_path / "source")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="is a folder"):
        open_store(tmp_path).get("folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_permissions(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.put("x", b"1")
    (tmp_path / "x").chmod(0)
    with pytest.raises(StorageError, match="may not be read"):
        store.get("x")
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="may not be written"):
        store.put("y", b"1")
    tmp_path.chmod(0o700)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    path = tmp_path / "shards"
    path.write_text("not a dataset")
    for url in (path, str(path), f"file://{path}"):
        with pytest.raises(UsageError, match=f"{path} is a file"):
            open_store(url)
    assert path.read_text() == "not a dataset"


def test_only_regular_files_are_objects(tmp_path: Path) -> None:
    """A FIFO would wait for a writer for ever, /dev/zero never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.getcwd()
        os.chdir(tmp_path)  # a socket's path is short
        try:
            listening.bind("socket")
        finally:
            os.chdir(before)
        store = open_store(tmp_path)
        for name, what in (
            ("pipe", "a FIFO"), ("zero", "a character device"), ("socket", "a socket"), ("folder", "a folder"),
        ):  # fmt: skip
            reads = (store.get, store.size, store.exists, lambda name: store.get_range(name, 0, 1))
            for read in reads:
                with pytest.raises(StorageError, match=f"{name} .*{what}"):
                    read(name)
