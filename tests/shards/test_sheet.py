"""`shards sheet`: a page of clips that loads nothing, shows text from outside as text, and names what is damaged."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from pathlib import Path

import pytest
from factories.datasets import make_dataset, make_sample, write_dataset
from PIL import Image

from sage_scale.cli.main import run
from sage_scale.errors import Reject
from sage_scale.shards import open_dataset
from sage_scale.storage import open_store

HOSTILE = '<script>alert(1)</script> & "quoted" \u202e'


@pytest.fixture(params=["frames", "features"])
def kind(request) -> str:
    return request.param


@pytest.fixture
def url(tmp_path: Path, kind: str) -> str:
    train = [make_sample(f"train-{n}", kind, "train", size=32) for n in range(9)]
    hostile = make_sample("<img src=x>", kind, "train", sentence=HOSTILE, size=32)
    dev = [make_sample("dev-0", kind, "dev", size=32)]
    rejects = {1: [Reject(id=f"r-{n}<b>", reason="too-short", detail="3 frames") for n in range(5)]}
    part = {"vision": {"size": 32, "crop": 16}}
    write_dataset(
        str(tmp_path / "set"), [("train", [*train, hostile]), ("dev", dev)], rejects=rejects, recipe_part=part
    )
    return str(tmp_path / "set")


def page(url: str, tmp_path: Path, *options: str, code: int = 0) -> str:
    out = tmp_path / "page.html"
    assert run(["shards", "sheet", url, "--out", str(out), *options]) == code
    return out.read_text(encoding="utf-8") if code == 0 else ""


def test_clips_pictures_and_rejects_stand_on_the_page(url, kind, tmp_path):
    text = page(url, tmp_path)
    assert "10 of 10 clips" in text and "1 of 1 clips" in text and "5 clips were left out" in text
    assert "too-short" in text and "r-2" in text and "r-3" not in text
    assert "<script>" not in text and "<img src=x>" not in text and "r-0<b>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp;" in text and "\u202e" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text) and "http" not in text.partition("</style>")[2]
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert bool(pictures) == (kind == "frames")
    for picture in pictures:
        assert max(Image.open(io.BytesIO(base64.b64decode(picture))).size) <= 112
    assert ("middle 16 of 32 pixels" in text) == (kind == "frames")


@pytest.mark.parametrize(("clips", "shown"), [(1, 1), (3, 3), (100, 10)])
def test_clips_are_chosen_at_even_distances(url, kind, tmp_path, clips, shown):
    text = page(url, tmp_path, "--clips", str(clips), "--split", "train")
    assert f"{shown} of 10 clips" in text and "Split dev" not in text
    if clips == 3:
        assert all(f"train-{n} ·" in text for n in (0, 4)) and "train-1 ·" not in text


def test_named_clips_and_wrong_names(url, kind, tmp_path, capsys):
    text = page(url, tmp_path, "--ids", "dev-0,train-7")
    assert "dev-0 ·" in text and "train-7 ·" in text and "train-0 ·" not in text
    for options, reason in (
        (["--ids", "none"], "has no clip 'none'"),
        (["--split", "x"], "has no split 'x'"),
    ):
        capsys.readouterr()
        assert run(["shards", "sheet", url, "--out", str(tmp_path / "p.html"), *options]) != 0
        assert reason in capsys.readouterr().err
    assert run(["shards", "sheet", url, "--out", str(tmp_path)]) == 2


def test_a_damaged_clip_is_named_and_the_others_are_shown(url, kind, tmp_path):
    dataset = open_dataset(url)
    table = dataset.samples()
    tar = Path(url) / dataset.units[0].tar
    data = bytearray(tar.read_bytes())
    data[int(table.offset[4]) + int(table.length[4]) // 2] ^= 1
    tar.write_bytes(data)
    text = page(url, tmp_path)
    assert "9 of 10 clips" in text and "Not shown: " in text and f"{int(table.key[4]):016x}" in text


def test_a_sheet_does_not_change_with_the_size_of_stored_pictures(tmp_path):
    large = [dataclasses.replace(make_sample("a", "frames", size=640))]
    write_dataset(str(tmp_path / "large"), [("train", large)], recipe_part={"vision": {"size": 640}})
    assert len(page(str(tmp_path / "large"), tmp_path)) < 200_000


def test_a_seed_draws_other_clips_and_the_same_ones_again(tmp_path):
    make_dataset(open_store(tmp_path / "set"))
    shown = [
        re.findall(r"train-\d-\d", page(str(tmp_path / "set"), tmp_path, "--clips", "3", "--seed", seed))
        for seed in ("0", "0", "1", "2")
    ]
    assert shown[0] == shown[1] and len({tuple(clips) for clips in shown}) == 3


def test_a_picture_that_is_no_jpeg_is_named(tmp_path):
    whole, damaged = (make_sample(name, "frames") for name in "xy")
    damaged = dataclasses.replace(damaged, frames={n: b"\xff\xd8 no" for n in damaged.frames or {}})
    write_dataset(str(tmp_path / "set"), [("train", [whole, damaged])])
    text = page(str(tmp_path / "set"), tmp_path)
    assert "1 of 2 clips" in text and f"sample {damaged.key}" in text and "is no readable JPEG" in text
