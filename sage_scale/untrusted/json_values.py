"""Parses JSON from outside with limits, so that every invalid document is one kind of error with one short reason."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sage_scale.untrusted.files import text_fault

MAX_DEPTH = 64
"""Nested arrays and objects. Our own documents have fewer than ten."""
MAX_INTEGER = 2**64
T = TypeVar("T")
_NAMES = {
    int: "a count",
    str: "text",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
_ESCAPED_FAULT = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")


class InvalidJSON(ValueError):
    """The text is not JSON, or holds values that JSON permits and files, floats or UTF-8 do not."""


def parse_json(data: str | bytes | memoryview, *, finite: bool = True) -> Any:
    """Returns the value of a JSON document. Raises InvalidJSON with a reason of a few words.

    Refused: bytes that are not UTF-8, more than 64 nested levels, numbers that are not finite, integers of 2**64 or
    more, strings with a NUL or a lone surrogate. Without `finite` numbers that are not finite become floats.
    """
    try:
        text = data if isinstance(data, str) else str(data, "utf-8")
        decoder = _DECODER if finite else _DECODER_OF_ANY_NUMBERS
        value = decoder.decode(text.removeprefix("\ufeff"))
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
    odd = ("\\" in text and bool(_ESCAPED_FAULT.search(text))) or (
        isinstance(data, str) and bool(text_fault(text))
    )
    if deep or odd:
        _walk(value, odd)
    return value


def parse_json_object(data: str | bytes | memoryview) -> dict[str, Any]:
    """Returns the object of a JSON document. Raises InvalidJSON, also for arrays, strings and numbers."""
    value = parse_json(data)
    if not isinstance(value, dict):
        raise InvalidJSON("not a JSON object")
    return value


def build(kind: type[T], values: Any) -> T:
    """Returns a dataclass made of a JSON object; items without a field are passed over.

    Raises InvalidJSON naming a field that is missing or not of its type. Integers are counts: never negative.
    """
    if not isinstance(values, Mapping):
        raise InvalidJSON("not a JSON object")
    found = {}
    for name, check, required in _fields(typing.cast(typing.Hashable, kind)):
        if name in values:
            found[name] = check(values[name], name)
        elif required:
            raise InvalidJSON(f"'{name}' is missing")
    return kind(**found)


@functools.cache
def _fields(kind: Any) -> list[tuple[str, Callable[[Any, str], Any], bool]]:
    """Name of each field, the function that checks a value of its type, and whether it has no default."""
    hints, missing = typing.get_type_hints(kind), dataclasses.MISSING
    return [
        (field.name, _checker(hints[field.name]), field.default is field.default_factory is missing)
        for field in dataclasses.fields(kind)
    ]


def _checker(hint: Any) -> Callable[[Any, str], Any]:
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Any:
        return lambda value, name: value
    if dataclasses.is_dataclass(kind):
        return lambda value, name: build(typing.cast(type, kind), value)
    if kind in (list, tuple):
        item = _checker(inner[0])
        return lambda value, name: kind(item(one, name) for one in _of(list, value, name))
    if kind in (dict, Mapping):
        item = _checker(inner[1])
        return lambda value, name: {key: item(one, name) for key, one in _of(dict, value, name).items()}
    if kind is types.UnionType:  # X | None
        item = _checker(inner[0])
        return lambda value, name: None if value is None else item(value, name)
    if kind is int:
        return _count
    if kind is float:
        return lambda value, name: float(value) if type(value) is int else _of(float, value, name)
    return lambda value, name: _of(kind, value, name)


def _of(kind: type, value: Any, name: str) -> Any:
    if type(value) is not kind:
        raise InvalidJSON(f"'{name}' is not {_NAMES[kind]}")
    return value


def _count(value: Any, name: str) -> int:
    if type(value) is not int or value < 0:
        raise InvalidJSON(f"'{name}' is not {_NAMES[int]}")
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


_DECODER = json.JSONDecoder(parse_constant=_constant, parse_float=_float, parse_int=_integer)
_DECODER_OF_ANY_NUMBERS = json.JSONDecoder(parse_constant=float, parse_int=_integer)
_decode_plain = json.JSONDecoder(parse_constant=_constant, parse_float=_float).decode


def parse_stored(data: bytes | memoryview) -> Any:
    """Returns the value of a JSON document within a shard, where strings may hold NUL as version 0.1.0 took them.

    Twice as fast as `parse_json`, for the hot path of streaming. Raises InvalidJSON.
    """
    try:
        text = str(data, "utf-8")
        value = _decode_plain(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # fails at lone surrogates
        return value
    except (ValueError, RecursionError) as error:
        raise InvalidJSON(f"not JSON, or with a lone surrogate: {type(error).__name__}") from None


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
