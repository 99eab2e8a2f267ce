"""What comes from outside is shown as one line without control characters and without the secrets of URLs."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_scale.untrusted.display import message_line, printable, redacted, shortened


@given(st.text(st.characters()))
def test_no_control_character_is_shown(text: str):
    line = message_line(text)
    line.encode()
    assert not {unicodedata.category(c) for c in line} & {"Cc", "Cs", "Zl", "Zp"}
    assert not set(line) & set("\u202a\u202b\u202d\u202e\u2066\u2067")


@given(st.text(st.characters(categories=("L", "N", "P", "S"), codec="utf-8")))
def test_words_of_any_script_stay_as_they_are(text: str):
    assert printable(text) == text


def test_escapes_are_those_of_python():
    assert printable("a\x1b[2J\nb\u202e\x9b") == "a\\x1b[2J\\nb\\u202e\\x9b"
    assert printable("می\u200cخواهم 👩\u200d🔬") == "می\u200cخواهم 👩\u200d🔬"
    assert shortened("x" * 5_000) == "x" * 80 + "... (5,000 characters)"


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:SECRET@bucket/p",
        "https://u:SECRET@h/x",
        "gs://SECRET@b/p",
        "s3://u:SECRET/SECRET@bucket",
        "https://h/x?X-Amz-Signature=SECRET",
        "S3://h/x#SECRET",
        "redis+tls://:SECRET@h:80",
        "https://a@b:SECRET@h/x",
        "s3:/user:SECRET@bucket/p",
        "HTTPS:/h/x?sig=SECRET",
    ],
)
def test_secrets_of_a_url_are_masked_within_a_sentence(url: str):
    shown = redacted(f"cannot open '{url}': no such bucket; see s3://other/p")
    assert "SECRET" not in shown and "***" in shown
    assert shown.endswith("': no such bucket; see s3://other/p")


def test_harmless_urls_and_addresses_stay():
    for text in ("s3://bucket/a@b/c", "http://127.0.0.1:9000/x", "https://h/a:b@c", "user@host", "a://"):
        assert redacted(text) == text


@pytest.mark.parametrize("mark", [":", ",", ";", ".", "),"])
def test_the_sentence_around_a_url_keeps_its_marks(mark):
    assert redacted(f"s3://b/p?k=SECRET{mark} then") == f"s3://b/p?***{mark} then"
    assert redacted(f"https://u:SECRET@h{mark} then") == f"https://***@h{mark} then"
