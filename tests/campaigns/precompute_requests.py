"""Claim: a second run over a finished output costs one GET and one HEAD, over an unfinished one, one bare listing.

    python tests/campaigns/precompute_requests.py --shards 10000 --server ceph

An output of so many real shards (one clip each, as small as may be) is made on an S3 server; then the driver is started
over it behind a proxy that sees every request: over the finished output, and again after index.json and one shard were
deleted, until the first unit would be given to an actor.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

sys.path.extend(map(str, (Path(__file__).parents[1], Path(__file__).parents[2] / "benchmarks")))
from common import parse
from servers.ceph import ceph_gateway
from servers.faults import fault_proxy
from servers.moto import moto_server

from sage_scale.config import Recipe, from_mapping
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.job import PrecomputeJob
from sage_scale.precompute.sample_maker import source_name
from sage_scale.shards import Sample, finish_dataset, publish_shard
from sage_scale.shards.writer import write_shard
from sage_scale.storage import open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--server", choices=("ceph", "moto"), default="ceph")
    options = parse(parser, shards=20, server="moto")
    with ceph_gateway() if options.server == "ceph" else moto_server() as server:
        os.environ.update(server.environment())
        import boto3

        boto3.session.Session().client("s3").create_bucket(Bucket="shards")
        begun = time.perf_counter()
        make_output("s3://shards/set", options.shards)
        print(f"{options.shards:,} shards made in {time.perf_counter() - begun:.0f} s")
        with fault_proxy(server.host, server.port) as proxy:
            os.environ.update(server.environment(proxy.endpoint))
            for name, (requests, seconds) in {
                "finished": count(proxy.seen, "s3://shards/set", options.shards),
                "unfinished": unfinished(proxy.seen, "s3://shards/set", options.shards),
            }.items():
                told = ", ".join(f"{number} {kind}" for kind, number in requests.items())
                print(f"a run over the {name} output: {told}; {seconds:.2f} s")


def count(seen: list[tuple[str, str]], url: str, shards: int) -> tuple[Counter[str], float]:
    """Requests of a run over the output until it ends, or would begin to work, and its seconds."""
    run = Stopped(recipe=recipe(), manifest=manifest(shards), url=url, quiet=True)
    seen.clear()
    begun = time.perf_counter()
    with contextlib.suppress(WouldWork):
        run.execute()
    return Counter(kind(*request) for request in seen), time.perf_counter() - begun


def unfinished(seen: list[tuple[str, str]], url: str, shards: int) -> tuple[Counter[str], float]:
    """The same after index.json and the last shard were deleted."""
    store = open_store(url)
    for name in ("index.json", *(f"{shards - 1:06d}.{ending}" for ending in ("json", "idx", "tar"))):
        store.delete(name)
    return count(seen, url, shards)


def kind(method: str, target: str) -> str:
    """GET of what, or a page of the listing."""
    parts = urlsplit(target)
    if "list-type=2" in parts.query:
        return "LIST (page)" if "continuation-token" in parts.query else "LIST"
    return f"{method} {parts.path.rpartition('/')[2]}"


class WouldWork(Exception):
    """The driver would now start actors."""


class Stopped(PrecomputeJob):
    """A run that ends where its work would begin."""

    @contextlib.contextmanager
    def pool(self, units: int, check: object) -> Iterator[Any]:
        raise WouldWork
        yield


def make_output(url: str, shards: int) -> None:
    """A finished output of one clip a shard, every shard real."""
    run = PrecomputeJob(recipe=recipe(), manifest=manifest(shards), url=url, quiet=True)
    digest = run.environment_check(None)(UnitWorker(run.recipe, url).environment())
    store = open_store(url)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(8) as threads:

        def make(number: int) -> None:
            unit = run.units[number]
            with store.draft(Path(scratch) / f"{number}.tar") as tar:
                made = [sample(clip) for clip in unit.clips]
                index = write_shard(tar, made, unit=number, split=unit.split, dataset=digest)
                publish_shard(store, tar, index)

        list(threads.map(make, range(shards)))
    finish_dataset(store)


def manifest(shards: int) -> Manifest:
    """One clip a shard."""
    return Manifest(tuple(Clip(id=f"clip{n:06d}", video=f"v{n}.npz", sentence="s") for n in range(shards)))


def sample(clip: Clip) -> Sample:
    """As small as may be."""
    meta = {
        "id": clip.id, "sentence": clip.sentence, "pseudo_glosses": [], "language": clip.language, "fps": 25.0,
        "frame_stride": 2, "frames": 2, "source": source_name(clip), "signer": "", "split": clip.split,
    }  # fmt: skip
    features = np.zeros((1, 4), np.float16)
    return Sample(key=clip.key, meta=meta, segments=np.array([[0, 2]], np.int32), features=features)


def recipe() -> Recipe:
    """Keypoint features, one clip a unit, no tagger: nothing is decoded here."""
    values = {
        "corpus": {"name": "videos"},
        "vision": {"kind": "features", "backbone": "keypoints"},
        "model": {"feature_dim": 134},
        "text": {"tagger": "none", "target": "sentence"},
        "shards": {"clips_per_unit": 1},
    }
    return from_mapping(values)


if __name__ == "__main__":
    main()
