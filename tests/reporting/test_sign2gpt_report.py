"""What Sign2GPT adds to the report, and several runs side by side: sound HTML, true to the run's files."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from factories.pages import Page
from factories.runs import make_run

from sage_scale.errors import UsageError
from sage_scale.reporting.comparison import write_comparison
from sage_scale.reporting.page import write_report
from sage_scale.reporting.runlog import read_run
from sage_scale.reporting.side_by_side import budget


def make_sign2gpt_run(folder: Path) -> Path:
    make_run(folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["model"]["kind"] = "sign2gpt"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "alignment.json").unlink()
    scores = {"precision": 61.25, "recall": 48.5, "f1": 54.12, "macro_precision": 40.0, "macro_recall": 30.0,
              "macro_f1": 34.25, "clips": 96.0}  # fmt: skip
    said = {"threshold": 0.2, "vectors": "cooccurrence", "prototypes": 246,
            "splits": {"test": {**scores, "control": {**scores, "f1": 17.75}}}}  # fmt: skip
    (folder / "prototypes.json").write_text(json.dumps(said))
    jpeg = json.loads((folder / "timelines" / "timelines.json").read_text())[0]["thumbnails"][0]
    jpeg = jpeg["jpeg"] if isinstance(jpeg, dict) else jpeg
    clip = {
        "sentence": "im norden <b>regnet</b> es", "fps": 25.0, "frames": 40, "threshold": 0.2,
        "times": list(range(0, 40, 4)),
        "rows": [
            {"gloss": "norden", "there": True, "presence": 0.75, "values": [0.7] + [0.0] * 8 + [0.05]},
            {"gloss": "<i>süden", "there": False, "presence": 0.4, "values": [0.04] * 10},
            {"gloss": "regnen", "there": True, "presence": 0.1, "values": [0.01] * 10},
        ],
        "pictures": [{"frame": frame, "jpeg": jpeg} for frame in range(2, 40, 4)],
    }  # fmt: skip
    damaged = {**clip, "rows": [{**clip["rows"][0], "values": [1.0]}]}
    (folder / "localisation.json").write_text(json.dumps([clip, damaged]))
    return folder


def test_pseudo_glosses_and_their_places_stand_in_the_page(tmp_path):
    page = Page(write_report(make_sign2gpt_run(tmp_path / "run")).read_text())
    for words in ("54.1", "17.8", "34.2", "246 prototypes", "co-occurrences", "test: guessed by frequency"):
        assert words in page.text, words
    drawings = [dict(attrs) for tag, attrs in page.tags if tag == "svg"]
    maps = [d for d in drawings if "pseudo-glosses found over" in str(d.get("aria-label"))]
    assert [d["aria-label"] for d in maps] == ["1 of 2 pseudo-glosses found over 1.6 seconds"]
    kinds = [attrs["class"] for tag, attrs in page.tags if tag == "text" and "class" in attrs]
    assert {"token", "missed", "extra"} <= set(kinds)
    cells = [
        attrs for tag, attrs in page.tags if tag == "rect" and str(attrs.get("class")).startswith("cell")
    ]
    assert max(float(str(cell["fill-opacity"])) for cell in cells) == 1
    # Frames beneath do not overlap, and load nothing.
    images = [attrs for tag, attrs in page.tags if tag == "image"]
    places = [float(str(image["x"])) for image in images]
    assert len(places) > 3 and all(b - a >= 64 for a, b in itertools.pairwise(places))
    assert all(str(image["href"]).startswith("data:image/jpeg;base64,") for image in images)
    assert "token similarity" not in page.text.lower()
    assert "<b>regnet</b>" in page.text and "<i>süden" in page.text


def with_tokens(run: Path, dataset: str, visual: int, text: int) -> Path:
    """Let every step have seen so many tokens of a dataset."""
    for stage in ("pretrain", "finetune"):
        path = run / stage / "log.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            if row["event"] == "step":
                row |= {"visual_tokens": visual, "text_tokens": text, "frames": 4 * visual}
            if row["event"] == "start":
                row |= {"dataset": f"{dataset}-order", "parameters": 1234567, "trained_parameters": 76543}
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return run


@pytest.mark.parametrize(
    ("dataset", "text", "corpus", "tokens"),
    [
        ("abc", 100, "The same dataset (abc).", "The same token budget"),
        ("abc", 140, "The same dataset (abc).", "Not the same token budget"),
        ("abd", 100, "Not the same dataset.", "The same token budget"),
    ],
)
def test_two_runs_side_by_side(tmp_path, dataset, text, corpus, tokens):
    one = with_tokens(make_run(tmp_path / "sage-run"), "abc", 300, 100)
    other = with_tokens(make_sign2gpt_run(tmp_path / "other<run>"), dataset, 300, text)
    path = write_comparison([one, other])
    assert path == one / "comparison.html"
    page = Page(path.read_text())
    assert corpus in page.text and tokens in page.text
    steps = sum(len(log.steps) for log in read_run(one).logs.values())
    assert budget(read_run(one)) == 400 * steps
    assert f"{400 * steps:,}" in page.text and "1,234,567" in page.text and "54.1" in page.text
    assert "SAGE" in page.text and "Sign2GPT" in page.text and "other<run>" in page.text
    assert len(re.findall("<li><div", path.read_text())) == 12


def test_one_run_is_no_comparison(tmp_path):
    with pytest.raises(UsageError, match="two runs"):
        write_comparison([make_run(tmp_path / "run")])
