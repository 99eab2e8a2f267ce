"""A working copy equals its objects after `fetch`, and they equal it after `upload`: on S3 and in a folder."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_scale.errors import StorageError
from sage_scale.storage import open_store
from sage_scale.storage import s3 as s3_store
from sage_scale.storage.folder import FolderStore
from sage_scale.storage.working_copy import WorkingCopy

FILES = {
    "recipe.yaml": b"name: a\n",
    "pretrain/log.jsonl": b'{"step": 1}\n',
    "model/visual.safetensors": bytes(3_000_000),
}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def objects(url: str | Path) -> dict[str, bytes]:
    store = open_store(url)
    return {entry.name: store.get(entry.name) for entry in store.list()}


def test_a_folder_comes_up_elsewhere_byte_for_byte_and_only_changes_are_sent(s3, behind_proxy, tmp_path):
    proxy = behind_proxy(s3)

    def sent(method: str) -> list[str]:
        names = [path.rpartition("/data/")[2] for verb, path in proxy.seen if verb == method]
        proxy.seen.clear()
        return sorted(names)

    here = WorkingCopy(open_store(s3.url), tmp_path / "a" / "run")
    write(here.folder, {"old.json": b"of a folder that was not compared with its objects"})
    here.upload()
    assert sent("PUT") == []
    here.fetch()
    write(here.folder, FILES)
    here.upload()
    assert sent("PUT") == sorted(FILES)
    there = WorkingCopy(open_store(s3.url), tmp_path / "b" / "run")
    there.fetch()
    assert read(there.folder) == FILES == objects(s3.url)
    write(there.folder, {"recipe.yaml": b"name: b\n"})  # as long as before
    (there.folder / "model/visual.safetensors").unlink()
    proxy.seen.clear()
    there.upload()
    assert (sent("PUT"), objects(s3.url)) == (["recipe.yaml"], read(there.folder))
    proxy.seen.clear()
    write(here.folder, {"left/over.json": b"not sent before the end"})
    here.fetch()
    assert read(here.folder) == read(there.folder)
    assert [path for verb, path in proxy.seen if verb == "GET" and "recipe.yaml" in path]
    assert not [path for verb, path in proxy.seen if verb == "GET" and "log.jsonl" in path]  # equal: not read


def test_damage_and_outages_on_the_way(s3, behind_proxy, tmp_path):
    for name, data in FILES.items():
        open_store(s3.url).put(name, data)
    proxy = behind_proxy(s3)
    for action, at in (("corrupt", 1_000_000), ("truncate", 1_000_000), ("reset", 2_000_000)):
        rule = proxy.add(action, path="visual", at=at)
        copy = WorkingCopy(open_store(s3.url), tmp_path / action / "run")
        copy.fetch()
        assert (rule.hits, read(copy.folder)) == (1, FILES)
    copy = WorkingCopy(open_store(s3.url), tmp_path / "a" / "run")
    copy.fetch()
    write(copy.folder, {"pretrain/log.jsonl": b"1", "recipe.yaml": b"2", "scores.json": b"{}"})
    proxy.add("refuse", method="PUT", path="recipe", times=1)
    with pytest.raises(StorageError, match=r"recipe.yaml: .*(cannot be reached|broke)"):
        copy.upload(single_attempt=True)
    proxy.seen.clear()
    copy.upload(single_attempt=True)
    assert [path.rpartition("/")[2] for _, path in proxy.seen] == ["recipe.yaml", "scores.json"]
    assert objects(s3.url) == read(copy.folder)


def test_the_store_is_away_at_the_start(s3, behind_proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_store, "ATTEMPTS", 1)
    behind_proxy(s3).add("refuse", times=99)
    with pytest.raises(StorageError, match=r"cannot be reached|broke"):
        WorkingCopy(open_store(s3.url), tmp_path / "a" / "run").fetch()


def test_what_is_not_mirrored_is_left_alone_on_both_sides(tmp_path):
    store = FolderStore(write(tmp_path / "store", {"checkpoints/state.json": b"{}", "a.json": b"1"}))
    copy = WorkingCopy(store, tmp_path / "copy" / "run", lambda name: not name.startswith("checkpoints/"))
    write(copy.folder, {"checkpoints/mine": b"2", ".hidden": b"3", ".a.json.0123456789ab.tmp": b"of a kill"})
    (copy.folder / "link.json").symlink_to("/etc/passwd")
    copy.fetch()
    copy.upload()
    assert set(read(copy.folder)) == {"checkpoints/mine", ".hidden", "a.json", "link.json"}
    assert set(objects(store.root)) == {"checkpoints/state.json", "a.json"}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = FolderStore(write(tmp_path / "store", FILES))
    with pytest.raises(StorageError, match=r"file.*Not a directory; make room, or set TMPDIR"):
        WorkingCopy(store, tmp_path / "file" / "x" / "run").fetch()


def test_several_fetches_into_one_folder_take_turns(tmp_path):
    store = FolderStore(write(tmp_path / "store", FILES))
    copies = [WorkingCopy(store, tmp_path / "copy" / "run") for _ in range(4)]
    threads = [threading.Thread(target=copy.fetch) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(copies[0].folder) == FILES


names = st.sampled_from(["a.json", "log.jsonl", "x/b.txt", "x/y/c.bin"])
steps = st.lists(st.tuples(st.integers(0, 1), st.dictionaries(names, st.none() | st.binary(max_size=8))))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_turns_of_two_machines(tmp_path_factory, turns: list[tuple[int, dict[str, bytes | None]]]):
    """Each in turn fetches, changes and removes files, and uploads: the last state is that of one folder."""
    home = tmp_path_factory.mktemp("turns")
    truth: dict[str, bytes] = {}
    for machine, changes in turns:
        copy = WorkingCopy(FolderStore(home / "store"), home / str(machine) / "run")
        copy.fetch()
        assert read(copy.folder) == truth
        for name, data in changes.items():
            (copy.folder / name).unlink(missing_ok=True)
            truth.pop(name, None)
            if data is not None:
                write(copy.folder, {name: data})
                truth[name] = data
        copy.upload()
    assert objects(home / "store") == truth
