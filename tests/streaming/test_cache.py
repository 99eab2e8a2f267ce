"""The node-local cache: its bound, its locks, and processes that are killed in the middle of anything."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from sage_scale.streaming import cache as cache_module
from sage_scale.streaming.cache import BlockCache, CacheFailed, block_name, open_cache

DIGEST = "0123456789abcdef"
SIZE = 1000


def name(number, size=SIZE):
    return block_name(number, 512, 512 + size)


def content(number, size=SIZE):
    return bytes([number % 251]) * size


def put(cache, number, size=SIZE):
    lock = cache.lock(name(number, size))
    assert lock is not None
    cache.publish(lock, content(number, size))


def get(cache, number, size=SIZE):
    descriptor = cache.open(name(number, size))
    if descriptor is None:
        return None
    try:
        return os.pread(descriptor, size + 1, 0)
    finally:
        os.close(descriptor)


def files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != "ledger")


@pytest.fixture
def cache(tmp_path):
    return BlockCache(tmp_path / "cache", DIGEST, 100 * SIZE)


def test_what_was_put_is_there_for_all_and_only_under_its_dataset(cache, tmp_path):
    assert get(cache, 1) is None
    put(cache, 1)
    assert get(cache, 1) == content(1)
    assert get(BlockCache(tmp_path / "cache", DIGEST, 100 * SIZE), 1) == content(1)
    assert get(BlockCache(tmp_path / "cache", "f" * 16, 100 * SIZE), 1) is None
    assert cache.lock(name(1)) is None  # nobody makes it twice


def test_the_bound_holds_over_datasets_and_the_least_recently_used_goes(tmp_path):
    first = BlockCache(tmp_path, DIGEST, 10 * SIZE)
    second = BlockCache(tmp_path, "f" * 16, 10 * SIZE)
    for number in range(9):
        put(first, number)
        age = 1_000 - number  # seconds since it was used
        os.utime(tmp_path / DIGEST / name(number), (time.time() - age, time.time() - age))
    assert get(first, 0) == content(0)  # a use renews it
    put(second, 100)
    put(second, 101)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 10 * SIZE
    left = {number for number in range(9) if get(first, number)}
    assert 0 in left and left - {0} == set(range(9 - len(left) + 1, 9))
    assert get(second, 100) and get(second, 101)
    put(second, 102, size=9 * SIZE)
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 10 * SIZE
    lock = first.lock(name(7, 20 * SIZE))
    first.publish(lock, content(7, 20 * SIZE))  # larger than all of it: not kept, and nothing else lost
    assert get(first, 7, 20 * SIZE) is None and get(second, 102, 9 * SIZE)


def test_one_makes_a_block_and_the_others_wait_for_it(cache):
    lock, found = cache.lock(name(1)), []

    def wait():
        assert cache.lock(name(1)) is None
        found.append(get(cache, 1))

    waiting = [threading.Thread(target=wait) for _ in range(4)]
    for thread in waiting:
        thread.start()
    time.sleep(0.1)
    assert not found
    assert cache.lock(name(1), timeout_s=0.05) is None  # a caller that does not wait goes to the store
    cache.publish(lock, content(1))
    for thread in waiting:
        thread.join(10)
    assert found == [content(1)] * 4


def test_a_claim_given_back_goes_to_the_next(cache, tmp_path):
    cache.release(cache.lock(name(1)))
    assert files(tmp_path) == []
    put(cache, 1)
    assert get(cache, 1) == content(1)


def child(code, *arguments):
    """A process that runs the code; it prints a line when it is where the test wants it."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CACHE_MODULE": cache_module.__file__},
    )
    assert process.stdout.readline() == "ready\n"
    return process


HALF_WRITTEN = """
    import importlib.util, os, sys, time
    from pathlib import Path
    spec = importlib.util.spec_from_file_location("cache", os.environ["CACHE_MODULE"])  # without torch: at once
    sys.modules["cache"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cache = module.BlockCache(Path(sys.argv[1]), sys.argv[2], 10**6)
    lock = cache.lock(sys.argv[3])
    os.write(lock.descriptor, b"half")
    if len(sys.argv) > 4 and os.fork() == 0:
        time.sleep(20)  # a loader worker, forked in the middle: it must not keep the lock
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("forked", [(), ("fork",)])
def test_a_killed_maker_leaves_nothing_that_is_seen_and_nothing_that_stays(tmp_path, forked):
    maker = child(HALF_WRITTEN, tmp_path, DIGEST, name(1), *forked)
    cache = BlockCache(tmp_path, DIGEST, 10**6)
    assert [path.name for path in files(tmp_path)] == [name(1) + ".part"]  # alive: it is left alone
    assert get(cache, 1) is None and cache.lock(name(1), timeout_s=0.05) is None
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    BlockCache(tmp_path, "f" * 16, 10**6)  # the next process that opens the cache, for whatever dataset
    assert files(tmp_path) == []
    put(cache, 1)
    assert get(cache, 1) == content(1)


def test_who_waits_for_a_killed_maker_goes_on_with_its_block(tmp_path):
    maker = child(HALF_WRITTEN, tmp_path, DIGEST, name(1))
    cache = BlockCache(tmp_path, DIGEST, 10**6)
    threading.Timer(0.2, lambda: maker.send_signal(signal.SIGKILL)).start()
    put(cache, 1)
    maker.wait()
    assert get(cache, 1) == content(1)


def test_a_sum_that_is_wrong_is_put_right_by_counting(cache, tmp_path):
    for number in range(5):
        put(cache, number)
    for number, text in enumerate((b"", b"garbage, garbage", b"%016x" % 10**15)):
        (tmp_path / "cache" / "ledger").write_bytes(text)
        put(cache, 10 + number)
        assert int((tmp_path / "cache" / "ledger").read_text(), 16) <= 100 * SIZE
    assert all(get(cache, number) == content(number) for number in range(5))


def test_files_of_others_are_never_touched(tmp_path):
    strangers = [tmp_path / "letter.txt", tmp_path / DIGEST / "notes", tmp_path / "deadbeef" / name(1)]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 5000)
    cache = BlockCache(tmp_path, DIGEST, 2 * SIZE)
    for number in range(9):
        put(cache, number)
    assert all(path.read_bytes() == b"x" * 5000 for path in strangers)


def test_a_block_of_the_wrong_size_is_dropped(cache, tmp_path):
    put(cache, 1)
    os.truncate(tmp_path / "cache" / DIGEST / name(1), 3)
    assert get(cache, 1) is None and files(tmp_path) == []


def test_a_folder_emptied_by_hand_is_made_again(cache, tmp_path):
    put(cache, 1)
    lock = cache.lock(name(2))
    for path in [*files(tmp_path), tmp_path / "cache" / "ledger"]:
        path.unlink()
    (tmp_path / "cache" / DIGEST).rmdir()
    (tmp_path / "cache").rmdir()
    cache.publish(lock, content(2))
    assert get(cache, 2) is None
    put(cache, 3)
    assert get(cache, 3) == content(3)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(cache, tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    lock = cache.lock(name(1))
    with monkeypatch.context() as patch:
        patch.setattr(cache_module.os, "write", full)
        with pytest.raises(CacheFailed, match="the disk is full"):
            cache.publish(lock, content(1))
    assert files(tmp_path) == [] and get(cache, 1) is None
    put(cache, 1)


def test_a_strangers_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    own = open_cache("", DIGEST, 10**6).folder
    assert own.parent == tmp_path and own.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(cache_module.os, "getuid", lambda: 12345)
    (tmp_path / "sage-scale-12345").mkdir()
    with pytest.raises(CacheFailed, match="another user"):
        open_cache("", DIGEST, 10**6)
    (tmp_path / "sage-scale-12345").rmdir()
    (tmp_path / "sage-scale-12345").symlink_to(own)
    with pytest.raises(CacheFailed, match=r"another user.*stream\.cache_dir"):
        open_cache("", DIGEST, 10**6)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheFailed):
        open_cache(str(tmp_path / "file" / "below"), DIGEST, 10**6)


def test_no_descriptor_and_no_lock_is_left(cache):
    before = len(os.listdir("/proc/self/fd"))
    for number in range(30):
        put(cache, number)
        get(cache, number)
    cache.release(cache.lock(name(99)))
    assert len(os.listdir("/proc/self/fd")) == before and not cache_module._locked
