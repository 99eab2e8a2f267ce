"""Parses captions, WebVTT (.vtt) and SubRip (.srt), to cues in seconds with plain text.

Both are read as players read them. WebVTT: an empty line ends a cue, as browsers have it
(https://www.w3.org/TR/webvtt1/#file-parsing). SubRip has no specification; as in FFmpeg and mpv a cue lasts to the
times of the next one, empty lines in its text are ignored, and a cue without length is shown until the next begins.
Text that no player would show is reported.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import re
from dataclasses import dataclass, replace
from typing import NamedTuple

from sage_scale.corpora.manifest import MAX_SECONDS
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import lines as text_lines

BAD_CUE = "bad-cue"
"""Reject reason of a caption: times that cannot be read, a NUL, or text outside any cue."""
SUFFIXES = (".vtt", ".srt")
JOIN_S = 0.1
"""Cues at most this many seconds apart may continue the same line."""

_PART = r"(?:(\d{1,5})[ \t]*:[ \t]*)?(\d{1,2})[ \t]*:[ \t]*(\d{1,2})(?:[ \t]*[.,:][ \t]*(\d{1,9}))?"
_TIMING = re.compile(rf"\s*{_PART}\s*-->\s*{_PART}(?!\d)")
_CLOCK = r"(?:\d{1,5}:\d{1,2}:\d{1,2}(?:[.,]\d{1,3})?|\d{1,2}:\d{1,2}[.,]\d{1,3})"
_ARROWLESS = re.compile(rf"\s*{_CLOCK}(?:[^\w:]{{1,8}}|\s*\w{{1,3}}\s*){_CLOCK}")
"""Two times with something else than an arrow between them: 00:01.000 -> 00:02.000."""
_ANY_CLOCK = re.compile(r"\d\s*:\s*\d")
_HEADER = re.compile(r"WEBVTT(?:[ \t]|$)")
_TITLED_HEADER = re.compile(r"WEBVTT[ \t]+(?:-|(?:Kind|Language):)")
_TIME_MAP = "X-TIMESTAMP-MAP"
_HEADER_LINES = (_TIME_MAP, "Kind:", "Language:")
_MPEG_CLOCK = 2**33
"""MPEG times count to this many 90,000ths of a second, then from 0 again."""
_NO_TEXT = re.compile(r"NOTE(?:[ \t]|$)|STYLE[ \t]*$|REGION[ \t]*$")
_BREAK = re.compile(r"<br\s*/?>", re.I)
_RUBY = re.compile(r"<rt>.*?(?:</rt>|$)", re.I)
"""Pronunciation of the characters before it, shown above them in small print."""
_ASS_BLANK = re.compile(r"\\[Nh]")
"""Line break or blank of SubStation Alpha, which converters to SubRip leave in the text."""
_TAGS = re.compile(r"<(?![\s\d])|<(?=\d+:)|\{\\")
"""Openings of tags and of times of words; 3 < 5 and <3 are text."""
_SOUNDS = re.compile(r"[\[(（【♪]")
_CLOSING = {"<": ">", "{\\": "}", "[": "]", "(": ")", "（": "）", "【": "】", "♪": "♪"}


@dataclass(frozen=True)
class Cue:
    """A caption: [start, end) in seconds of the video, and its text in one line without mark-up."""

    start_s: float
    end_s: float
    text: str
    lines: tuple[str, ...] = ()
    """The lines as they are shown, without mark-up; empty ones left out."""


class CaptionFile(NamedTuple):
    """The cues of a caption file, and its unreadable lines."""

    cues: list[Cue]
    """In the file's order."""
    broken: list[str]
    """Messages on cues that cannot be read and text that belongs to no cue, each with its line number."""


def parse_captions(text: str) -> CaptionFile:
    """Returns the cues of the text of a .vtt or .srt file, without mark-up, entities and settings.

    Joined segments of a stream (HLS) are read as one file: headers between them are left out, cues move by the
    difference of their time maps (RFC 8216, section 3.5), and a cue cut by the end of a segment is made one again.
    """
    # Files that were joined have byte order marks within.
    rows = [part for line in text_lines(text.replace("\ufeff", "")) for part in line.split("\r")]
    reader = _WebVTT() if rows and _HEADER.match(rows[0]) else _SubRip()
    for number, line in enumerate(rows, start=1):
        reader.take(number, line, rows[number] if number < len(rows) else "")
    reader.end()
    return CaptionFile(reader.cues, reader.broken + (reader.strays if reader.cues else []))


class _SubRip:
    """Reads SubRip line by line: a cue lasts until the times of the next one."""

    def __init__(self) -> None:
        self.cues: list[Cue] = []
        self.broken: list[str] = []
        self.strays: list[str] = []
        """Messages on texts outside any cue."""
        self._times: tuple[int, float, float] | None = None
        """Line number, start and end of the cue that is being read."""
        self._outside = True
        """Whether text belongs to no cue. After an unreadable cue it belongs to that cue, and is not reported."""
        self._shown: list[str] = []
        self._stray: list[tuple[int, str]] = []
        self._index = 0

    def take(self, number: int, line: str, following: str) -> None:
        """Reads one line; `following` is the next one."""
        times = _parse_times(line) if "-->" in line else None
        if times is not None:
            self._drop_index()
            self._close()
            self._times, self._outside = (number, *times), False
        elif self._is_bad_times(line):
            self._drop_index()
            self._close()
            self.broken.append(f"line {number}: {shortened(line.strip(), 60)}")
            self._outside = False
        elif self._times is not None:
            self._text(line)
        elif self._outside and line.strip():
            self._stray.append((number, line))
        else:
            self._between(line)

    def end(self) -> None:
        """Reads the end of the file."""
        self._close()
        for at, (cue, after) in enumerate(itertools.pairwise(list(self.cues))):
            if cue.end_s == cue.start_s < after.start_s:
                self.cues[at] = replace(cue, end_s=after.start_s)

    def _may_begin(self) -> bool:
        """Returns whether a line of times is expected here: after an empty line, or after a number."""
        last = self._shown[-1].strip() if self._times is not None and self._shown else ""
        return not last or last.isdigit()

    def _is_bad_times(self, line: str) -> bool:
        """Returns whether a line holds times that cannot be read; within a text an arrow alone is text."""
        if "-->" in line and (self._times is None or _ANY_CLOCK.search(line)):
            return True
        return self._may_begin() and bool(("-->" in line and self._shown) or _ARROWLESS.match(line))

    def _text(self, line: str) -> None:
        self._shown.append(line)

    def _between(self, line: str) -> None:
        """Reads a line after a cue that could not be read, or an empty one."""

    def _drop_index(self) -> None:
        """Removes the number before a cue's times: the line before them, or the next number above empty lines."""
        lines = self._shown if self._times is not None else [line for _, line in self._stray]
        last = next((at for at in range(len(lines) - 1, -1, -1) if lines[at].strip()), 0)
        number = lines[last].strip() if lines else ""
        if not (number.isdecimal() and len(number) < 9):
            return
        if last == len(lines) - 1 or int(number) == self._index + 1:
            self._index = int(number)
            del (self._shown if self._times is not None else self._stray)[last:]

    def _close(self) -> None:
        if self._times is not None:
            at, start_s, end_s = self._times
            shown = tuple(line for line in map(plain_text, self._shown) if line)
            text = " ".join(shown)
            if "\0" in text:
                self.broken.append(f"line {at}: a NUL character in its text")
            else:
                self._add(at, Cue(start_s, end_s, text, shown))
        elif self._stray:
            number, line = self._stray[0]
            self.strays.append(f"line {number}: text outside any caption: {shortened(line.strip(), 60)}")
        self._times = None
        self._shown.clear()
        self._stray.clear()

    def _add(self, number: int, cue: Cue) -> None:
        self.cues.append(cue)


class _WebVTT(_SubRip):
    """Reads WebVTT line by line: an empty line ends a cue, and blocks without times are no text."""

    def __init__(self) -> None:
        super().__init__()
        self._in_header = False
        self._segment = 0
        """Number of cues before the segment being read."""
        self._first_map: tuple[int, float] | None = None
        self._shift_s = 0.0

    def take(self, number: int, line: str, following: str) -> None:
        """Reads one line; `following` is the next one."""
        glued = line.endswith("WEBVTT") and (following == "" or following.startswith(_TIME_MAP))
        if glued and self._times is not None and not line[:-6].endswith((" ", "\t")):
            if line[:-6]:
                self._text(line[:-6])
            line = "WEBVTT"
        known = line == "WEBVTT" or _TITLED_HEADER.match(line) or following.startswith(_HEADER_LINES)
        if _HEADER.match(line) and (known or self._times is None):
            self._close()
            self._in_header, self._segment, self._shift_s = True, len(self.cues), 0.0
        elif self._in_header and "-->" not in line:
            if line.startswith(_TIME_MAP):
                self._map_times(number, line)
            self._in_header = line != ""
        elif self._times is None and line.startswith(f"{_TIME_MAP}="):
            self._map_times(number, line)  # an empty line between the header and its map
        else:
            self._in_header = False
            super().take(number, line, following)

    def end(self) -> None:
        """Reads the end of the file."""
        self._close()

    def _may_begin(self) -> bool:
        return self._times is None

    def _is_bad_times(self, line: str) -> bool:
        return "-->" in line or super()._is_bad_times(line)

    def _text(self, line: str) -> None:
        if line == "":
            self._close()
            self._outside = True
        else:
            self._shown.append(line)

    def _between(self, line: str) -> None:
        if line == "":
            self._close()
            self._outside = True

    def _drop_index(self) -> None:
        if self._times is None and len(self._stray) == 1:  # the name of a cue, whatever it is
            self._stray.clear()
        super()._drop_index()

    def _close(self) -> None:
        if self._times is None and self._stray and _NO_TEXT.match(self._stray[0][1]):
            self._stray.clear()
        super()._close()

    def _add(self, number: int, cue: Cue) -> None:
        if self._shift_s:
            cue = replace(cue, start_s=cue.start_s + self._shift_s, end_s=cue.end_s + self._shift_s)
        if not 0 <= cue.start_s < MAX_SECONDS:
            self.broken.append(f"line {number}: at {cue.start_s:.3f} s by its segment's {_TIME_MAP}")
            return
        for at in range(max(0, self._segment - 4), self._segment):
            before = self.cues[at]
            if before.lines == cue.lines and before.start_s <= cue.start_s <= before.end_s + JOIN_S:
                self.cues[at] = replace(before, end_s=max(before.end_s, cue.end_s))
                return
        self.cues.append(cue)

    def _map_times(self, number: int, line: str) -> None:
        """Reads X-TIMESTAMP-MAP=MPEGTS:900000,LOCAL:00:00:00.000: LOCAL is shown at MPEGTS / 90,000 s."""
        values = dict(part.strip().partition(":")[::2] for part in line.partition("=")[2].split(","))
        try:
            ticks, local_s = int(values.get("MPEGTS", "0")[:20]), parse_seconds(values.get("LOCAL", "0"))
        except ValueError:
            self.broken.append(f"line {number}: {shortened(line.strip(), 60)}")
            return
        self._first_map = self._first_map or (ticks, local_s)
        later = (ticks - self._first_map[0] + _MPEG_CLOCK // 2) % _MPEG_CLOCK - _MPEG_CLOCK // 2
        self._shift_s = round(later / 90_000 - (local_s - self._first_map[1]), 3)


def _parse_times(line: str) -> tuple[float, float] | None:
    """Returns start and end of a cue's line of times in seconds, None where they cannot be read."""
    match = _TIMING.match(line)
    if match is None:
        return None
    groups = match.groups()
    start_s, end_s = _seconds(groups[:4]), _seconds(groups[4:])
    return None if start_s is None or end_s is None else (start_s, end_s)


def plain_text(text: str) -> str:
    """Returns a caption's text without tags, entities and doubled blanks."""
    if "<" in text or "{" in text:
        text = _without(_RUBY.sub("", _BREAK.sub(" ", text)), _TAGS)
    text = _ASS_BLANK.sub(" ", text)
    if "&" in text:
        with contextlib.suppress(ValueError):  # an entity of thousands of digits
            text = html.unescape(text)
    return " ".join(text.split())


def has_words(text: str) -> bool:
    """Returns whether a caption holds words, beside sounds in brackets and notes of music."""
    said = _without(text, _SOUNDS).partition("♪")[0]  # a note that is not closed lasts to the end
    return any(map(str.isalnum, said))


def parse_seconds(text: str) -> float:
    """Returns seconds from `12.5`, `1:02.5` or `1:00:02,500`. Raises ValueError for any other text."""
    parts = text.strip().replace(",", ".").split(":")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    seconds = 0.0
    for value in values:
        seconds = seconds * 60 + value
    if not 1 <= len(values) <= 3 or not all(0 <= value < MAX_SECONDS for value in [*values, seconds]):
        raise ValueError(f"not a time: '{shortened(text)}'")
    return seconds


def _seconds(groups: tuple[str | None, ...]) -> float | None:
    hours, minutes, seconds, fraction = groups
    if hours is None and fraction is None:  # 00:01 may be minutes and seconds or hours and minutes
        return None
    thousandths = int((fraction or "0").ljust(3, "0")[:3])
    total = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + thousandths / 1000
    return total if total < MAX_SECONDS else None


def _without(text: str, openings: re.Pattern[str]) -> str:
    """Returns text without everything from an opening to its closing mark; openings that are not closed stay.

    Linear in the text: a pattern would search for a missing closing mark from each opening again.
    """
    kept: list[str] = []
    unclosed: set[str] = set()
    done = at = 0
    while match := openings.search(text, at):
        at = match.end()
        end = -1 if match[0] in unclosed else text.find(_CLOSING[match[0]], at)
        if end < 0:
            unclosed.add(match[0])
        else:
            kept.append(text[done : match.start()])
            done = at = end + 1
    return "".join(kept) + text[done:]
