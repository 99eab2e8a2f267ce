"""Tars of others: every dialect is read as webdataset reads it; hostile tars do no harm."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import pytest
from foreign_tars import LONG, hostile_tar, member, ours, their_tars, theirs, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shard import Trap
from webdataset.tariterators import base_plus_ext

from sage_scale.cli.main import run
from sage_scale.errors import DatasetError
from sage_scale.shards.webdataset_index import (
    WEB_INDEX_JSON,
    index_webdataset,
    open_webdataset_index,
    verify_webdataset,
)
from sage_scale.shards.webdataset_tar import key_and_extension
from sage_scale.storage import open_store


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
    assert f"skipped: 1 x {what}" in capsys.readouterr().out
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
    tmp_path: Path, names, left: int, shards
) -> None:
    """webdataset takes them for members of samples of their own, and the samples beside them for several."""
    path = write_tar(tmp_path / "a.tar", *names)
    assert len(theirs(path)) > 2
    said = shards("index", tmp_path)
    assert f"skipped: {left} x file that an operating system left behind: '" in said and "in a.tar" in said
    whole = [{"__key__": f"d/{n}", "__url__": f"{tmp_path}/a.tar", "jpg": b"d/%d.jpg" % n, "txt": b"d/%d.txt" % n}
             for n in range(2)]  # fmt: skip
    assert ours(tmp_path) == whole
    assert verify_webdataset(open_webdataset_index(str(tmp_path))) == []


@pytest.mark.parametrize("behind", ["tar", "\0" * 4096 + "x", "x" * 512])
def test_bytes_behind_the_end_of_a_tar_are_told(tmp_path: Path, shards, behind: str) -> None:
    """webdataset stops at the end, too, and says nothing: of two tars joined the second is lost."""
    path = write_tar(tmp_path / "a.tar", "0.jpg", "0.txt")
    whole = path.read_bytes()
    assert "odd" not in shards("index", tmp_path)
    other = write_tar(tmp_path / "b.tar", "1.jpg").read_bytes()
    (tmp_path / "b.tar").unlink()
    path.write_bytes(whole + (other if behind == "tar" else behind.encode()))
    said = shards("index", tmp_path)
    assert "odd: 1 x tar with bytes behind its end" in said and "in a.tar" in said
    assert ours(tmp_path) == theirs(path) and len(theirs(path)) == 1


def test_members_that_do_not_stand_side_by_side_are_told(tmp_path: Path, shards) -> None:
    """They are pieces for webdataset as well, which says nothing."""
    path = write_tar(tmp_path / "a.tar", "0.jpg", "1.jpg", "2.jpg", "2.txt", "0.txt", "1.txt", "0.json")
    said = shards("index", tmp_path)
    assert "odd: 3 x sample whose members are not adjacent" in said and "'0' in a.tar" in said
    assert ours(tmp_path) == theirs(path) and len(theirs(path)) == 6
    write_tar(tmp_path / "a.tar", "0.jpg", "0.txt", "1.jpg", "0.jpg", "0.txt")
    assert "odd: 1 x sample whose key occurs earlier in the tar: '0' in a.tar" in shards("index", tmp_path)
    write_tar(tmp_path / "a.tar", "0.jpg", "0.txt")
    write_tar(tmp_path / "b.tar", "0.jpg", "1.txt")
    assert "odd: 1 x key that occurs in an earlier tar" in shards("index", tmp_path)
    (tmp_path / "b.tar").unlink()
    assert "odd" not in shards("index", tmp_path)
