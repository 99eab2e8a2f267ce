"""The peers of loaders.py, by an interpreter that has them and need not have sage_scale; and what both sides do alike.

    PEERS/bin/python benchmarks/loaders_peers.py FOLDER    (loaders.py --peers PEERS starts it)

FOLDER holds metas.json and features.npy, from which each peer writes its own copy. Orders come as lines of stdin:
`check NAME WORKERS` compares an epoch with what was written, `rate NAME WORKERS` times one. Each answer is a JSON line;
the first has the names of the loaders, and why others are missing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.utils.data

ROWS, WIDTH, BATCH = 64, 512, 64
SEGMENTS_N2 = np.stack([np.arange(0, 2 * ROWS, 8), np.arange(8, 2 * ROWS + 8, 8)], axis=1).astype(np.int32)
"""16 segments that cover the 128 frames of every clip."""
Row = tuple[dict[str, Any], np.ndarray, np.ndarray]
"""Description, segments and features of a sample."""
Batches = Iterator[tuple[list[str], torch.Tensor]]
"""Ids of a batch, and its features, float16 (64 * rows, 512)."""


def collate(rows: list[Row]) -> tuple[list[str], torch.Tensor]:
    """What a peer's user writes: descriptions, and the features of all samples, one after another."""
    return [row[0]["id"] for row in rows], torch.from_numpy(np.concatenate([row[2] for row in rows]))


def assert_equal(batches: Batches, metas: list[dict[str, Any]], features_STC: np.ndarray) -> None:
    """Each sample once, its features as written."""
    wanted = {meta["id"]: features for meta, features in zip(metas, features_STC)}
    for ids, features in batches:
        for name, rows in zip(ids, features.split(ROWS)):
            assert np.array_equal(rows.numpy(), wanted.pop(name)), f"{name} differs from what was written"
    assert not wanted, f"{len(wanted)} samples were not delivered"


def rate(batches: Batches) -> tuple[float, float]:
    """Samples a second after the first batch, and a second of this process's CPU."""
    next(batches)
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    for ids, _ in batches:
        count += len(ids)
    return count / (time.perf_counter() - began), count / (time.process_time() - cpu)


class Peers:
    """mosaicml-streaming and litdata, as far as they are installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metas: list[dict[str, Any]] = json.loads((folder / "metas.json").read_text())
        self.features_STC = np.load(folder / "features.npy")
        self.loaders: dict[str, Callable[[int], Batches]] = {}
        self.missing: dict[str, str] = {}
        for name, make in {
            "mosaicml-streaming": self.mosaic,
            "litdata": self.litdata,
            "litdata, batch_decode=0": lambda: self.litdata(batch_decode=0),
            "litdata, file order": lambda: self.litdata(shuffle=False),
        }.items():
            try:
                self.loaders[name] = make()
            except ImportError as error:
                self.missing[name] = str(error)

    def mosaic(self) -> Callable[[int], Batches]:
        """mosaicml-streaming from its own MDS shards."""
        from streaming import MDSWriter, StreamingDataset

        place = str(self.folder / "mds")
        columns = {"json": "json", "segments": "ndarray:int32", "features": f"ndarray:float16:{ROWS},{WIDTH}"}
        with MDSWriter(out=place, columns=columns) as writer:
            for meta, features_TC in zip(self.metas, self.features_STC):
                writer.write({"json": meta, "segments": SEGMENTS_N2, "features": features_TC})

        def pairs(rows: list[dict[str, Any]]) -> tuple[list[str], torch.Tensor]:
            return collate([(row["json"], row["segments"], row["features"]) for row in rows])

        def epoch(workers: int) -> Batches:
            dataset = StreamingDataset(local=place, batch_size=BATCH, shuffle=True)
            yield from torch.utils.data.DataLoader(dataset, BATCH, num_workers=workers, collate_fn=pairs)

        return epoch

    def litdata(self, **settings: Any) -> Callable[[int], Batches]:
        """litdata from its own chunks of 64 MB, written directly so that no process pool is started."""
        from litdata import StreamingDataLoader, StreamingDataset
        from litdata.streaming.writer import BinaryWriter

        place = self.folder / "lit"
        if not place.exists():
            place.mkdir()
            writer = BinaryWriter(str(place), chunk_bytes="64MB")
            for number, (meta, features_TC) in enumerate(zip(self.metas, self.features_STC)):
                # The description as one string: litdata would serialise each of its values by itself.
                writer[number] = {
                    "json": json.dumps(meta),
                    "segments": torch.from_numpy(SEGMENTS_N2),
                    "features": torch.from_numpy(features_TC),
                }
            writer.done()
            writer.merge()

        def pairs(rows: list[dict[str, Any]]) -> tuple[list[str], torch.Tensor]:
            ids = [json.loads(row["json"])["id"] for row in rows]
            return ids, torch.cat([row["features"] for row in rows])

        def epoch(workers: int) -> Batches:
            dataset = StreamingDataset(str(place), **{"shuffle": True, **settings})
            yield from StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=pairs)

        return epoch


def serve(folder: Path) -> None:
    """Answer the orders of stdin."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what peers print is no answer
    torch.set_num_threads(1)
    peers = Peers(folder)
    print(json.dumps([list(peers.loaders), peers.missing]), file=answers)
    for order in sys.stdin:
        what, name, workers = json.loads(order)
        batches = peers.loaders[name](workers)
        if what == "check":
            assert_equal(batches, peers.metas, peers.features_STC)
        print(json.dumps(rate(batches) if what == "rate" else "equal"), file=answers)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
