"""Any bytes are a value that can be stored and counted with, or InvalidJSON with a short reason."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_scale.untrusted.json_values import InvalidJSON, parse_json, parse_json_object

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="\0")), inner)
    ),
)


@given(VALUES, st.booleans())
def test_what_json_writes_is_read_back(value: object, ascii_only: bool):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == value
    assert parse_json(text.encode()) == value


@given(st.binary() | st.text(st.characters()) | st.text(st.sampled_from('[]{}",:\\ud80e+-.1Nfalsenr')))
def test_anything_else_is_one_error(data: str | bytes):
    try:
        value = parse_json(data)
    except InvalidJSON as error:
        assert 0 < len(str(error)) < 120
    else:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 200_000, "nested"),
        ("[" * 70 + "]" * 70, "nested"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested"),
        ("9" * 401, "401 digits"),
        ("-" + "9" * 5_001, "5001 digits"),
        ("1e400", "finite"),
        ("[NaN]", "NaN"),
        ("-Infinity", "Infinity"),
        ('{"\\ud800": 1}', "surrogate"),
        ('["\\uDFFF"]', "surrogate"),
        ('["\ud800"]', "surrogate"),
        ('["a\\u0000b"]', "NUL"),
        (b'"\xff"', "UTF-8"),
        ("", "not JSON"),
    ],
)
def test_each_excess_is_named(text: str | bytes, reason: str):
    with pytest.raises(InvalidJSON, match=reason):
        parse_json(text)


def test_values_within_the_limits_pass():
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json('"\\ud83d\\ude00"') == "😀"
    assert parse_json(str(2**64 - 1)) == 2**64 - 1
    assert math.isclose(parse_json("1.797e308"), 1.797e308)
    with pytest.raises(InvalidJSON, match="object"):
        parse_json_object("[]")
