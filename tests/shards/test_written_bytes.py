"""Names and hashes of the files that each verb leaves, for fixed samples, as `written_bytes.json` keeps them.

Another hash means another format: digests of stored datasets, and runs that were interrupted, depend on these bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from factories.datasets import make_dataset
from foreign_tars import write_tar
from test_merge_split import dataset_of

from sage_scale.cli.main import run
from sage_scale.storage import open_store

GOLDEN = json.loads(Path(__file__).with_name("written_bytes.json").read_text())


def shards(*arguments: object, code: int = 0) -> None:
    assert run(["shards", *map(str, arguments)]) == code


def damage(folder: Path) -> None:
    tar = folder / "000001.tar"
    data = bytearray(tar.read_bytes())
    data[8000] ^= 1
    tar.write_bytes(data)
    (folder / "000000.idx").unlink()


def made(folder: Path) -> None:
    make_dataset(open_store(folder / "data"))


def removed(folder: Path) -> None:
    made(folder)
    shards("remove", folder / "data", "--ids", "train-0-2,dev-2-1,dev-x")
    shards("remove", folder / "data", "--ids", "train-0-3,nobody", "--ignore-unknown")


def removed_while_open(folder: Path) -> None:
    make_dataset(open_store(folder / "data"), finish=False)
    shards("remove", folder / "data", "--ids", "train-0-2,dev-2-1")


def repaired(folder: Path) -> None:
    made(folder)
    damage(folder / "data")
    shards("repair", folder / "data")


def repaired_by_dropping(folder: Path) -> None:
    made(folder)
    damage(folder / "data")
    shards("repair", folder / "data", "--drop-shards", code=4)


def merged(folder: Path) -> None:
    sources = [dataset_of(folder / name, *clips).url for name, clips in (("a", "xy"), ("b", "yz"))]
    shards("remove", sources[0], "--ids", "x")
    shards("merge", folder / "data", *sources, "--duplicates", "first")


def parted(folder: Path, *arguments: str) -> None:
    made(folder)
    (folder / "data").rename(folder / "whole")
    shards("split", folder / "whole", "--out", folder / "data", *arguments)


CASES: dict[str, Callable[[Path], None]] = {
    "made": made,
    "removed": removed,
    "removed while open": removed_while_open,
    "repaired": repaired,
    "repaired by dropping": repaired_by_dropping,
    "merged": merged,
    "split by share": lambda folder: parted(folder, "--share", "a=0.3", "--share", "b=0.4", "--seed", "5"),
    "split by count": lambda folder: parted(folder, "--count", "a=3", "--rest", ""),
    "split by ids": lambda folder: parted(folder, "--ids", "a=train-0-3,train-1-1"),
    "split into splits": lambda folder: parted(
        folder, "--share", "train=0.5", "--rest", "dev", "--as-splits"
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_of_a_dataset(tmp_path: Path, case: str):
    CASES[case](tmp_path)
    assert hashes(tmp_path / "data") == GOLDEN[case]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_bytes_of_an_index_of_other_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool):
    monkeypatch.chdir(tmp_path)
    write_tar(tmp_path / "tars" / "a.tar", "d/0.jpg", "d/0.txt", "d/._1.jpg", "1.seg.PNG", "d/0.cls", "ü.x")
    write_tar(tmp_path / "tars" / "b.tar", "0.jpg")
    shards("index", "tars", *(["--out", "data"] if elsewhere else []))
    found = json.loads(tmp_path.joinpath("data" if elsewhere else "tars", "sage-index.json").read_bytes())
    assert Path(found.pop("tars")) == (tmp_path / "tars" if elsewhere else Path())
    assert {key: found[key] for key in found if key != "xxh3"} == GOLDEN["index"]


def hashes(folder: Path) -> dict[str, str]:
    """First 16 hex digits of sha256 by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found
