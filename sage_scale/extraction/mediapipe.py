"""MediaPipe Holistic through a child process (mediapipe_child.py) that can die, hang or answer nonsense.

Each of these is an `ExtractorFailed` with its kind; the next video gets a new child.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sage_scale.errors import UsageError
from sage_scale.extraction import mediapipe_environment
from sage_scale.extraction.extractor import ExtractorFailed, FailureKind
from sage_scale.keypoints.names import HOLISTIC_75
from sage_scale.keypoints.track import LARGEST_COORDINATE
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.json_values import InvalidJSON, parse_json_object

CHILD = Path(__file__).with_name("mediapipe_child.py")
ANSWER_S = 120.0
"""Time limit of one answer, seconds; the first one loads the models."""
_MOST_TEXT = 2**16
_MODELS = ("lite", "full", "heavy")


class MediapipeHolistic:
    """Body and hands of one person by MediaPipe Holistic 0.10.21: 75 points."""

    names = HOLISTIC_75
    has_z = True

    def __init__(
        self, complexity: int = 1, *, command: Sequence[str] | None = None, answer_s: float = ANSWER_S
    ) -> None:
        """`complexity` is the body model's (0 lite, 1 full, 2 heavy). `command` starts another child of the same
        protocol. Raises UsageError where MediaPipe is not set up, or the model's file is missing."""
        self._command = command or _command(complexity)
        self._answer_s = answer_s
        self._child: _Child | None = None

    @property
    def facts(self) -> Mapping[str, str]:
        """Version, and hashes of the models. Starts the child. Raises ExtractorFailed."""
        return {name: str(value) for name, value in self._running().greeting.items()}

    def __call__(self, pictures: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields points (75, 3) and confidence (75,) of each picture of one video. Raises ExtractorFailed."""
        try:
            for number, picture in enumerate(pictures):
                yield self._running().answer(picture, number)
        except ExtractorFailed:
            self.close()
            raise

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _running(self) -> _Child:
        if self._child is None:
            self._child = _Child(self._command, self._answer_s)
        return self._child


def _command(complexity: int) -> list[str]:
    python = mediapipe_environment.python()
    name = f"pose_landmark_{_MODELS[complexity]}.tflite"
    # Where the layout is another one, the child itself names the missing file.
    folders = list(python.parent.parent.glob("lib/python3*/site-packages/mediapipe/modules/pose_landmark"))
    if folders and not (folders[0] / name).is_file():
        raise UsageError(
            f"vision.extractor_complexity={complexity} needs {name} ({mediapipe_environment.MODELS_FROM}): "
            f"{mediapipe_environment.SET_UP} --models FOLDER copies it"
        )
    return [str(python), "-I", str(CHILD), "--complexity", str(complexity)]


class _Child:
    """One child process, asked for one picture at a time."""

    def __init__(self, command: Sequence[str], answer_s: float) -> None:
        self._answer_s, self._where = answer_s, "at its start"
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # Ctrl-C is for the driver
            )
        except OSError as error:
            raise ExtractorFailed("died", f"{command[0]} cannot be started: {error.strerror}") from None
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        for end in (self._in, self._out):
            os.set_blocking(end, False)
        self._deadline = time.monotonic() + answer_s
        try:
            mark, length = self._header()
            if mark != b"HOLI" or length > _MOST_TEXT:
                raise self._failed("nonsense", f"greeted with {mark!r}")
            try:
                self.greeting = parse_json_object(bytes(self._read(length)))
            except InvalidJSON as error:
                raise self._failed("nonsense", f"greeted with a text that is {error}") from None
        except BaseException:
            self.close()
            raise

    def answer(self, picture: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns points and confidence of picture `number` of a video, uint8 (H, W, 3)."""
        self._deadline = time.monotonic() + self._answer_s
        self._where = f"at picture {number}"
        height, width, _ = picture.shape
        self._write(struct.pack("<4sIII", b"PICT", width, height, number == 0))
        self._write(np.ascontiguousarray(picture))
        mark, count = self._header()
        if mark != b"POSE" or count != len(HOLISTIC_75):
            raise self._failed("nonsense", f"answered {mark!r} and {count}")
        values = np.frombuffer(self._read(16 * count), "<f4").reshape(count, 4).astype(np.float32)
        if not (np.abs(values) <= LARGEST_COORDINATE).all() or (values[:, 3] < 0).any():
            raise self._failed("nonsense", "answered numbers that are no points of a picture")
        return values[:, :3], values[:, 3]

    def close(self) -> None:
        """Kill the process and release its pipes."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):
                file.close()  # type: ignore[union-attr]

    def _header(self) -> tuple[bytes, int]:
        mark, count = struct.unpack("<4sI", self._read(8))
        if mark == b"FAIL":
            text = bytes(self._read(min(count, _MOST_TEXT))).decode(errors="replace")
            raise self._failed("failed", f"reported {shortened(text, 300)}")
        return mark, count

    def _write(self, data: Any) -> None:
        left = memoryview(data).cast("B")
        while left:
            self._wait(self._in, select.POLLOUT)
            try:
                left = left[os.write(self._in, left) :]
            except BrokenPipeError:
                self._header()  # raises what it said before it ended
                raise self._failed("nonsense", "closed its input") from None

    def _read(self, size: int) -> bytearray:
        data = bytearray()
        while len(data) < size:
            self._wait(self._out, select.POLLIN)
            piece = os.read(self._out, size - len(data))
            if not piece:
                raise self._died()
            data += piece
        return data

    def _wait(self, end: int, event: int) -> None:
        poll = select.poll()
        poll.register(end, event)
        if not poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000):
            raise self._failed("hung", f"gave no answer for {self._answer_s:g} s")

    def _died(self) -> ExtractorFailed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4000))
        said = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
        last = f" ({shortened(said[-1], 200)})" if said and (code or 0) > 0 else ""
        return self._failed("died", f"died {how}{last}")

    def _failed(self, kind: FailureKind, text: str) -> ExtractorFailed:
        return ExtractorFailed(kind, f"MediaPipe's process {text}, {self._where}")
