"""Streams of real processes, and from a real S3 server."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
import torch
from factories.datasets import MUTE, PLAN, make_stream_dataset, stream_recipe
from rank_of_a_job import run

from sage_scale.errors import DatasetError
from sage_scale.streaming import open_stream

pytestmark = pytest.mark.system


def job(url, world, workers, batch_size, steps, state, out):
    """A job of `world` real processes; its global batches and its state."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("rank_of_a_job.py")
    rest = [world, port, workers, batch_size, steps, json.dumps(state), out]
    ranks = [
        subprocess.Popen(
            [sys.executable, script, url, str(rank), *map(str, rest)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0] * world
    finally:
        for rank in ranks:
            rank.kill()
    return json.loads(out.read_text())


def test_real_ranks_see_the_same_bytes_and_may_change_in_the_middle(frames_dataset, tmp_path):
    url = frames_dataset[0]
    whole = run(url, 0, 1, 0, 9, 10, None)
    assert [len(step) for step in whole["steps"]] == [9, 9, 9, 9, 3] * 2
    found, state = [], None
    for world, workers, steps in ((2, 1, 3), (7, 0, 2), (1, 3, 1), (3, 0, 4)):
        part = job(url, world, workers, 9, steps, state, tmp_path / "out.json")
        found += part["steps"]
        state = part["state"]
    assert found == whole["steps"] and state == whole["state"]


@pytest.fixture(scope="module")
def s3_dataset(tmp_path_factory):
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="stream")
        place = tmp_path_factory.mktemp("s3")
        patch.setenv("TMPDIR", str(place))  # for the node-local cache
        make_stream_dataset("s3://stream/set", "frames", PLAN, MUTE)
        yield "s3://stream/set"
    server.stop()


@pytest.mark.parametrize("workers", [0, 2])
def test_s3_gives_the_batches_of_a_folder(s3_dataset, frames_dataset, workers):
    url, recipe, _ = frames_dataset
    remote = open_stream(s3_dataset, recipe, batch_size=8, epochs=2, workers=workers)
    assert remote.dataset.remote
    for batch, wanted in zip(remote, open_stream(url, recipe, batch_size=8, epochs=2), strict=True):
        assert batch.keys == wanted.keys and batch.metas == wanted.metas
        for name, value in vars(wanted.video).items():
            assert value is None or torch.equal(getattr(batch.video, name), value)


def test_a_shard_that_vanished_from_s3_is_one_clear_line(s3_dataset):
    stream = open_stream(s3_dataset, stream_recipe("frames", cache_gb=0.0), batch_size=39)
    client = boto3.client("s3")
    tar = client.get_object(Bucket="stream", Key="set/000003.tar")["Body"].read()
    for damaged, what in (
        (tar[:20000], "cut off"),
        (tar[:9999] + b"?" + tar[10000:], "hash"),
        (None, "missing"),
    ):
        client.delete_object(Bucket="stream", Key="set/000003.tar")
        if damaged:
            client.put_object(Bucket="stream", Key="set/000003.tar", Body=damaged)
        with pytest.raises(DatasetError, match=rf"s3://stream/set/000003\.tar.*{what}"):
            next(iter(stream))
    client.put_object(Bucket="stream", Key="set/000003.tar", Body=tar)
    assert len(next(iter(stream)).keys) == 39
