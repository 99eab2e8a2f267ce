"""docs/design/architecture.md: its file names exist, its floors are the tested ones, the ways stay short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_floors import FLOORS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "design" / "architecture.md").read_text(encoding="utf-8")


def part(title: str) -> str:
    """Returns the text of the page's section."""
    return PAGE.partition(f"\n## {title}")[2].partition("\n## ")[0]


def files(text: str) -> list[str]:
    return re.findall(r"`((?:sage_scale|tests|benchmarks|docs)/[\w/.]*)`", text)


def test_files_exist():
    assert [name for name in files(PAGE) if not (ROOT / name).exists()] == []
    assert "architecture.md" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_floors_are_the_tested_ones():
    drawn = part("Floors").split("```")[1].strip().splitlines()
    assert [set(line.split()) for line in drawn] == [set(names) for names in reversed(FLOORS)]


@pytest.mark.parametrize(
    ("title", "most"),
    [("The path of a clip, from corpus to loss", 30), ("The path of a recipe to a stage", 6)],
)
def test_paths_are_short(title: str, most: int):
    way = [name for name in files(part(title)) if name.endswith(".py")]
    assert 0 < len(set(way)) <= most
