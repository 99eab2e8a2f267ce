"""Prepares text from outside for a terminal, a log or a page: one line, no control characters, no secrets of URLs."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

MAX_SHOWN = 80
"""Characters that a message shows of a value."""
_URL = re.compile(
    r"\b([A-Za-z][A-Za-z0-9+.-]{0,30}://|(?:s3a?|gs|gcs|az|abfss?|hdfs|https?|ftp|file):/)([^\s\"'<>|]+)",
    re.IGNORECASE,
)
"""Also with one slash: a Path of a URL keeps only one."""
_MARKS = ":,;.)"
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Unicode categories that are escaped: controls, directional and invisible formats, surrogates, line separators."""


def printable(text: object) -> str:
    """Returns `text` as one printable line: other characters become Python escapes such as \\x1b, \\n or \\u202e.

    Zero-width joiners stay, since scripts and emoji need them.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(map(_shown, shown))


def markdown(text: object) -> str:
    """Returns `text` as one line that Markdown shows as it is: no markup, no end of a table's cell."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", printable(text))


def shortened(text: object, limit: int = MAX_SHOWN) -> str:
    """Returns `printable(text)`, cut to `limit` characters with "..." and its whole length where it is longer."""
    whole = str(text)
    if len(whole) <= limit:
        return printable(whole)
    return f"{printable(whole[:limit])}... ({len(whole):,} characters)"


def redacted(text: str) -> str:
    """Returns `text` with user, password, query and fragment of every URL in it replaced by `***`."""
    return _URL.sub(_masked, text) if ":/" in text else text


def message_line(text: object) -> str:
    """Returns a message as one line that is safe to print: `redacted`, `printable`, runs of blanks as one."""
    return redacted(printable(" ".join(str(text).split())))


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON for a terminal, a log or an event: strings `redacted`, hidden characters as \\uXXXX.

    Without `indent` it is one line. Lone surrogates are escaped, too, so that the text can always be encoded.
    """
    text = json.dumps(_redacted_values(value), ensure_ascii=False, indent=indent)
    if text.isprintable():
        return text
    # Raw line feeds are those of the indentation: within strings they are escaped already.
    return "".join(c if c == "\n" or _shown(c) == c else json.dumps(c)[1:-1] for c in text)


def size(count: float) -> str:
    """Returns bytes as `12 B` or `3.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Returns seconds as `12 s`, `3 min 20 s` or `5 h 04 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _redacted_values(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {_redacted_values(key): _redacted_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted_values(item) for item in value]
    return value


def _shown(character: str) -> str:
    if character in "\u200c\u200d" or unicodedata.category(character) not in _HIDDEN:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _masked(match: re.Match[str]) -> str:
    start, rest = match.groups()
    if mark := rest[len(rest.rstrip(_MARKS)) :]:  # of the sentence around it
        return f"{_masked_parts(start, rest.removesuffix(mark))}{mark}"
    return _masked_parts(start, rest)


def _masked_parts(start: str, rest: str) -> str:
    end = min((at for at in map(rest.find, "?#") if at >= 0), default=len(rest))
    authority, slash, path = rest[:end].partition("/")
    if "@" in authority:
        authority = f"***@{authority.rpartition('@')[2]}"
    elif "@" in path and ":" in authority and not authority.rpartition(":")[2].isdigit():
        # An unescaped slash within a password: hide everything up to the last @.
        authority, slash, path = f"***@{path.rpartition('@')[2]}", "", ""
    query = "?***" if end < len(rest) else ""
    return f"{start}{authority}{slash}{path}{query}"
