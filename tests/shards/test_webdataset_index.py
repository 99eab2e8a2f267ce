"""The index of tars of others: every sample as webdataset gives it, in our order; damage is found and named."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from foreign_tars import ours, their_tars, theirs, write_tar

from sage_scale.cli.main import run
from sage_scale.errors import DatasetError, StorageError
from sage_scale.shards.webdataset_index import (
    WEB_INDEX_JSON,
    index_webdataset,
    open_webdataset_index,
    read_members,
    verify_webdataset,
)
from sage_scale.storage import open_store


@pytest.mark.parametrize("elsewhere", [False, True])
def test_every_sample_is_what_webdataset_gives(tmp_path: Path, elsewhere: bool) -> None:
    folder = their_tars(tmp_path / "tars")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    place = tmp_path / "index" if elsewhere else folder
    assert run(["shards", "index", str(folder), *(["--out", str(place)] if elsewhere else [])]) == 0
    expected = [sample for path in sorted(folder.glob("*.tar")) for sample in theirs(path)]
    assert ours(place) == expected and len(expected) == 21
    assert {path.name: path.read_bytes() for path in folder.glob("*.tar")} == before
    assert (folder / WEB_INDEX_JSON).exists() != elsewhere
    assert verify_webdataset(open_webdataset_index(str(place))) == []


def test_damage_is_found_by_verify_and_never_believed(tmp_path: Path, capsys, shards) -> None:
    folder = their_tars(tmp_path / "tars")
    assert run(["shards", "index", str(folder)]) == 0
    index = open_webdataset_index(str(folder))
    rng = np.random.default_rng(0)
    for _ in range(30):
        shard = int(rng.integers(0, 3))
        path = folder / index.shards[shard].name
        whole = path.read_bytes()
        record = index.records[7 * shard + int(rng.integers(0, 7))]
        at = int(record["offset"] + rng.integers(0, record["length"]))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(0, 8)))]) + whole[at + 1 :])
        (problem,) = verify_webdataset(index, threads=1)
        assert path.name in problem and "sample " in problem
        path.write_bytes(whole)
    (folder / "part-001.tar").unlink()
    (folder / "part-009.tar").write_bytes((folder / "part-000.tar").read_bytes())
    capsys.readouterr()
    assert run(["shards", "verify", str(folder)]) == 1
    said = capsys.readouterr()
    assert "part-001.tar is missing" in said.out and "part-009.tar is not in the index" in said.out
    assert "part-000.tar" in shards("ls", folder) and "x0-1" in shards("ls", folder, "--samples")
    assert '"cls": 1' in shards("cat", folder, "x0-1", "--out", str(tmp_path / "members"))
    assert (tmp_path / "members" / "x0-1.cls").read_bytes() == b"1"
    assert "has no sample 'nobody'" in shards("cat", folder, "nobody", code=2)
    data = (folder / WEB_INDEX_JSON).read_bytes()
    for at in (0, 20, 50, len(data) // 2, len(data) - 3):
        (folder / WEB_INDEX_JSON).write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(DatasetError, match="is damaged"):
            open_webdataset_index(str(folder))


def test_places_without_tars_and_tars_that_are_packed(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DatasetError, match=r"holds no \.tar"):
            index_webdataset(open_store(place))
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    with pytest.raises(DatasetError, match=r"a\.tar\.gz is compressed"):
        index_webdataset(open_store(tmp_path))
    with pytest.raises(DatasetError, match="shards index"):
        open_webdataset_index(str(tmp_path))


def test_a_place_that_may_not_be_written_says_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = their_tars(tmp_path / "tars", 1)
    store = open_store(folder)

    def refuse(name: str, data: bytes) -> None:
        raise StorageError(f"{folder} may not be written by this user: choose another folder")

    monkeypatch.setattr(store, "put", refuse)
    with pytest.raises(StorageError, match="--out puts the index elsewhere"):
        index_webdataset(store)


def test_the_index_follows_from_the_tars_alone(tmp_path: Path) -> None:
    their_tars(tmp_path)
    indexes = []
    for threads in (1, 3):
        index_webdataset(open_store(tmp_path), threads=threads)
        indexes.append((tmp_path / WEB_INDEX_JSON).read_bytes())
    assert indexes[0] == indexes[1] and json.loads(indexes[0])["tars"] == ""


@pytest.mark.system
def test_an_index_in_s3_of_tars_in_s3(s3, tmp_path: Path) -> None:
    folder = their_tars(tmp_path / "tars")
    store = open_store(f"{s3.url}/tars")
    for path in folder.iterdir():
        store.put(f"deep/{path.name}", path)
    index_webdataset(store, open_store(f"{s3.url}/index"))
    index = open_webdataset_index(f"{s3.url}/index")
    assert index.tars == f"{s3.url}/tars" and index.shards[0].name == "deep/part-000.tar"
    strip = [{k: v for k, v in sample.items() if k != "__url__"} for sample in ours(f"{s3.url}/index")]
    expected = [sample for path in sorted(folder.glob("*.tar")) for sample in theirs(path)]
    assert strip == [{k: v for k, v in sample.items() if k != "__url__"} for sample in expected]
    assert verify_webdataset(index) == []


def test_a_sample_of_files_left_behind_in_an_older_index_is_still_read(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "a.tar", "d/._0.jpg").read_bytes()
    assert read_members(data[: 512 * 2], "a.tar") == ("d/", {"_0.jpg": b"d/._0.jpg"})


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_tars_in_the_making_are_skipped_and_an_empty_one_is_named(where, tmp_path: Path, request) -> None:
    write_tar(tmp_path / "good.tar", "0.jpg", "0.txt")
    hidden = {"train/.tmp.tar": b"half of it", ".a.tar": b""}
    if where == "folder":
        store = open_store(tmp_path / "tars")
        for name, data in hidden.items():
            (tmp_path / "tars" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "tars" / name).write_bytes(data)
    else:
        store = open_store(request.getfixturevalue("s3").url + "/tars")
        for name, data in hidden.items():
            store.client.put_object(Bucket=store.bucket, Key=store.prefix + name, Body=data)
    store.put("train/a.tar", tmp_path / "good.tar")
    made, _ = index_webdataset(store)
    assert made.keys == ("0",) and [shard.name for shard in made.shards] == ["train/a.tar"]
    store.put("train/b.tar", b"")
    with pytest.raises(DatasetError, match=rf"^{store.url}/train/b.tar is empty"):
        index_webdataset(store)


def test_only_regular_files_are_tars(tmp_path: Path, capsys, shards) -> None:
    write_tar(tmp_path / "a.tar", "0.jpg")
    assert run(["shards", "index", str(tmp_path)]) == 0
    for make, what in (
        (os.mkfifo, "a FIFO"),
        (lambda path: path.symlink_to("/dev/zero"), "a character device"),
    ):
        (tmp_path / "a.tar").unlink()
        make(tmp_path / "a.tar")
        capsys.readouterr()
        assert run(["shards", "index", str(tmp_path)]) == 1
        assert what in capsys.readouterr().err
        assert run(["shards", "verify", str(tmp_path)]) == 1
        assert run(["shards", "cat", str(tmp_path), "0"]) == 1
        assert what in capsys.readouterr().err
    (tmp_path / "a.tar").unlink()
    write_tar(tmp_path / "b.tar", "0.jpg")
    (tmp_path / "b.tar").rename(tmp_path / os.fsdecode(b"\xff.tar"))
    assert "whose name is not UTF-8" in shards("index", tmp_path, code=1)
