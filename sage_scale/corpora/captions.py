"""Captions beside a video: WebVTT (.vtt) and SubRip (.srt) to cues in seconds with plain text."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from pathlib import Path

from sage_scale.corpora.folders import read_text

SUFFIXES = (".vtt", ".srt")

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMING = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}")
_TAGS = re.compile(r"<[^>]*>|\{\\[^}]*\}")
_SOUND = re.compile(r"\[[^\]]*\]|\([^)]*\)|♪[^♪]*♪?|[♪♫#*]+")


@dataclass(frozen=True)
class Cue:
    """A caption: [start, end) in seconds of the video, and its text in one line without mark-up."""

    start_s: float
    end_s: float
    text: str


def read_captions(path: Path) -> list[Cue]:
    """The cues of a .vtt or .srt file in the file's order; UnicodeDecodeError where it is not UTF-8."""
    return parse_captions(read_text(path))


def parse_captions(text: str) -> list[Cue]:
    """The cues of the text of a .vtt or .srt file; lines that belong to no cue are passed over.

    A cue's text ends at an empty line, which both formats ask for. Mark-up, entities and cue settings go.
    """
    cues: list[Cue] = []
    lines = iter(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    for line in lines:
        match = _TIMING.match(line)
        if not match:
            continue
        words = []
        for following in lines:
            if not following.strip():
                break
            words.append(following)
        start_s, end_s = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
        cues.append(Cue(start_s, end_s, plain_text(" ".join(words))))
    return cues


def plain_text(text: str) -> str:
    """Caption text without tags, entities and doubled blanks."""
    return " ".join(html.unescape(_TAGS.sub(" ", text)).split())


def has_words(text: str) -> bool:
    """Whether something is said: sounds in brackets and notes are no words."""
    return any(character.isalnum() for character in _SOUND.sub(" ", text))


def parse_seconds(text: str) -> float:
    """Seconds from `12.5`, `1:02.5` or `1:00:02,500`; ValueError where it is none of them."""
    parts = text.strip().replace(",", ".").split(":")
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"not a time: {text!r}")
    seconds = 0.0
    for part in parts:
        value = float(part)
        if not 0 <= value < 1e7:
            raise ValueError(f"not a time: {text!r}")
        seconds = seconds * 60 + value
    return seconds


def _seconds(groups: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = groups
    thousandths = int((fraction or "0").ljust(3, "0"))
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + thousandths / 1000
