"""Streams from a real S3 server."""

import pytest
import torch
from factories.datasets import MUTE, PLAN, make_stream_dataset, stream_recipe
from servers.moto import new_bucket

from sage_scale.errors import DatasetError
from sage_scale.storage import open_store
from sage_scale.streaming import open_stream

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def bucket(moto_s3, tmp_path_factory):
    """A bucket with a dataset below it."""
    with pytest.MonkeyPatch.context() as patch:
        made = new_bucket(moto_s3, patch)
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("s3")))  # for the node-local cache
        make_stream_dataset(made.url, "frames", PLAN, MUTE)
        yield made


@pytest.mark.parametrize("workers", [0, 2])
def test_s3_gives_the_batches_of_a_folder(bucket, frames_dataset, workers):
    url, recipe, _ = frames_dataset
    remote = open_stream(bucket.url, recipe, batch_size=8, epochs=2, workers=workers)
    assert remote.dataset.remote
    for batch, wanted in zip(remote, open_stream(url, recipe, batch_size=8, epochs=2), strict=True):
        assert batch.keys == wanted.keys and batch.metas == wanted.metas
        for name, value in vars(wanted.video).items():
            assert value is None or torch.equal(getattr(batch.video, name), value)


def test_a_shard_that_vanished_from_s3_is_one_clear_line(bucket):
    stream = open_stream(bucket.url, stream_recipe("frames", cache_gb=0.0), batch_size=39)
    store = open_store(bucket.url)
    tar = store.get("000003.tar")
    for damaged, what in (
        (tar[:20000], "cut off"),
        (tar[:9999] + b"?" + tar[10000:], "hash"),
        (None, "missing"),
    ):
        store.delete("000003.tar")
        if damaged:
            store.put("000003.tar", damaged)
        with pytest.raises(DatasetError, match=rf"{bucket.url}/000003\.tar.*{what}"):
            next(iter(stream))
    store.put("000003.tar", tar)
    assert len(next(iter(stream)).keys) == 39
