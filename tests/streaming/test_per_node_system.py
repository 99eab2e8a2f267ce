"""Processes of a node share an index, also where no file can be written, and a kill leaves nothing behind."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from factories.datasets import MUTE, PLAN, make_stream_dataset, stream_recipe

from sage_scale.streaming import open_stream

SCRIPT = Path(__file__).with_name("rank_of_node.py")
WORLD = 4
pytestmark = pytest.mark.system


def start(
    url: str, folder: Path, *words: object, confined: bool = False
) -> tuple[list[int], dict[int, dict]]:
    """Exit codes of the ranks, and what each of them wrote."""
    folder.mkdir()
    command = [sys.executable, str(SCRIPT), url, str(folder), *map(str, words)]
    if confined:  # /dev/shm of one page, and folders for temporary and cached files that take no byte
        closed = "mount -t tmpfs -o size=4k tmpfs /dev/shm && mount -t tmpfs -o ro tmpfs /var/tmp"
        command = ["unshare", "-m", "sh", "-c", f"{closed} && exec {shlex.join(command)}"]
    environment = {**os.environ, "TMPDIR": "/var/tmp"} if confined else None
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=100)
    assert done.returncode == 0
    written = {int(path.stem): json.loads(path.read_text()) for path in folder.glob("*.json")}
    return json.loads(done.stdout.splitlines()[-1]), written


def test_one_get_a_node_without_shared_memory_or_a_folder(s3, behind_proxy, tmp_path):
    make_stream_dataset(s3.url, "features", PLAN, MUTE)
    proxy = behind_proxy(s3)
    alone = [
        open_stream(s3.url, stream_recipe("features"), rank=rank, world=WORLD, batch_size=4, epochs=1)
        for rank in range(WORLD)
    ]
    keys = [[key for batch in stream for key in batch.keys] for stream in alone]
    for hosts in (1, 2):
        del proxy.seen[:]
        codes, written = start(s3.url, tmp_path / f"of {hosts}", WORLD, hosts, confined=os.geteuid() == 0)
        assert codes == [0] * WORLD
        assert [path.endswith("index.json") for _, path in proxy.seen].count(True) == hosts
        assert [written[rank]["keys"] for rank in range(WORLD)] == keys
        assert {found["state"] for found in written.values()} == {alone[0].state_dict()["digest"]}
        assert all(found["mapped"] for found in written.values())
        assert not any(found["columns"] for found in written.values()), "a column of all samples was made"


@pytest.mark.parametrize("dying", [0, 1])
def test_a_rank_that_is_killed_in_the_middle_ends_the_job_and_leaves_nothing(
    features_dataset, tmp_path, dying
):
    url, _, _ = features_dataset
    before, began = set(os.listdir("/dev/shm")), time.monotonic()
    codes, written = start(str(url), tmp_path / "job", WORLD, 1, dying)
    assert codes[dying] != 0 and all(codes) and not written
    assert time.monotonic() - began < 60
    assert {name for name in os.listdir("/dev/shm") if "sage" in name} <= before
    with open("/proc/net/unix", encoding="utf-8") as file:
        assert "@sage-scale-" not in file.read()
