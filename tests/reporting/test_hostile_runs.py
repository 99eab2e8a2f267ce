"""Whatever stands in the files of a run, the report is a page that shows the rest and names what it left out."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from factories.runs import make_run

from sage_scale.cli.main import run as command_line
from sage_scale.reporting.comparison import write_comparison
from sage_scale.reporting.page import write_report

ODD = (
    None, True, -1, 0, 10**18, 1.5, -1e300, "", "x" * 5_000, "\x1b[2J\u202e<i>", [], {}, [[]], [1], ["x", 2], {"x": []},
    [[1, 2], [3]], [None], "https://u:hunter2@h/x?y",
)  # fmt: skip
NESTED = b"[" * 200 + b"]" * 200
RAW = (b"Infinity", b"-Infinity", b"NaN", b"1" * 400, b'"\\ud800"', b'"\\u0000"', b"1e400", NESTED, b"{")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("whole") / "demo")


def documents(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.suffix in (".json", ".jsonl"))


def with_odd_value(value, choose: random.Random):
    """The value with an odd one at some place in it."""
    if choose.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return choose.choice(ODD)
    if isinstance(value, list):
        at = choose.randrange(len(value))
        return [with_odd_value(item, choose) if n == at else item for n, item in enumerate(value)]
    at = choose.choice(sorted(value))
    return {key: with_odd_value(item, choose) if key == at else item for key, item in value.items()}


def test_odd_values_anywhere_still_make_a_page(whole, tmp_path):
    choose = random.Random(0)
    run = tmp_path / "demo"
    shutil.copytree(whole, run)
    for path in documents(run):
        text = path.read_text()
        for _ in range(3):
            if path.suffix == ".jsonl":
                lines = text.splitlines()
                at = choose.randrange(len(lines))
                lines[at] = json.dumps(with_odd_value(json.loads(lines[at]), choose))
                path.write_text("\n".join(lines))
            else:
                path.write_text(json.dumps(with_odd_value(json.loads(text), choose)))
            changed = path.read_text()
            try:
                page = write_report(run).read_text()
                write_comparison([run, whole], tmp_path / "comparison.html")
            except Exception as error:
                raise AssertionError(f"{path.name}: {changed[:300]}") from error
            assert not set(page) & set("\x1b\u202e") and "hunter2" not in page
        path.write_text(text)


@pytest.mark.parametrize("raw", RAW)
def test_values_that_json_has_not_are_left_out_and_named(whole, tmp_path, capsys, raw):
    for path in documents(whole):
        run = tmp_path / "demo"
        shutil.copytree(whole, run)
        damaged = run / path.relative_to(whole)
        damaged.write_bytes(b'{"event": "step", "step": 1, "x": ' + raw + b"}\n")
        assert command_line(["report", str(run)]) == 0, capsys.readouterr()
        page = (run / "report.html").read_text()
        named = "log lines left out" if path.name == "log.jsonl" else path.name
        alone = path.name == "log.jsonl" or path.suffix == ".jsonl"
        assert (named in page and "damaged" in page) or alone, path
        shutil.rmtree(run)


def test_a_recipe_or_document_that_is_no_file_is_named_at_once(whole, tmp_path):
    run = tmp_path / "demo"
    shutil.copytree(whole, run)
    for name in ("scores.json", "timing.json"):
        (run / name).unlink()
        os.mkfifo(run / name)
    (run / "pretrain" / "log.jsonl").unlink()
    (run / "pretrain" / "log.jsonl").symlink_to("/dev/zero")
    (run / "recipe.yaml").write_text("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    page = write_report(run).read_text()
    assert page.count("not a regular file") == 2 and "aliases (*name) are not read" in page
