"""The looking verbs of `sage-scale shards` for WebDatasets that others wrote and `shards index` has indexed."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from sage_scale.errors import DatasetError, UsageError
from sage_scale.untrusted.display import size
from sage_scale.untrusted.printer import echo, echo_json, tell
from sage_scale.untrusted.progress import Progress

if TYPE_CHECKING:
    from sage_scale.shards.webdataset_index import WebDatasetIndex

SHOWN = 20
"""Problems printed; the rest is counted."""


def web_index(url: str) -> WebDatasetIndex | None:
    """The index at a place that is no dataset of ours but has one; else None."""
    from sage_scale.shards.layout import DATASET_JSON
    from sage_scale.shards.webdataset_index import WEB_INDEX_JSON, open_webdataset_index
    from sage_scale.storage import open_store

    store = open_store(url)
    if store.exists(WEB_INDEX_JSON) and not store.exists(DATASET_JSON):
        return open_webdataset_index(store)
    return None


def verify(index: WebDatasetIndex, threads: int) -> None:
    """Compare every byte with the index."""
    from sage_scale.shards.webdataset_index import verify_webdataset

    with Progress("verify", "shards") as show:
        problems = verify_webdataset(index, threads=threads, progress=show)
    for problem in problems[:SHOWN]:
        echo(problem)
    if problems:
        raise DatasetError(
            f"{index.tars}: {len(problems)} problems; fetch those tars again, or `sage-scale shards index` them as "
            "they are"
        )
    total = sum(shard.bytes for shard in index.shards)
    echo(
        f"{index.tars}: {len(index.shards)} tars, {len(index.keys):,} samples, {size(total)}: all is as indexed"
    )


def ls(index: WebDatasetIndex, samples: bool) -> None:
    """One line a tar, or a sample."""
    if samples:
        for shard, key, record in zip(index.shard_of.tolist(), index.keys, index.records):
            echo(f"{index.shards[shard].name}  {size(int(record['length'])):>9}  {key}")
        return
    for entry in index.shards:
        echo(f"{entry.name}  {entry.samples:>7} samples  {size(entry.bytes):>9}")
    echo(f"{index.tars}: WebDataset of {len(index.keys):,} samples in {len(index.shards)} tars")


def stats(index: WebDatasetIndex) -> None:
    """Samples, bytes and their spread."""
    import numpy as np

    lengths = index.records["length"].astype(float)
    low, middle, high = np.percentile(lengths, [10, 50, 90])
    keys = len(set(index.keys))
    echo(
        f"{index.tars}: {len(index.keys):,} samples in {len(index.shards)} tars, {size(float(lengths.sum()))}",
        f"  bytes a sample  mean {size(lengths.mean())}  10/50/90%: {size(low)} / {size(middle)} / {size(high)}  "
        f"max {size(lengths.max())}",
    )
    if keys < len(index.keys):
        echo(f"  keys that occur more than once: {len(index.keys) - keys:,}")


def cat(index: WebDatasetIndex, key: str, out: str) -> None:
    """Where a sample lies and what members it has."""
    from sage_scale.shards.sample import sample_hash
    from sage_scale.shards.webdataset_index import read_members
    from sage_scale.storage import open_store

    if key not in index.keys:
        raise UsageError(
            f"{index.url} has no sample '{key}'; `sage-scale shards ls {quote(index.url)} --samples` lists them"
        )
    row = index.keys.index(key)
    record, shard = index.records[row], index.shards[int(index.shard_of[row])]
    data = open_store(index.tars).get_range(shard.name, int(record["offset"]), int(record["length"]))
    if sample_hash(data) != record["hash"].tobytes():
        raise DatasetError(f"{index.tars}/{shard.name}, sample {key}: its bytes differ from the index's hash")
    _, members = read_members(data, shard.name)
    echo_json(
        {
            "key": key,
            "shard": shard.name,
            "offset": int(record["offset"]),
            "length": int(record["length"]),
            "xxh3": record["hash"].tobytes().hex(),
            "members": {extension: len(body) for extension, body in members.items()},
        }
    )
    if out:
        folder = open_store(out)
        for extension, body in members.items():
            folder.put(f"{key}.{extension}", body)
        tell(f"members written to {folder.url}")
