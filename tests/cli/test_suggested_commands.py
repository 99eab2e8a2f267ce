"""A command that a message gives is the one to type: paths with blanks and quotes come back from a shell whole."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sage_scale.cli import main as command_line
from sage_scale.shards.repair import precompute_command

SHARDS = Path(__file__).resolve().parents[2] / "shards" / "sample"
NAMES = ("plain", "with blanks", "with 'a quote'", "$HOME; rm x")


@pytest.fixture(params=NAMES)
def place(request, tmp_path) -> Path:
    """A copy of the sample dataset in a folder of that name."""
    folder = tmp_path / request.param
    folder.mkdir()
    for file in SHARDS.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def suggested(capsys, *words: str) -> list[str]:
    """The words of the command that is given between backticks."""
    assert command_line.run(words) != 0
    found = re.search("`(sage-scale .*?)`", capsys.readouterr().err)
    assert found is not None
    return shlex.split(found[1])


def test_verbs_of_shards(capsys, place) -> None:
    url = str(place)
    assert suggested(capsys, "shards", "cat", url, "nobody")[3] == url
    assert suggested(capsys, "shards", "remove", url, "--ids", "nobody")[3] == url
    (place / "index.json").unlink()
    assert suggested(capsys, "shards", "merge", str(place.parent / "new"), url)[3] == url
    tar = place / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1000])
    assert suggested(capsys, "shards", "verify", url)[3] == url


def test_making_a_corpus_and_making_shards_again(capsys, place) -> None:
    empty = place / "no corpus"
    empty.mkdir()
    assert suggested(capsys, "corpus", "inspect", "--root", str(empty))[-1] == str(empty)


def test_precompute_after_a_repair(place) -> None:
    from sage_scale.shards import open_dataset

    words = shlex.split(precompute_command(str(place), open_dataset(place).info, "keep"))
    assert words[words.index("--out") + 1] == str(place)
