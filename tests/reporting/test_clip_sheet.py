"""A sheet shows the chosen clips, each with a picture for its segments, and rejects; text from outside stays text."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from factories.datasets import make_dataset, make_sample, write_dataset
from factories.pages import Page
from PIL import Image

from sage_scale.cli.main import run
from sage_scale.shards import Reject
from sage_scale.storage import open_store

HOSTILE = "<script>alert(1)</script>\u202e\x1b[2J"


def sheet(data: Path, page: Path, *options: str) -> str:
    assert run(["shards", "sheet", str(data), "--out", str(page), *options]) == 0
    return page.read_text(encoding="utf-8")


def test_a_picture_stands_over_its_segment_and_nothing_is_loaded(tmp_path: Path) -> None:
    data = tmp_path / "shards"
    bars = np.array([[0, 6], [8, 20]], np.int32)
    sample = dataclasses.replace(make_sample("a", "frames", size=256), segments=bars)
    write_dataset(data, [("train", [sample])], recipe_part={"vision": {"size": 256, "crop": 224}})
    text = sheet(data, tmp_path / "page.html")
    pictures = re.findall('data:image/jpeg;base64,([^"]+)', text)
    assert len(pictures) == len(bars)
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as opened:
            assert max(opened.size) <= 112
    page = Page(text)
    assert "the middle 224 of 256 pixels" in page.text
    assert "signer s1" in page.text and "morgen, regnet, es" in page.text
    assert all(
        link.startswith(("data:image/jpeg", "#")) for link in page.attributes("src") + page.attributes("href")
    )
    assert "<script" not in text and "Content-Security-Policy" in text


def test_features_have_segments_alone_and_rejects_their_reasons(tmp_path: Path) -> None:
    make_dataset(open_store(tmp_path / "shards"))
    page = Page(sheet(tmp_path / "shards", tmp_path / "page.html", "--clips", "2"))
    assert page.attributes("src") == []
    assert "2 of 12 clips" in page.text and "2 of 2 clips" in page.text
    assert "too-short" in page.text and "dev-x" in page.text and "3 frames" in page.text
    assert "the dataset stores features" in page.text


def test_split_seed_and_ids_choose_clips(tmp_path: Path) -> None:
    data = tmp_path / "shards"
    make_dataset(open_store(data))
    choices = [
        ["--split", "dev"],
        ["--ids", "train-1-4,dev-2-0"],
        *(["--clips", "3", "--seed", s] for s in "0012"),
    ]
    shown = [
        tuple(re.findall(r"(?:train|dev)-\d-\d", Page(sheet(data, tmp_path / "page.html", *choice)).text))
        for choice in choices
    ]
    assert set(shown[0]) == {"dev-2-0", "dev-2-1"}
    assert set(shown[1]) == {"train-1-4", "dev-2-0"}
    assert shown[2] == shown[3] and len(set(shown[2:])) == 3


def test_text_from_outside_stays_text_and_a_damaged_picture_is_named(tmp_path: Path) -> None:
    data = tmp_path / "shards"
    hostile = make_sample("<b>x", "frames", sentence=HOSTILE)
    hostile.meta["signer"] = hostile.meta["language"] = '"><img src=x onerror=alert(1)>'
    hostile.meta["pseudo_glosses"] = [HOSTILE]
    damaged = make_sample("y", "frames")
    damaged = dataclasses.replace(damaged, frames={n: b"\xff\xd8 no" for n in damaged.frames or {}})
    rejects = {0: [Reject(id="<i>z", reason="<u>r", detail=HOSTILE)]}
    write_dataset(data, [("train", [hostile, damaged])], rejects=rejects)
    page = Page(text := sheet(data, tmp_path / "page.html"))
    assert not {tag for tag, _ in page.tags} & {"script", "b>x", "i", "u"}
    assert page.attributes("onerror") == []
    assert "\x1b" not in text and "\u202e" not in text
    assert "<script>alert(1)</script>" in page.text
    assert "is no readable JPEG" in page.text and damaged.key in page.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--split", "nosuch"), "no split 'nosuch'"),
        (("--ids", "nobody"), "no clip 'nobody'"),
        (("--ids", "train-0-0", "--split", "train"), "leave out --split"),
        (("--out", "s3://bucket/page.html"), "page"),
    ],
)
def test_a_wrong_choice_is_one_line(tmp_path: Path, capsys, options: tuple[str, ...], said: str) -> None:
    make_dataset(open_store(tmp_path / "shards"))
    out = () if "--out" in options else ("--out", str(tmp_path / "page.html"))
    assert run(["shards", "sheet", str(tmp_path / "shards"), *out, *options]) in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()
    assert said in error[-1]
    assert not (tmp_path / "page.html").exists()
