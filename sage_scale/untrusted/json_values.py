"""Parses JSON from outside with limits, so that every invalid document is one kind of error with one short reason."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from sage_scale.untrusted.files import text_fault

MAX_DEPTH = 64
"""Nested arrays and objects. Our own documents have fewer than ten."""
MAX_INTEGER = 2**64
_ESCAPED_FAULT = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")


class InvalidJSON(ValueError):
    """The text is not JSON, or holds values that JSON permits and files, floats or UTF-8 do not."""


def parse_json(data: str | bytes) -> Any:
    """Returns the value of a JSON document. Raises InvalidJSON with a reason of a few words.

    Refused: bytes that are not UTF-8, more than 64 nested levels, numbers that are not finite, integers of 2**64 or
    more, strings with a NUL or a lone surrogate.
    """
    try:
        text = data if isinstance(data, str) else bytes(data).decode("utf-8-sig")
        value = json.loads(text, parse_constant=_constant, parse_float=_float, parse_int=_integer)
    except InvalidJSON:
        raise
    except UnicodeDecodeError as error:
        raise InvalidJSON(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise InvalidJSON(f"more than {MAX_DEPTH} nested levels") from None
    except json.JSONDecodeError as error:
        raise InvalidJSON(f"not JSON: {error.msg} at character {error.pos}") from None
    # Few brackets cannot be deep, and text without such escapes holds no odd characters: most documents skip the walk.
    deep = text.count("[") + text.count("{") > MAX_DEPTH
    odd = bool(_ESCAPED_FAULT.search(text)) or (isinstance(data, str) and bool(text_fault(text)))
    if deep or odd:
        _walk(value, odd)
    return value


def parse_json_object(data: str | bytes) -> dict[str, Any]:
    """Returns the object of a JSON document. Raises InvalidJSON, also for arrays, strings and numbers."""
    value = parse_json(data)
    if not isinstance(value, dict):
        raise InvalidJSON("not a JSON object")
    return value


def _constant(name: str) -> float:
    raise InvalidJSON(f"{name} is not a finite number")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise InvalidJSON("a number is not finite")
    return value


def _integer(digits: str) -> int:
    value = int(digits) if len(digits) <= 21 else MAX_INTEGER
    if abs(value) >= MAX_INTEGER:
        raise InvalidJSON(f"an integer of {len(digits.lstrip('-'))} digits")
    return value


def _walk(value: Any, strings: bool) -> None:
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise InvalidJSON(f"more than {MAX_DEPTH} nested levels")
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
                if strings:
                    below += item
            elif isinstance(item, list):
                below += item
            elif strings and isinstance(item, str) and (fault := text_fault(item)):
                raise InvalidJSON(fault)
        level, depth = below, depth + 1
