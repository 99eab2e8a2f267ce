"""Stores that answer like an object store, and fail as a test wants."""

import itertools
import threading
import time

from sage_scale.errors import StorageError
from sage_scale.storage import Store, Unavailable, open_store


class Network(Store):
    """A folder behind a network: every n-th answer has a flipped byte, or there is no answer, or a slow one."""

    def __init__(self, url, flip_every=0, down=False):
        self.inner, self.url = open_store(url), "net://set"
        self.flip_every, self.down, self.requests = flip_every, down, []
        self.slow = {}
        """Number of a request -> seconds that it takes."""
        self.answers = itertools.count(1)  # atomic: requests come from several threads
        self.under_way, self.most_under_way, self.lock = 0, 0, threading.Lock()

    def get_range(self, name, offset, length):
        return bytes(self.try_range(name, offset, length))

    def try_range(self, name, offset, length, abandoned=lambda: False, into=None):
        with self.lock:
            number = len(self.requests)
            self.requests.append((name, offset, length))
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            self._take_time(self.slow.get(number, 0.0), abandoned)
            if self.down:
                raise Unavailable("the server is away")
            data = bytearray(self.inner.get_range(name, offset, length))
        finally:
            with self.lock:
                self.under_way -= 1
        if self.flip_every and next(self.answers) % self.flip_every == 0:
            data[length // 3] ^= 1
        return data

    @staticmethod
    def _take_time(seconds, abandoned):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if abandoned():
                raise Unavailable("abandoned")
            time.sleep(0.001)

    def size(self, name):
        if self.down:
            raise StorageError("the server is away")
        return self.inner.size(name)

    def get(self, name): ...
    def put(self, name, data): ...
    def put_if_absent(self, name, data): ...
    def list(self, prefix=""): ...
    def child(self, prefix): ...
    def delete(self, name): ...


def read(reader, samples):
    """Bytes of the samples, checked, and how often they were read again."""
    found, retries = zip(*reader.read(samples))
    return list(found), sum(retries)
