"""Tars of others: every dialect, in our order, equal to what webdataset gives; hostile ones do no harm."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shard import Trap
from webdataset.tariterators import base_plus_ext

from sage_scale.cli.main import run
from sage_scale.errors import DatasetError, StorageError
from sage_scale.shards.webdataset_index import (
    WEB_INDEX_JSON,
    index_webdataset,
    open_webdataset_index,
    read_members,
    verify_webdataset,
)
from sage_scale.shards.webdataset_tar import key_and_extension
from sage_scale.storage import open_store

LONG = "a-folder-with-a-name/" * 12


def their_tars(folder: Path, shards: int = 3) -> Path:
    """Tars by webdataset's own writer: several dots, folders, upper case, long names, nothing that is ours."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"part-{shard:03d}.tar")) as writer:
            for n in range(7):
                key = [f"{shard}/{n:04d}", f"x{shard}-{n}", f"{LONG}{shard}-{n}", f"ünï/{shard} {n}"][n % 4]
                writer.write(
                    {
                        "__key__": key,
                        "left.seg.PNG": rng.randbytes(rng.randrange(3000)),
                        "cls": str(n).encode(),
                        "json": {"n": n},
                        "pkl": pickle.dumps([n]),
                        **({"npy": np.arange(n)} if n % 2 else {}),
                    }
                )
    return folder


def theirs(path: Path) -> list[dict]:
    """What webdataset gives before it decodes anything."""
    stages = [webdataset.SimpleShardList([str(path)]), webdataset.tarfile_to_samples()]
    return list(webdataset.DataPipeline(*stages))


def ours(url: Path | str) -> list[dict]:
    index = open_webdataset_index(str(url))
    store = open_store(index.tars)
    found = []
    for row, (shard, record) in enumerate(zip(index.shard_of.tolist(), index.records)):
        name = index.shards[shard].name
        data = store.get_range(name, int(record["offset"]), int(record["length"]))
        key, members = read_members(data, name)
        assert key == index.keys[row]
        found.append({"__key__": key, "__url__": f"{index.tars}/{name}", **members})
    return found


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


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar(tmp_path: Path, form: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for n in range(3):
            for name in (f"./dir/{n}.a.b", f"{LONG[:80]}/{LONG[:90]}/{n}.txt", f"{n}.jpg"):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = 10 * n, 1e9 + 0.25
                tar.addfile(info, io.BytesIO(bytes(10 * n)))
        folder = tarfile.TarInfo("dir")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        if form == tarfile.PAX_FORMAT:
            info = tarfile.TarInfo("pax.txt")
            info.size, info.pax_headers = 3, {"comment": "nothing", "path": "ß/" + LONG + "p.txt"}
            tar.addfile(info, io.BytesIO(b"abc"))
    index_webdataset(open_store(tmp_path))
    assert ours(tmp_path) == theirs(tmp_path / "a.tar")


name_parts = st.text(st.sampled_from("ab._/AÜ-"), min_size=1, max_size=14)


@settings(max_examples=300, deadline=None)
@given(name_parts)
def test_names_are_parted_as_webdataset_parts_them(name: str) -> None:
    key, extension = base_plus_ext(name)
    parts = key_and_extension(name)
    if parts is None:
        assert key is None or name.startswith("__")
    else:
        assert parts == (key, extension.lower())


def hostile_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in (*members, (tarfile.TarInfo("good.txt"), b"good")):
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **pax: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, link, {k.replace("__", "."): v for k, v in pax.items()}
    return info


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (member("../../x.txt"), "name that leaves the tar"),
        (member("/etc/passwd.txt"), "name that leaves the tar"),
        (member("a/../../b.txt"), "name that leaves the tar"),
        (member("c:\\windows.txt"), "name that leaves the tar"),
        (member("line\nfeed.txt"), "name with control characters"),
        (member("link.txt", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (member("hard.txt", tarfile.LNKTYPE, "good.txt"), "hard link"),
        (member("null.txt", tarfile.CHRTYPE), "device"),
        (member("pipe.txt", tarfile.FIFOTYPE), "pipe"),
    ],
)
def test_members_that_could_do_harm_are_set_aside_and_counted(
    tmp_path: Path, bad: tarfile.TarInfo, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile_tar(tmp_path / "a.tar", (bad, b""))
    _, aside = index_webdataset(open_store(tmp_path))
    assert aside.counts == {what: 1}
    assert [sample["__key__"] for sample in ours(tmp_path)] == ["good"]
    assert run(["shards", "index", str(tmp_path)]) == 0
    assert f"set aside: 1 x {what}" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", WEB_INDEX_JSON}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ((member("s.txt", GNU__sparse__major="1", GNU__sparse__minor="0"), b"1\n0\n"), "GNU.sparse"),
        ((member("s.txt", tarfile.GNUTYPE_SPARSE), b""), "sparse"),
        ((member("good.txt"), b"another"), "occurs twice"),
        ((member("p.txt", size="99999999999"), b""), "99,999,999,999 bytes"),
        ((member("p.txt", size="-1"), b""), "damaged size"),
    ],
)
def test_what_cannot_be_read_for_certain_is_refused(
    tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile_tar(tmp_path / "a.tar", bad)
    assert run(["shards", "index", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert says in said and "a.tar" in said and said.count("\n") == 1 and "fault" not in said
    assert not (tmp_path / WEB_INDEX_JSON).exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data[:-9000], "end of the tar is missing|cut off"),
        (lambda data: data[:700], "cut off"),
        (lambda data: b"", "empty"),
        (lambda data: data[:124] + b"\x80\0\0\0\x02\x54\x0b\xe4\0\0\0\0" + data[136:], "no tar header"),
        (lambda data: b"\x1f\x8b" + data[2:], "compressed"),
        (lambda data: b"not a tar at all" * 100, "no tar header"),
    ],
)
def test_damaged_tars_are_refused(tmp_path: Path, change, says: str) -> None:
    their_tars(tmp_path, 1)
    (path,) = tmp_path.glob("*.tar")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DatasetError, match=says):
        index_webdataset(open_store(tmp_path))


def test_ten_gigabytes_claimed_take_no_room(tmp_path: Path) -> None:
    info = member("big.bin")
    info.size = 10 << 30
    header = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + bytes(2048))
    with pytest.raises(DatasetError, match="claims 10,737,418,240 bytes"):
        index_webdataset(open_store(tmp_path))


def test_pickles_stay_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trap = pickle.dumps(Trap())
    endings = ("pkl", "pyd", "pickle", "pth", "pt", "npy", "npz")
    hostile_tar(tmp_path / "a.tar", *((member(f"trap.{ending}"), trap) for ending in endings))
    index_webdataset(open_store(tmp_path))
    assert ours(tmp_path)[0] == {
        "__key__": "trap",
        "__url__": f"{tmp_path}/a.tar",
        **dict.fromkeys(endings, trap),
    }
    assert not (tmp_path / "trap-was-sprung").exists()


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_no_bytes_whatever_make_the_scanner_do_anything_but_read_or_refuse(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("t")
    hostile_tar(folder / "a.tar", (member(LONG + "x.y.z"), b"long"), (member("q.txt", comment="c"), b"123"))
    whole = bytearray((folder / "a.tar").read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, 6000))] = data.draw(st.integers(0, 255))
    (folder / "a.tar").write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    try:
        index_webdataset(open_store(folder))
    except DatasetError as error:
        assert "a.tar" in str(error) or "no sample" in str(error)
        assert "\n" not in str(error)
    else:
        ours(folder)


def test_damage_is_found_by_verify_and_never_believed(tmp_path: Path, capsys) -> None:
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
    assert "part-000.tar" in _call(capsys, "ls", folder) and "x0-1" in _call(
        capsys, "ls", folder, "--samples"
    )
    assert '"cls": 1' in _call(capsys, "cat", folder, "x0-1", "--out", str(tmp_path / "members"))
    assert (tmp_path / "members" / "x0-1.cls").read_bytes() == b"1"
    assert "has no sample 'nobody'" in _call(capsys, "cat", folder, "nobody", code=2)
    data = (folder / WEB_INDEX_JSON).read_bytes()
    for at in (0, 20, 50, len(data) // 2, len(data) - 3):
        (folder / WEB_INDEX_JSON).write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(DatasetError, match="is damaged"):
            open_webdataset_index(str(folder))


def _call(capsys: pytest.CaptureFixture[str], verb: str, place: Path, *rest: str, code: int = 0) -> str:
    assert run(["shards", verb, str(place), *rest]) == code
    said = capsys.readouterr()
    return said.out + said.err


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


def write_tar(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    return path


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["d/._0.jpg", "d/0.jpg", "d/._0.txt", "d/0.txt", "d/._1.jpg", "d/1.jpg", "d/1.txt"], 3),
        (["d/0.jpg", "d/.DS_Store", "d/0.txt", "d/1.jpg", "d/1.txt"], 1),
        (
            [
                "d/0.jpg",
                "__MACOSX/d/._0.jpg",
                "d/0.txt",
                "d/1.jpg",
                "d/Thumbs.db",
                "d/1.txt",
                "d/desktop.ini",
            ],
            3,
        ),
    ],
)
def test_what_an_operating_system_left_behind_parts_no_sample(
    tmp_path: Path, names, left: int, capsys
) -> None:
    """webdataset takes them for members of samples of their own, and the samples beside them for several."""
    path = write_tar(tmp_path / "a.tar", *names)
    assert len(theirs(path)) > 2
    said = _call(capsys, "index", tmp_path)
    assert f"set aside: {left} x file that an operating system left behind: '" in said and "in a.tar" in said
    whole = [{"__key__": f"d/{n}", "__url__": f"{tmp_path}/a.tar", "jpg": b"d/%d.jpg" % n, "txt": b"d/%d.txt" % n}
             for n in range(2)]  # fmt: skip
    assert ours(tmp_path) == whole
    assert verify_webdataset(open_webdataset_index(str(tmp_path))) == []


@pytest.mark.parametrize("behind", ["tar", "\0" * 4096 + "x", "x" * 512])
def test_bytes_behind_the_end_of_a_tar_are_told(tmp_path: Path, capsys, behind: str) -> None:
    """webdataset stops at the end, too, and says nothing: of two tars joined the second is lost."""
    path = write_tar(tmp_path / "a.tar", "0.jpg", "0.txt")
    whole = path.read_bytes()
    assert "odd" not in _call(capsys, "index", tmp_path)
    other = write_tar(tmp_path / "b.tar", "1.jpg").read_bytes()
    (tmp_path / "b.tar").unlink()
    path.write_bytes(whole + (other if behind == "tar" else behind.encode()))
    said = _call(capsys, "index", tmp_path)
    assert "odd: 1 x tar with bytes behind its end" in said and "in a.tar" in said
    assert ours(tmp_path) == theirs(path) and len(theirs(path)) == 1


def test_members_that_do_not_stand_side_by_side_are_told(tmp_path: Path, capsys) -> None:
    """They are pieces for webdataset as well, which says nothing."""
    path = write_tar(tmp_path / "a.tar", "0.jpg", "1.jpg", "2.jpg", "2.txt", "0.txt", "1.txt", "0.json")
    said = _call(capsys, "index", tmp_path)
    assert "odd: 3 x sample whose members do not stand side by side" in said and "'0' in a.tar" in said
    assert ours(tmp_path) == theirs(path) and len(theirs(path)) == 6
    write_tar(tmp_path / "a.tar", "0.jpg", "0.txt", "1.jpg", "0.jpg", "0.txt")
    assert "odd: 1 x sample whose key stands in the tar before: '0' in a.tar" in _call(
        capsys, "index", tmp_path
    )
    write_tar(tmp_path / "a.tar", "0.jpg", "0.txt")
    write_tar(tmp_path / "b.tar", "0.jpg", "1.txt")
    assert "odd: 1 x key that stands in another tar before" in _call(capsys, "index", tmp_path)
    (tmp_path / "b.tar").unlink()
    assert "odd" not in _call(capsys, "index", tmp_path)


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


def test_only_regular_files_are_tars(tmp_path: Path, capsys) -> None:
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
    assert "whose name is not UTF-8" in _call(capsys, "index", tmp_path, code=1)
