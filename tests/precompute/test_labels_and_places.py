"""Ray is given labels of metrics and a folder for its session that it can take, whatever the names of the user."""

from __future__ import annotations

import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_scale.precompute.metrics import label
from sage_scale.precompute.pool import ray_folder


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


@pytest.mark.parametrize("name", ["tü", "日本", "x" * 60, "\udcff", "a b"])
def test_rays_folder_is_short_and_ascii(tmp_path, monkeypatch, name):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", f"/t/{name}")
    folder = ray_folder()
    assert folder.isascii() and len(os.path.dirname(folder)) <= 42
    assert folder == ("/t/a b/ray" if name == "a b" else "/tmp/ray")
    monkeypatch.setenv("RAY_TMPDIR", "/mine")
    assert ray_folder() == "/mine/ray"
