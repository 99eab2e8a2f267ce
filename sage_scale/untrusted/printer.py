"""Prints to the terminal. No other module writes to stdout, stderr or a logger of its own.

Every line is escaped and without the secrets of URLs (display.py), so an id cannot forge a line or move the cursor.
Where the stream's encoding lacks a character (LANG=C, latin-1), its escape is printed instead.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from sage_scale.errors import UsageError
from sage_scale.untrusted.display import json_text, message_line, printable, redacted, shortened

if TYPE_CHECKING:
    from rich.console import Console

LOG_FORMAT = "SAGE_LOG"
"""Environment variable: `json` writes the rows of a stage's log to stdout, too."""
_CLEARED = "\r\033[K"
"""Moves to the start of the terminal's line and clears it."""


def echo(*lines: object, flush: bool = False) -> None:
    """Prints results to stdout, each argument as one line."""
    _write(sys.stdout, "".join(f"{_scrubbed(line)}\n" for line in lines))
    if flush:
        sys.stdout.flush()


def echo_json(value: Any, indent: int | None = None) -> None:
    """Prints a value to stdout as JSON."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    text = json_text(value, indent)
    _write(sys.stdout, (text if unicode else json.dumps(json.loads(text), indent=indent)) + "\n")


def check_log_format() -> None:
    """Raises UsageError for an unknown value of SAGE_LOG."""
    value = os.environ.get(LOG_FORMAT, "")
    if value not in ("", "json"):
        raise UsageError(f"{LOG_FORMAT}={shortened(value)} is unknown: json, or leave it unset")


def echo_row(stage: str, row: Mapping[str, Any]) -> None:
    """Prints a row of a stage's log to stdout as one line of JSON with time (ISO 8601) and stage, if SAGE_LOG=json."""
    if os.environ.get(LOG_FORMAT) == "json":
        echo_json({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "stage": stage, **row})
        sys.stdout.flush()


def echo_coloured(*pieces: tuple[object, str]) -> None:
    """Prints one line to stdout, made of (text, style of rich) pieces; colours appear on a terminal only."""
    from rich.text import Text

    text = Text.assemble(*((_scrubbed(piece), style) for piece, style in pieces))
    console(sys.stdout).print(text, soft_wrap=True)


def tell(*lines: object, stream: IO[str] | None = None) -> None:
    """Prints messages and progress to stderr (or `stream`), each argument as one line."""
    stream = stream or sys.stderr
    _write(stream, _start(stream) + "".join(f"{_scrubbed(line)}\n" for line in lines))
    stream.flush()


def console(stream: IO[str], width: int | None = None) -> Console:
    """Returns a rich console on `stream` that escapes its strings and gives no meaning to brackets within them."""
    from rich.console import Console
    from rich.text import Text

    class Scrubbed(Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False  # a process that ends early would leave it hidden

        def render_str(self, text: str, **options: Any) -> Text:
            options.update(markup=False, emoji=False, highlight=False)
            return super().render_str("\n".join(map(_scrubbed, text.split("\n"))), **options)

    return Scrubbed(file=stream, width=width, markup=False, emoji=False, highlight=False)


def logger(name: str) -> logging.Logger:
    """Returns the logger of that name; its messages are single scrubbed lines."""
    found = logging.getLogger(name)
    if _scrub not in found.filters:
        found.addFilter(_scrub)
    return found


def _scrub(record: logging.LogRecord) -> bool:
    record.msg, record.args = message_line(record.getMessage()), ()
    return True


def _scrubbed(text: object) -> str:
    return redacted(printable(text))


def _start(stream: IO[str]) -> str:
    return _CLEARED if stream.isatty() else ""


def _write(stream: IO[str], text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError as error:
        stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
