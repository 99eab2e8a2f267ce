"""Caption files that grow: after each caption the file is whole and readable, also if the command is killed then.

| ending | content |
|---|---|
| `.vtt` | WebVTT, with a note on the model and its training data |
| `.srt` | SubRip |
| `.json` | a list of `Caption.as_mapping` |
| `.eaf` | ELAN: sentences and segments, linked to the video; written anew, of a long video every few seconds |
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Protocol

from sage_scale.errors import StorageError, UsageError
from sage_scale.segmentation.elan import eaf_bytes
from sage_scale.segmentation.intervals import Interval, SignIntervals
from sage_scale.translation.captions import Caption
from sage_scale.untrusted.display import printable

SOON_S = 0.05
"""A file that is written faster is written after each caption, seconds."""
_TIME = re.compile(r"(?:(?:(\d{1,4}):)?(\d{1,4}):)?(\d{1,9}(?:\.\d{1,9})?)", re.ASCII)


class CaptionFile(Protocol):
    """A file that takes captions one by one."""

    def add(self, caption: Caption) -> None: ...
    def close(self) -> None:
        """Write what is not yet written."""


def open_captions(path: Path, video: str, about: str) -> CaptionFile:
    """Returns a new caption file, begun. `about` is one line on the model.

    Raises UsageError as `check_target`, StorageError where it cannot be written.
    """
    check_target(path)
    return _FORMATS[path.suffix.lower()](path, video, about)


def check_target(path: Path) -> None:
    """Raises UsageError where no captions can be written to `path`: another ending, no folder, a file that is there."""
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"--captions {path}: a caption file ends in {', '.join(_FORMATS)}")
    if not path.parent.is_dir():
        raise UsageError(f"--captions {path}: there is no folder {path.parent}")
    if path.exists() or path.is_symlink():
        raise UsageError(f"--captions {path}: it is there already; delete it or name another file")


def seconds_of(text: str, option: str) -> float:
    """Returns the seconds of `90`, `90.5`, `1:30` or `00:01:30.5`. Raises UsageError that names `option`."""
    found = _TIME.fullmatch(text.strip())
    if (
        found is None
        or (found[2] is not None and float(found[3]) >= 60)
        or (found[1] and int(found[2]) >= 60)
    ):
        raise UsageError(f"{option} {printable(text)}: give seconds (90.5) or hh:mm:ss (00:01:30.5)")
    return int(found[1] or 0) * 3600 + int(found[2] or 0) * 60 + float(found[3])


def clock(seconds: float, point: str = ".") -> str:
    """Returns `hh:mm:ss.mmm`."""
    whole = round(seconds * 1000)
    hours, minutes = whole // 3_600_000, whole // 60_000 % 60
    return f"{hours:02d}:{minutes:02d}:{whole // 1000 % 60:02d}{point}{whole % 1000:03d}"


def cue_text(sentence: str) -> str:
    """Returns a sentence as the one line of a cue, its mark-up escaped; players hide empty cues."""
    return escape(printable(sentence), quote=False) or "–"


def vtt_cue(start_s: float, end_s: float, sentence: str) -> str:
    """Returns a cue of WebVTT."""
    return f"{clock(start_s)} --> {clock(end_s)}\n{cue_text(sentence)}\n"


def srt_cue(number: int, start_s: float, end_s: float, sentence: str) -> str:
    """Returns a cue of SubRip, which has no escapes; `number` counts from 1."""
    text = printable(sentence).replace("-->", "->") or "–"
    return f"{number}\n{clock(start_s, ',')} --> {clock(end_s, ',')}\n{text}\n"


class _Growing:
    """A file to whose end, before a fixed tail, rows are added, each in one write: no reader sees half of one."""

    def __init__(self, path: Path, head: str, tail: str = "") -> None:
        self.path, self._tail = path, tail.encode()
        self._write(0, head.encode() + self._tail, os.O_CREAT | os.O_EXCL)
        self._at = len(head.encode())
        self.count = 0

    def append(self, row: str) -> None:
        """Add a row and bring it to the disk's cache."""
        self._write(self._at, row.encode() + self._tail)
        self._at += len(row.encode())
        self.count += 1

    def close(self) -> None:
        """Every row is written already."""

    def _write(self, at: int, data: bytes, flags: int = 0) -> None:
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o666)
            try:
                os.lseek(file, at, os.SEEK_SET)
                while data:
                    data = data[os.write(file, data) :]
            finally:
                os.close(file)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}") from None


class _WebVTT(_Growing):
    def __init__(self, path: Path, video: str, about: str) -> None:
        note = printable(about).replace("-->", "->")
        super().__init__(path, f"WEBVTT\n\nNOTE {note}\n")

    def add(self, caption: Caption) -> None:
        self.append("\n" + vtt_cue(caption.start_s, caption.end_s, caption.translation.sentence))


class _SubRip(_Growing):
    def __init__(self, path: Path, video: str, about: str) -> None:
        super().__init__(path, "")

    def add(self, caption: Caption) -> None:
        cue = srt_cue(self.count + 1, caption.start_s, caption.end_s, caption.translation.sentence)
        self.append(cue + "\n")


class _JSON(_Growing):
    def __init__(self, path: Path, video: str, about: str) -> None:
        super().__init__(path, "[", "\n]\n")

    def add(self, caption: Caption) -> None:
        row = json.dumps(caption.as_mapping(), ensure_ascii=False, allow_nan=False)
        self.append(("," if self.count else "") + "\n" + row)


class _ELAN:
    """ELAN's times stand before its annotations, so each writing writes all of them: at most a tenth of the time."""

    def __init__(self, path: Path, video: str, about: str) -> None:
        self._path, self._video = path, str(Path(video).absolute())
        self._sentences: list[Interval] = []
        self._signs: list[Interval] = []
        self._written_at = self._took_s = 0.0
        self.close()

    def add(self, caption: Caption) -> None:
        found, at = caption.translation, caption.window_start_s
        self._sentences.append(Interval(caption.start_s, caption.end_s, found.sentence))
        for start, end in found.segments.tolist():
            self._signs.append(Interval(at + start / found.fps, at + end / found.fps))
        if self._took_s < SOON_S or time.monotonic() - self._written_at > 10 * self._took_s:
            self.close()

    def close(self) -> None:
        intervals = SignIntervals(signs=tuple(self._signs), sentences=tuple(self._sentences))
        partial = self._path.with_name(f".{self._path.name}.partial")
        begun = time.monotonic()
        try:
            partial.write_bytes(eaf_bytes(intervals, video=self._video, folder=self._path.parent))
            partial.replace(self._path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise StorageError(f"{self._path} cannot be written: {error.strerror}") from None
        self._written_at = time.monotonic()
        self._took_s = self._written_at - begun


_FORMATS: dict[str, Callable[[Path, str, str], CaptionFile]] = {
    ".vtt": _WebVTT,
    ".srt": _SubRip,
    ".json": _JSON,
    ".eaf": _ELAN,
}
