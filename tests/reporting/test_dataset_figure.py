"""The figure of a dataset: sound XML, everything inside its picture, and the dataset's own numbers in it."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories.datasets import make_dataset, make_sample, write_dataset

from sage_scale.cli.main import run
from sage_scale.reporting.dataset_figure import dataset_figure
from sage_scale.shards import Dataset
from sage_scale.shards.statistics import statistics
from sage_scale.storage import open_store

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(open_store(tmp_path / "data"), clips=30)


def test_stats_count_words_where_they_are_spaced_and_characters_elsewhere(tmp_path, capsys) -> None:
    texts = [("de", "am montag regnet es"), ("zh-CN", "今天 下雨。"), ("th", "ฝนตก"), ("en", "")]
    samples = [make_sample(f"clip {number}") for number in range(len(texts))]
    for sample, (language, sentence) in zip(samples, texts, strict=True):
        sample.meta.update(language=language, sentence=sentence)
    [part] = statistics(write_dataset(tmp_path / "data", [("train", samples)]))
    assert (part.words["total"], part.characters["total"]) == (4, 9) and part.characters["max"] == 5
    assert run(["shards", "stats", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"words +mean 2.0 .*total 4\n", shown) and re.search(
        r"characters +mean 4.5 .*total 9\n", shown
    )


def test_it_is_sound_and_everything_is_inside(dataset: Dataset) -> None:
    root = ElementTree.fromstring(dataset_figure(dataset, statistics(dataset)))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    panels = [panel for panel in root.findall(f"{SVG}g") if panel.get("class") != "clip"]
    assert len(panels) == 6
    for panel in panels:
        x, y = map(float, re.findall(r"[-\d.]+", panel.attrib["transform"]))
        assert x >= 0 and x + 284 <= width and 0 <= y < height
        for path in panel.iter(f"{SVG}path"):
            points = [tuple(map(float, pair.split())) for pair in path.attrib["d"].strip("MZ").split("L")]
            assert all(0 <= px <= 284 and 13 <= py <= 165 for px, py in points)
        for bar in panel.iter(f"{SVG}rect"):
            assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= 284
            assert y + float(bar.attrib["y"]) + 14 <= height
    style = root.findtext(f"{SVG}style") or ""
    assert "prefers-color-scheme: dark" in style
    used = set(re.findall(r"var\((--\w+)\)", ElementTree.tostring(root, encoding="unicode")))
    assert all(f"{name}:" in style for name in used)


def test_its_numbers_are_those_of_the_dataset(dataset: Dataset) -> None:
    root = ElementTree.fromstring(dataset_figure(dataset, statistics(dataset)))
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert "train 60" in texts and "dev 2" in texts
    assert any(text.startswith("62 clips, 0.01 hours, 1,240 frames") for text in texts)
    assert "62" in texts  # all of one language


def test_each_histogram_holds_all_clips_of_a_split(dataset: Dataset) -> None:
    root = ElementTree.fromstring(dataset_figure(dataset, statistics(dataset)))
    panel = root.findall(f"{SVG}g")[1]
    scale = {}
    for text in panel.iter(f"{SVG}text"):
        if (text.text or "").endswith("%"):
            scale[float((text.text or "")[:-1]) / 100] = float(text.attrib["y"]) - 4
    top, base = max(scale), scale[0.0]
    per_pixel = top / (base - scale[top])
    for path in panel.iter(f"{SVG}path"):
        points = [tuple(map(float, pair.split())) for pair in path.attrib["d"].strip("MZ").split("L")]
        heights = [points[i][1] for i in range(1, len(points) - 1, 2)]
        assert sum((base - y) * per_pixel for y in heights) == pytest.approx(1, abs=0.05)


def test_some_clips_have_pictures_over_their_segments(tmp_path: Path) -> None:
    """Bars lie at the dataset's own segments; each picture stands over the bar of its segment, none over another."""
    dataset = make_dataset(open_store(tmp_path / "data"), "frames", clips=30)
    table = dataset.samples()
    root = ElementTree.fromstring(dataset_figure(dataset, statistics(dataset)))
    height = float(root.attrib["viewBox"].split()[3])
    rows = [group for group in root.findall(f"{SVG}g") if group.get("class") == "clip"]
    assert len(rows) == 3
    for number, row in enumerate(rows):
        sample = dataset.read(table, (2 * number + 1) * len(table) // 6)
        assert (row.findtext(f"{SVG}text") or "").startswith(str(sample.meta["id"]))
        scale = (960 - 2 * 24) / sample.meta["frames"]
        bars = [(float(bar.attrib["x"]), float(bar.attrib["width"]) + 1) for bar in row.iter(f"{SVG}rect")]
        wanted = [(a * scale, (b - a) * scale) for a, b in sample.segments.tolist()]
        assert np.allclose(bars, wanted, atol=0.11)
        middles = [x + width / 2 for x, width in bars]
        pictures = [(float(p.attrib["x"]), float(p.attrib["width"])) for p in row.iter(f"{SVG}image")]
        assert pictures and all(min(abs(x + w / 2 - m) for m in middles) < 12.1 for x, w in pictures)
        assert all(a + w <= b + 0.11 for (a, w), (b, _) in itertools.pairwise(pictures))
        assert float(re.findall(r"[-\d.]+", row.attrib["transform"])[1]) + 120 <= height


def test_names_are_text_never_markup(tmp_path: Path) -> None:
    samples = []
    for n in range(12):
        sample = make_sample(f"clip {n}", split="<s>")
        samples.append(replace(sample, meta={**sample.meta, "signer": f"<script>{n}", "language": "</svg>"}))
    dataset = write_dataset(tmp_path / "a<b>&'c", [("<s>", samples)])
    drawn = dataset_figure(dataset, statistics(dataset))
    root = ElementTree.fromstring(drawn)
    assert not list(root.iter(f"{SVG}script")) and "5 others" in drawn


def test_the_verb(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figure.svg"
    assert run(["shards", "stats", dataset.url, "--figure", str(path)]) == 0
    assert path.read_text().startswith("<svg") and "figure written" in capsys.readouterr().err
    assert run(["shards", "stats", dataset.url, "--figure", str(tmp_path / "figure.png")]) == 2
    assert "SVG" in capsys.readouterr().err
    assert run(["shards", "stats", dataset.url, "--figure", str(tmp_path / "no" / "figure.svg")]) == 1
    assert "cannot be written" in capsys.readouterr().err
