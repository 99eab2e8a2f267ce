"""What every store promises, held against a folder, moto's S3 and a Ceph gateway alike."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sage_scale.errors import StorageError, UsageError
from sage_scale.storage import Entry, NotFound, Store, open_store


@pytest.fixture(params=["folder", "s3", pytest.param("ceph", marks=pytest.mark.system)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(tmp_path / "root")
    return open_store(request.getfixturevalue(request.param).url)


def test_objects_are_read_back_whole_and_in_ranges(store: Store, tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    store.put("a/b.bin", data)
    (tmp_path / "file").write_bytes(data)
    store.put("a/c.bin", tmp_path / "file")
    for name in ("a/b.bin", "a/c.bin"):
        assert store.get(name) == data
        assert store.size(name) == len(data)
        for offset, length in ((0, 1), (255, 1000), (len(data) - 3, 3), (7, 0), (0, len(data))):
            assert store.get_range(name, offset, length) == data[offset : offset + length]
    store.put("a/b.bin", b"")
    assert store.get("a/b.bin") == b"" and store.size("a/b.bin") == 0


def test_a_range_beyond_the_end_is_an_error_not_a_short_answer(store: Store) -> None:
    store.put("short", b"0123456789")
    for offset, length in ((5, 6), (10, 1), (100, 5)):
        with pytest.raises(StorageError, match="cut off or exchanged"):
            store.get_range("short", offset, length)


def test_missing_objects_are_not_found(store: Store) -> None:
    for read in (store.get, store.size, lambda name: store.get_range(name, 0, 1)):
        with pytest.raises(NotFound, match="does not exist"):
            read("no/such")
    assert not store.exists("no/such")
    store.delete("no/such")
    assert list(store.list()) == []


def test_a_draft_is_stored_whole_or_leaves_nothing(store: Store, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for name, text in (("a/x", b"first"), ("a/x", b"second"), ("b", b"third")):
        with store.draft(scratch / "draft") as draft:
            draft.write_bytes(b"longer than what follows")
            draft.write_bytes(text)
            assert draft.read_bytes() == text
            assert store.put_if_absent(name, draft) == (text != b"second")
    with pytest.raises(RuntimeError), store.draft(scratch / "draft") as draft:
        draft.write_bytes(b"never stored")
        raise RuntimeError
    assert [(entry.name, store.get(entry.name)) for entry in store.list()] == [
        ("a/x", b"first"),
        ("b", b"third"),
    ]
    assert list(scratch.iterdir()) == []
    if (tmp_path / "root").exists():  # nothing hidden either
        assert sorted(path.name for path in (tmp_path / "root").rglob("*")) == ["a", "b", "x"]


def test_the_first_writer_stays(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"second")
    assert store.put_if_absent("x", b"first")
    assert not store.put_if_absent("x", b"second")
    assert not store.put_if_absent("x", tmp_path / "file")
    # The same bytes from another writer are still another object: only one call may say it stored them.
    assert not store.put_if_absent("x", b"first")
    assert store.get("x") == b"first"
    store.delete("x")
    assert store.put_if_absent("x", tmp_path / "file")
    assert store.get("x") == b"second"


def test_of_many_racing_writers_exactly_one_wins(store: Store) -> None:
    for turn in range(5):
        bodies = [b"%d" % writer * 20_000 for writer in range(8)]
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda body, turn=turn: store.put_if_absent(f"race/{turn}", body), bodies))
        assert won.count(True) == 1
        assert store.get(f"race/{turn}") == bodies[won.index(True)]


def test_listing_is_complete_and_in_the_order_of_bytes(store: Store) -> None:
    names = ["b", "a/2", "a/10", "a/ä", "a.txt", "Z", "a/b/c"]
    for name in names:
        store.put(name, name.encode())
    expected = sorted(names, key=str.encode)
    assert list(store.list()) == [Entry(name, len(name.encode())) for name in expected]
    assert [entry.name for entry in store.list("a/")] == [name for name in expected if name.startswith("a/")]
    assert [entry.name for entry in store.list("a")] == [name for name in expected if name.startswith("a")]


def test_child_and_pickled_stores_see_the_same_objects(store: Store) -> None:
    store.put("deep/er/x", b"1")
    child = store.child("deep")
    assert [entry.name for entry in child.list()] == ["er/x"]
    again = pickle.loads(pickle.dumps(child.child("er")))
    assert again.get("x") == b"1" and again.url == f"{store.url}/deep/er"


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", ".hidden", "a\\b", "a\0b", "a/"]
)
def test_names_never_leave_the_store(store: Store, name: str) -> None:
    calls = (
        lambda: store.get(name),
        lambda: store.put(name, b""),
        lambda: store.put_if_absent(name, b""),
        lambda: store.get_range(name, 0, 1),
        lambda: store.delete(name),
        lambda: store.child(name),
        lambda: store.local_path(name),
    )
    for call in calls:
        with pytest.raises(StorageError, match="no name of an object"):
            call()
    assert list(store.list()) == []


def test_urls(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}/a%20b").url == f"{tmp_path}/a b"
    assert open_store("s3://bucket/a/b/").url == "s3://bucket/a/b"
    for url in ("", "ftp://x/y", "s3://", "file://other-host/x"):
        with pytest.raises(UsageError):
            open_store(url)


def test_a_listing_has_only_names_that_can_be_read(store: Store, tmp_path: Path) -> None:
    """Files in the making and such as could leave the store are skipped in a folder and in a bucket alike."""
    odd = [".tmp.tar", "train/.tmp.tar", ".git/x.tar", "a/.b/c.tar", "back\\slash.tar"]
    plain = ["a.tar", "train/b.tar", "ü/日.tar"]
    if (path := store.local_path("a.tar")) is not None:
        for name in (*odd, *plain):
            place = path.parent / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"x")
    else:
        for name in (*odd, "a//b.tar", "../x.tar", *plain):
            store.client.put_object(Bucket=store.bucket, Key=store.prefix + name, Body=b"x")
    assert [entry.name for entry in store.list()] == plain
    assert [entry.name for entry in store.list("train/")] == ["train/b.tar"]
    assert all(store.get(entry.name) == b"x" for entry in store.list())
