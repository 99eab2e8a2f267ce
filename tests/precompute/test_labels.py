"""A label of Ray's metrics is ASCII without secrets, whatever the name of the output."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sage_scale.precompute.progress import label


@given(st.text(st.characters()))
def test_a_label_is_ascii_and_keeps_plain_names(text):
    shown = label(text)
    assert shown.isascii() and shown.isprintable()
    if text.isascii() and text.isprintable() and ":/" not in text:
        assert shown == text


def test_a_label_tells_places_apart_without_secrets():
    assert label("/data/ünï") == "/data/%C3%BCn%C3%AF"
    assert label("s3://bucket/日本") != label("s3://bucket/日木")
    assert "hunter2" not in label("s3://u:hunter2@bucket/日本?x=hunter2")
