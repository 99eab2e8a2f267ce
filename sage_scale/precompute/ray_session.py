"""A Ray session for the time of a job: joined, or started on this machine and ended with it.

A Ray started here listens on the loopback interface alone and keeps its files in a temporary folder of its own, whose
path is short enough for Unix sockets; folders of killed runs are removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sage_scale.config import Recipe
from sage_scale.errors import SageError, UnitsOpen, UsageError
from sage_scale.untrusted.files import read_text
from sage_scale.untrusted.printer import tell

CONNECT_S = 10.0
"""Time limit for reaching a cluster's address, seconds."""
ENDED = (
    "Ray has ended (was its gcs_server or raylet killed, or out of memory?): finished units stay done, run the same "
    "command again"
)
ENDED_S = 5.0
"""How long a call of Ray may still block once Ray has ended, seconds."""
_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
_SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux (104 on macOS)."""
_PREFIX = f"sage-ray-{os.getuid()}-"
_RAY_BYTES = len(f"/{_PREFIX}12345678/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""Length of the names that this module and Ray append to the temporary folder."""
_killed = False
"""Whether a Ray of this process ended early and its processes were killed; the process has no other one after it."""


@contextlib.contextmanager
def ray_session(recipe: Recipe) -> Iterator[None]:
    """Joins Ray at `precompute.address` or RAY_ADDRESS, or this process's session, or else starts one.

    Raises UsageError for a wrong address.
    """
    # Ray warns about these at each start; neither changes anything here.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        _silence_worker_logs()
        yield
        return
    with contextlib.ExitStack() as folder:
        address = recipe.precompute.address
        if address in ("", "auto"):
            address = os.environ.get("RAY_ADDRESS", "") or address
        if address:
            _join(address)
        else:
            temporary = folder.enter_context(ray_folder())
            with _loopback_only():
                _start(recipe, str(temporary))
        _silence_worker_logs()
        over = threading.Event()
        threading.Thread(target=_exit_when_ray_ends, args=[over], name="ray-ended", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            if ray_ended():
                _kill_processes()
            else:
                ray.shutdown()


def running_cluster() -> str:
    """Returns HOST:PORT of the cluster of this user that `ray start` has begun on this machine; empty without one.

    `ray start` records the address in the cluster's temporary folder. Ray's own `auto` also joins a Ray that another
    program has started for itself, which records nothing and ends with that program; and it waits for a recorded one
    that is gone. Raises UsageError where there are several.
    """
    import psutil

    found: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError, UnicodeDecodeError):
            given = process.cmdline()
            if not given or os.path.basename(given[0]) != "raylet" or process.uids().real != os.getuid():
                continue
            options = dict(word.removeprefix("--").split("=", 1) for word in given[1:] if "=" in word)
            recorded = read_text(os.path.join(options.get("temp_dir", ""), "ray_current_cluster")).strip()
            if recorded and recorded == options.get("gcs-address"):
                found.add(recorded)
    if len(found) > 1:
        raise UsageError(
            f"several Ray clusters run here ({', '.join(sorted(found))}): set RAY_ADDRESS to one of them"
        )
    return next(iter(found), "")


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Makes SIGTERM end a job as Ctrl-C does: actors and a Ray started here are ended, nothing is half-written."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def started_here() -> bool:
    """Returns whether the Ray of this process was started by it, on this machine alone, without an autoscaler."""
    return _head_node() is not None


def ray_ended() -> bool:
    """Returns whether the gcs_server or raylet of a Ray that this process has started is gone.

    Ray itself waits for them for a minute, in silence, and then ends this process.
    """
    node = _head_node()
    return _killed or (
        node is not None
        and any(
            info.process.poll() is not None
            for kind in ("gcs_server", "raylet")
            for info in node.all_processes.get(kind, ())
        )
    )


def _join(address: str) -> None:
    import ray

    if address == "auto":
        address = running_cluster()
        if not address:
            raise UsageError(
                "precompute.address=auto: no Ray cluster of `ray start` runs on this machine; start one, name its "
                "address, or leave precompute.address empty"
            )
    try:
        _check_reachable(address)
        ray.init(address=address, **_QUIET)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error.__cause__, ray.exceptions.AuthenticationError):
            raise UsageError(
                f"the Ray cluster at '{address}' asks for its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH, or copy it to ~/.ray/auth_token"
            ) from None
        first = str(error).strip().splitlines()[0]
        raise UsageError(
            f"no Ray cluster at '{address}' ({first}); start one, or leave precompute.address empty"
        ) from None


def _check_reachable(address: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT: Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def _start(recipe: Recipe, temporary: str) -> None:
    """Starts Ray on this machine; a second time if it timed out. Raises SageError if that one does too."""
    _have_token()
    import ray

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    actors = recipe.precompute.actors
    settings: dict[str, Any] = {
        "num_cpus": max(actors, cores) if actors else None,
        "object_store_memory": max(recipe.precompute.object_store_mb, 80) * 2**20,
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": temporary,
        **_QUIET,
    }
    for last in (False, True):
        try:
            ray.init(address="local", **settings)
            return
        except Exception as error:  # Ray raises plain exceptions
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if last:
                raise SageError(
                    "Ray did not start on this machine in its time, twice: most often it is overloaded or out of "
                    "memory. Finished units stay done: run the same command again when it has room"
                ) from None


def _have_token() -> None:
    """Gives this process and its Ray a token of their own where Ray cannot keep one in ~/.ray.

    A container may have neither HOME nor an entry for its user in /etc/passwd, or a home on a read-only file system.
    """
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        return
    if home := os.environ.get("HOME"):
        folder = os.path.join(home, ".ray")
        with contextlib.suppress(OSError):
            os.makedirs(folder, exist_ok=True)
            if os.access(os.path.join(folder, "auth_token"), os.R_OK) or os.access(folder, os.W_OK | os.X_OK):
                return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Makes a Ray that is started within listen on 127.0.0.1 alone.

    On Linux Ray replaces that address by the machine's own one, and then listens on all interfaces, unless a variable
    forbids clusters, as it does on macOS and Windows. It is read when Ray is imported, and by Ray's processes.
    """
    from ray._private import ray_constants

    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    allowed, variable = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = allowed
        os.environ.pop(name)
        if variable is not None:
            os.environ[name] = variable


def _silence_worker_logs() -> None:
    """Stops Ray from printing pages of its logs whenever a worker dies; the driver reports it in one line."""
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private import worker

        worker.print_to_stdstream  # noqa: B018  (an AttributeError where a later Ray has none)
        worker.print_to_stdstream = lambda *_, **__: None


def _exit_when_ray_ends(over: threading.Event) -> None:
    """Ends this process where Ray has ended and a call of it does not return, as Ray would after a minute or more."""
    while not over.wait(0.5):
        if ray_ended() and not over.wait(ENDED_S):
            tell(f"sage-scale: {ENDED}")
            _kill_processes()
            os._exit(UnitsOpen.exit_code)


def _kill_processes() -> None:
    """Kills the processes of a Ray whose gcs_server is gone: `ray.shutdown` would wait for it."""
    global _killed
    _killed = True
    import psutil

    below = []
    with contextlib.suppress(Exception):
        for infos in _head_node().all_processes.values():
            for info in infos:
                with contextlib.suppress(psutil.Error):
                    below += psutil.Process(info.process.pid).children(recursive=True)
        _head_node().kill_all_processes(check_alive=False, allow_graceful=False)
    for process in below:  # actors and agents of the raylet, some of which outlive it
        with contextlib.suppress(psutil.Error):
            process.kill()


def _head_node() -> Any:
    """Returns Ray's record of the processes that it started for this one; None where it joined others."""
    with contextlib.suppress(KeyError, AttributeError):
        node: Any = sys.modules["ray._private.worker"]._global_node  # not imported for this question
        if node is not None and node.is_head() and node.all_processes is not None:
            return node
    return None


@contextlib.contextmanager
def ray_folder() -> Iterator[Path]:
    """Yields a locked folder for one session of Ray, removed where the session ends without an error.

    It lies in $TMPDIR, or where sockets there would have too long a path for Ray, in /tmp or /var/tmp. Raises
    UsageError where none of them can be used.
    """
    base = _short_base()
    for old in base.glob(f"{_PREFIX}*"):
        _remove_if_unlocked(old)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():  # no other process took it for an old one meanwhile
            break
        os.close(lock)
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _short_base() -> Path:
    named = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    for folder in (named, "/tmp", "/var/tmp"):
        # Ray's own programs take the path as ASCII.
        fits = folder.isascii() and len(os.fsencode(os.path.abspath(folder))) + _RAY_BYTES <= _SOCKET_BYTES
        if fits and os.access(folder, os.W_OK | os.X_OK):
            return Path(os.path.abspath(folder))
    raise UsageError(
        f"Ray needs a temporary folder with a path of at most {_SOCKET_BYTES - _RAY_BYTES} ASCII characters: set "
        "TMPDIR to one that may be written, such as /tmp"
    )


def _remove_if_unlocked(folder: Path) -> None:
    """Removes the folder of a killed run: this user's, and locked by no process."""
    with contextlib.suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(lock).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
