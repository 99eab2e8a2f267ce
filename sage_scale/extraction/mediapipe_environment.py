"""The environment of MediaPipe Holistic 0.10.21: a venv of its own, since its numpy 1 and protobuf 4 contradict ours.

`set_up` makes it in the user's data folder from `mediapipe.lock`, whose hashes pip checks; the folder's name holds the
lock's hash, so that another lock makes another environment. `python` finds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sage_scale.errors import SageError, UsageError
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import expanded, is_file, read_bytes

VARIABLE = "SAGE_SCALE_MEDIAPIPE"
"""Environment variable with the Python of an environment that has MediaPipe already."""
LOCK = Path(__file__).with_name("mediapipe.lock")
VERSIONS = ("3.11", "3.12")
"""Versions of Python for which MediaPipe 0.10.21 has wheels."""
MODEL_FILES = ("pose_landmark_lite.tflite", "pose_landmark_heavy.tflite")
"""Body models of complexity 0 and 2, which are not in the wheel."""
MODELS_FROM = "the npm package @mediapipe/holistic 0.5, Apache-2.0"
SET_UP = "sage-scale keypoints --setup"


def folder() -> Path:
    """Returns the folder of the environment, which need not exist: below $XDG_DATA_HOME, or ~/.local/share.

    Raises UsageError for a user without a home folder.
    """
    data = expanded(os.environ.get("XDG_DATA_HOME") or "~/.local/share")
    if str(data).startswith("~"):
        raise UsageError(
            f"MediaPipe's environment needs a folder: set HOME or XDG_DATA_HOME, or {VARIABLE}=PATH to its Python"
        )
    digest = hashlib.sha256(read_bytes(LOCK)).hexdigest()[:8]
    return data / "sage-scale" / f"mediapipe-0.10.21-{digest}"


def python() -> Path:
    """Returns the interpreter that has MediaPipe. Raises UsageError, with the way to get it, where there is none."""
    if named := os.environ.get(VARIABLE):
        if not os.access(expanded(named), os.X_OK) or not is_file(expanded(named)):
            raise UsageError(f"{VARIABLE}={named}: no such interpreter; name the python of an environment")
        return expanded(named)
    if not is_file(folder() / _DONE):
        raise UsageError(
            f"MediaPipe is not set up on {os.uname().nodename}: {SET_UP} installs it into {folder()} (180 MB, "
            f"nothing else is changed), or name the Python of an environment that has it: {VARIABLE}=PATH"
        )
    return folder() / "bin" / "python"


def set_up(
    base: str = "", models: Path | None = None, say: Callable[[str], None] = lambda line: None
) -> Path:
    """Makes the environment unless it is there, and copies the files of complexity 0 and 2 from `models` into it.

    `base` is the interpreter to make it with, by default this one. Returns its interpreter. Raises UsageError for an
    interpreter of another version and for a folder without the files, SageError where an installation fails.
    """
    found = [models / name for name in MODEL_FILES if is_file(models / name)] if models else []
    if models and not found:
        raise UsageError(f"{models} has neither {' nor '.join(MODEL_FILES)} ({MODELS_FROM})")
    where = folder()
    if not is_file(where / _DONE):
        interpreter = _checked_version(base or sys.executable, named=bool(base))
        where.parent.mkdir(parents=True, exist_ok=True)
        with _locked(where.parent / f"{where.name}.lock"):
            if not is_file(where / _DONE):
                say(f"installing MediaPipe 0.10.21 into {where}")
                shutil.rmtree(where, ignore_errors=True)  # of a killed set-up
                _run([interpreter, "-m", "venv", str(where)])
                pip = [str(where / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
                _run([*pip, "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", str(LOCK)])
                (where / _DONE).touch()
    for path in found:
        [modules] = where.glob("lib/python3*/site-packages/mediapipe/modules/pose_landmark")
        draft = modules / f".{path.name}.{os.getpid()}"
        shutil.copyfile(path, draft)
        draft.replace(modules / path.name)
        say(f"copied {path.name}")
    return where / "bin" / "python"


_DONE = "complete"
"""File of an environment that was installed to its end."""


def _checked_version(interpreter: str, named: bool) -> str:
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        asked = subprocess.run([interpreter, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(
            f"--python {interpreter}: {getattr(error, 'strerror', None) or 'no answer'}"
        ) from None
    version = shortened(asked.stdout.strip()) or "?"
    if version not in VERSIONS:
        what = f"--python {interpreter} is" if named else "this is"
        raise UsageError(
            f"MediaPipe 0.10.21 has files for Python {' and '.join(VERSIONS)}, and {what} Python {version}: name one "
            f"of them, {SET_UP} --python /usr/bin/python3.12"
        )
    return interpreter


def _run(command: Sequence[str]) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=kept)
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["no message"]
        raise SageError(
            f"MediaPipe cannot be installed: {shortened(errors[0].removeprefix('ERROR: '), 300)} (of "
            f"{' '.join(command[1:4])}); pip's own settings and variables name the index"
        )


@contextlib.contextmanager
def _locked(path: Path):  # type: ignore[no-untyped-def]
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
