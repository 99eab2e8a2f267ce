"""Pieces of HTML and words that several sections share."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable
from html import escape as html_escape
from typing import Any

from sage_scale.untrusted.display import printable, redacted


def escape(text: object) -> str:
    """Returns text for HTML and SVG: markup and hidden characters escaped, URLs without their secrets."""
    return html_escape(redacted(printable(text)))


def if_readable(make: Callable[[], str], what: str, missing: list[tuple[str, str]]) -> str:
    """Returns the text that `make` builds of a run's values.

    Where they are not of the kinds that a run writes, returns "" and adds (`what`, why) to `missing`.
    """
    try:
        return make()
    except (AttributeError, LookupError, ArithmeticError, TypeError, ValueError):
        missing.append((what, "the run's files hold values of another kind than a run writes"))
        return ""


def section(anchor: str, title: str, body: str, kind: str = "") -> str:
    """One section with its heading."""
    name = f' class="{kind}"' if kind else ""
    heading = f'<h2 id="{anchor}-title">{title}</h2>'
    return f'<section id="{anchor}"{name} aria-labelledby="{anchor}-title">{heading}{body}</section>'


def scroll(html: str) -> str:
    """What is wider than a phone scrolls by itself, with the keyboard too."""
    return f'<div class="scroll" tabindex="0">{html}</div>'


def duration(seconds: float) -> str:
    """59 s, 4 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def brief(seconds: float) -> str:
    """59 s, 9.8 min, 2.1 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def is_jpeg(text: Any) -> bool:
    """Whether a value of a run's JSON is a JPEG in base64, safe to stand in the page."""
    try:
        return isinstance(text, str) and base64.b64decode(text, validate=True)[:2] == b"\xff\xd8"
    except (binascii.Error, ValueError):
        return False


def number(value: Any) -> bool:
    """Whether a value of a run's JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
