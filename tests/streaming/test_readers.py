"""Readers over a network: coalesced ranges, bytes damaged on the way, shards that are not there."""

import itertools

import numpy as np
import pytest

from sage_scale.errors import StorageError
from sage_scale.storage import Store, open_store
from sage_scale.streaming import open_stream
from sage_scale.streaming.files import FileFetcher
from sage_scale.streaming.ranges import RangeFetcher, coalesce
from sage_scale.streaming.readers import DamagedSample


class Network(Store):
    """A folder that answers like an object store, and flips a byte of every n-th answer."""

    def __init__(self, url, flip_every=0, down=False):
        self.inner, self.url = open_store(url), "net://set"
        self.flip_every, self.down, self.requests = flip_every, down, []
        self.answers = itertools.count(1)  # atomic: requests come from several threads

    def get_range(self, name, offset, length):
        self.requests.append((name, offset, length))
        if self.down:
            raise StorageError("the server is away")
        data = bytearray(self.inner.get_range(name, offset, length))
        if self.flip_every and next(self.answers) % self.flip_every == 0:
            data[length // 3] ^= 1
        return bytes(data)

    def size(self, name):
        if self.down:
            raise StorageError("the server is away")
        return self.inner.size(name)

    def get(self, name): ...
    def put(self, name, data): ...
    def put_if_absent(self, name, data): ...
    def list(self, prefix=""): ...
    def delete(self, name): ...


def read(fetcher, samples):
    found, retries = zip(*fetcher.read(samples))
    return list(found), sum(retries)


@pytest.fixture
def catalog(features_dataset):
    url, recipe, _ = features_dataset
    return open_stream(url, recipe, batch_size=4).dataset.catalog


@pytest.fixture
def wanted(catalog):
    fetcher = FileFetcher(catalog, [open_store(catalog.url).local_path(name) for name in catalog.shards])
    return read(fetcher, range(len(catalog)))[0]


def test_ranged_reads_give_the_bytes_of_local_ones_in_fewer_requests(catalog, wanted):
    network = Network(catalog.url)
    picked = np.random.default_rng(0).permutation(len(catalog)).tolist()
    found, retries = read(RangeFetcher(catalog, network), picked)
    assert found == [wanted[sample] for sample in picked] and retries == 0
    assert len(network.requests) == 4  # one for each shard of the split, since all neighbours are asked for


def test_a_byte_flipped_on_the_way_is_fetched_again(catalog, wanted):
    found, retries = read(RangeFetcher(catalog, Network(catalog.url, flip_every=3)), range(39))
    assert found == wanted and retries > 0


def test_bytes_that_stay_damaged_are_refused(catalog, wanted):
    found, _ = read(RangeFetcher(catalog, Network(catalog.url, flip_every=1)), [5])
    assert isinstance(found[0], DamagedSample) and catalog.key(5) in str(found[0])


def test_a_server_that_is_away_is_no_damage(catalog):
    with pytest.raises(StorageError, match="away"):
        read(RangeFetcher(catalog, Network(catalog.url, down=True)), [5])


def test_neighbours_share_a_request_and_all_are_covered():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(1, 30))
        shard, length = rng.integers(0, 3, n), rng.integers(1, 50, n)
        offset = rng.integers(0, 1000, n)
        spans = coalesce(shard, offset, length, gap=10, limit=200)
        assert sorted(member for span in spans for member in span.members) == list(range(n))
        for span in spans:
            assert span.end - span.begin <= 200
            for member in span.members:
                assert shard[member] == span.shard
                assert span.begin <= offset[member] and offset[member] + length[member] <= span.end
    assert len(coalesce(np.zeros(4, int), np.array([0, 60, 10, 131]), np.full(4, 50), 10, 200)) == 2
