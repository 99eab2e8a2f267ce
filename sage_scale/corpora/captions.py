"""Captions beside a video: WebVTT (.vtt) and SubRip (.srt) to cues in seconds with plain text.

Automatic captions of YouTube are WebVTT too: words carry their own times, and each line is shown twice while it
rolls up. They are told from written ones here; `corpora/rolling.py` undoes the rolling.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sage_scale.corpora.folders import read_text

BAD_CUE = "bad-cue"
"""Reason of a caption that is set aside because its times cannot be read."""
SUFFIXES = (".vtt", ".srt")

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMING = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}")
_ARROWLESS = re.compile(rf"^\s*{_TIME}\s*\S{{1,3}}\s*{_TIME}")
"""Two times with something else than an arrow between them: 00:01.000 -> 00:02.000."""
_BREAK = re.compile(r"<br\s*/?>", re.I)
_TAGS = re.compile(r"<[^>]*>|\{\\[^}]*\}")
_WORD_TIMES = re.compile(r"<\d{2}:\d{2}:\d{2}\.\d{3}><c>")
_SOUND = re.compile(r"\[[^\]]*\]|\([^)]*\)|（[^）]*）|【[^】]*】|♪[^♪]*♪?|[♪♫#*]+")


@dataclass(frozen=True)
class Cue:
    """A caption: [start, end) in seconds of the video, and its text in one line without mark-up."""

    start_s: float
    end_s: float
    text: str
    lines: tuple[str, ...] = ()
    """The lines as they are shown, without mark-up; empty ones left out."""


class CaptionFile(NamedTuple):
    """What a caption file holds."""

    cues: list[Cue]
    """In the file's order."""
    broken: list[str]
    """Cues whose line of times cannot be read: their texts belong nowhere. Line number and line, for a person."""


def read_captions(path: Path) -> CaptionFile:
    """The cues of a .vtt or .srt file; UnicodeDecodeError where it is not UTF-8."""
    return parse_captions(read_text(path))


def parse_captions(text: str) -> CaptionFile:
    """The cues of the text of a .vtt or .srt file; lines that belong to no cue are passed over.

    A cue's text ends at an empty line, which both formats ask for, or at the next cue's times where that line
    was forgotten. A line of blanks alone is part of the text, as automatic captions have it. Mark-up, entities
    and cue settings go.
    """
    cues: list[Cue] = []
    broken: list[str] = []
    times: tuple[float, float] | None = None
    shown: list[str] = []

    def close() -> None:
        nonlocal times
        if times is not None:
            lines = tuple(line for line in map(plain_text, shown) if line)
            cues.append(Cue(*times, " ".join(lines), lines))
        times = None
        shown.clear()

    rows = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(rows, start=1):
        match = _TIMING.match(line) if "-->" in line else None
        if match:
            if times is not None and shown and shown[-1].strip().isdigit():
                shown.pop()  # the next SubRip cue's number, where the empty line before it is missing
            close()
            groups = match.groups()
            times = _seconds(groups[:4]), _seconds(groups[4:])
        elif "-->" in line or (times is None and _ARROWLESS.match(line)):  # text may hold no arrow
            close()
            broken.append(f"line {number}: {line.strip()[:60]}")
        elif times is not None:
            if line == "":
                close()
            else:
                shown.append(line)
    close()
    return CaptionFile(cues, broken)


def plain_text(text: str) -> str:
    """Caption text without tags, entities and doubled blanks."""
    if "<" in text or "{" in text:
        text = _TAGS.sub("", _BREAK.sub(" ", text))
    if "&" in text:
        text = html.unescape(text)
    return " ".join(text.split())


def has_words(text: str) -> bool:
    """Whether something is said: sounds in brackets and notes are no words."""
    return any(character.isalnum() for character in _SOUND.sub(" ", text))


def is_automatic(text: str) -> bool:
    """Whether a caption file's text gives each word its own time, as only a recogniser's captions do."""
    return _WORD_TIMES.search(text[:100_000]) is not None


def parse_seconds(text: str) -> float:
    """Seconds from `12.5`, `1:02.5` or `1:00:02,500`; ValueError where it is none of them."""
    parts = text.strip().replace(",", ".").split(":")
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"not a time: {text!r}")
    seconds = 0.0
    for part in parts:
        try:
            value = float(part)
        except ValueError:
            raise ValueError(f"not a time: {text!r}") from None
        if not 0 <= value < 1e7:
            raise ValueError(f"not a time: {text!r}")
        seconds = seconds * 60 + value
    return seconds


def _seconds(groups: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = groups
    thousandths = int((fraction or "0").ljust(3, "0"))
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + thousandths / 1000
