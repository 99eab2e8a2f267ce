"""Temporary folders of precompute: short enough for sockets, nobody else's, and emptied of what killed runs left."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from sage_scale.errors import UsageError
from sage_scale.precompute.actor import scratch_folder
from sage_scale.precompute.ray_session import _have_token, ray_folder


@pytest.fixture
def temporary(monkeypatch, tmp_path):
    """Sets TMPDIR, which Python reads once."""

    def put(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        return folder

    return put


def test_a_short_folder_is_used_and_removed(temporary) -> None:
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as base:
        temporary(Path(base))
        with ray_folder() as folder:
            assert folder.parent == Path(base) and stat.S_IMODE(folder.stat().st_mode) == 0o700
            (folder / "session").mkdir()
        assert not folder.exists()


@pytest.mark.parametrize("name", ["t" * 43, "t" * 90, "tü", "日本"])
def test_a_long_or_odd_one_gives_way_to_a_short_one(temporary, tmp_path, name) -> None:
    temporary(tmp_path / name)
    with ray_folder() as folder:
        longest = folder / "session_2026-01-01_00-00-00_000000_4194304" / "sockets" / "plasma_store"
        assert len(os.fsencode(longest)) <= 107 and str(folder).isascii()


def test_without_any_usable_folder_one_line_says_what_to_set(temporary, tmp_path, monkeypatch) -> None:
    temporary(tmp_path / ("t" * 60))
    monkeypatch.setattr(os, "access", lambda place, mode: str(place) not in ("/tmp", "/var/tmp"))
    with pytest.raises(UsageError, match="set TMPDIR") as refused, ray_folder():
        pass
    assert "\n" not in str(refused.value)


def test_what_killed_runs_left_goes_and_what_is_in_use_stays(temporary) -> None:
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as base:
        temporary(Path(base))
        left, used, foreign = (
            Path(base) / f"sage-ray-{os.getuid()}-{name}" for name in ("left0000", "used0000", "link")
        )
        for folder in (left, used):
            (folder / "session" / "logs").mkdir(parents=True)
        (Path(base) / "elsewhere").mkdir()
        foreign.symlink_to(Path(base) / "elsewhere")
        holder = os.open(used, os.O_RDONLY)
        fcntl.flock(holder, fcntl.LOCK_EX)
        with ray_folder():
            assert not left.exists()
            assert used.is_dir() and foreign.is_symlink() and (Path(base) / "elsewhere").is_dir()
        os.close(holder)


@pytest.mark.parametrize("kind", ["link", "dangling link", "file", "another's"])
def test_a_folder_of_somebody_else_is_refused(temporary, tmp_path, monkeypatch, kind) -> None:
    temporary(tmp_path / "tmp")
    folder, target = tmp_path / "tmp" / f"sage-scale-precompute-{os.getuid()}", tmp_path / "target"
    stale = target / "999999999-000000.tar"
    if kind != "dangling link":
        target.mkdir()
        stale.touch()
    if "link" in kind:
        folder.symlink_to(target)
    elif kind == "file":
        folder.touch()
    else:
        folder.mkdir()
        user = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
        folder.rename(folder.with_name(f"sage-scale-precompute-{os.getuid()}"))
    with pytest.raises(UsageError, match="another user: set TMPDIR"):
        scratch_folder()
    assert kind == "dangling link" or stale.exists()


def test_stale_tars_of_our_own_go(temporary, tmp_path) -> None:
    temporary(tmp_path / "tmp")
    folder = scratch_folder()
    (folder / "999999999-000000.tar").touch()
    (folder / f"{os.getpid()}-000000.tar").touch()
    folder.chmod(0o777)
    assert scratch_folder() == folder and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == [f"{os.getpid()}-000000.tar"]


@pytest.mark.parametrize("home", ["none", "read-only", "a file", "empty", "with a token"])
def test_ray_has_a_token_where_it_cannot_keep_one_at_home(monkeypatch, tmp_path, home) -> None:
    """A container may have no HOME at all; root may write everywhere, hence a folder below a file."""
    for name in ("HOME", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    place = tmp_path / "home"
    if home == "a file":
        place.touch()
    else:
        (place / ".ray").mkdir(parents=True)
    if home == "read-only":
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    if home == "with a token":
        (place / ".ray" / "auth_token").write_text("0" * 64)
    if home != "none":
        monkeypatch.setenv("HOME", str(place))
    _have_token()
    own = os.environ.get("RAY_AUTH_TOKEN", "")
    assert bool(own) == (home in ("none", "read-only", "a file"))
    _have_token()
    assert os.environ.get("RAY_AUTH_TOKEN", "") == own, "a process has one token"
    os.environ.pop("RAY_AUTH_TOKEN", None)


def precompute(root: Path, out: Path, *words: str, by: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*by, sys.executable, "-m", "sage_scale.cli.main", "precompute", "--corpus", "videos", "--root", str(root),
         "--out", str(out), "corpus.language=de", "text.tagger=none", "text.target=sentence", "precompute.actors=1",
         "shards.clips_per_unit=1", "vision.background=none", "vision.min_frames=4", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def below(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """Processes below `process` whose title has `name`, as soon as there are any."""
    while process.poll() is None:
        try:
            children = psutil.Process(process.pid).children(recursive=True)
            found = [
                child for child in children if name in child.name() or name in " ".join(child.cmdline()[:1])
            ]
        except psutil.Error:
            continue
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(process.communicate()[0])


@pytest.mark.system
@pytest.mark.timeout(240)
def test_our_own_ray_listens_on_the_loopback_alone_and_its_killed_server_ends_the_run_in_one_line(
    corpus_root, tmp_path, temporary
) -> None:
    temporary(tmp_path / ("t" * 60))
    run = precompute(corpus_root, tmp_path / "out", "vision.size=512", "vision.crop=448")
    try:
        below(run, "ray::UnitWorker")
        addresses = set()
        children = psutil.Process(run.pid).children(recursive=True)
        for process in [psutil.Process(run.pid), *children]:
            try:
                addresses |= {c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN"}
            except psutil.Error:
                continue
        (server,) = below(run, "gcs_server")
        server.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        output, _ = run.communicate(timeout=100)
    finally:
        run.kill()
    assert len(addresses) > 0 and addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert time.monotonic() - killed < 20
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert run.returncode == 4, output
    said = [line for line in output.splitlines() if "clips," not in line and line.strip()]
    assert len(said) == 1 and "Ray has ended" in said[0] and "run the same command again" in said[0], output
    # The same command goes on, also for a user without a home and an entry in /etc/passwd, and no folder is left.
    stranger: tuple[str, ...] = (
        "unshare",
        "--user",
        "--map-user=4242",
        "--map-group=4242",
        "env",
        "-u",
        "HOME",
    )
    if shutil.which("unshare") is None or subprocess.run([*stranger, "true"], capture_output=True).returncode:
        stranger = ("env", "-u", "HOME")  # no user namespaces here
    again = precompute(corpus_root, tmp_path / "out", "vision.size=512", "vision.crop=448", by=stranger)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
