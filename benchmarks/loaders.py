"""Samples a second from local shards, beside webdataset, mosaicml-streaming and litdata, in one run.

    python benchmarks/loaders.py [--rounds 3] [--samples 4096] [--workers 0 2]

4,096 samples of 64 x 512 float16 features (64 KiB) with segments and description, page cache warm, batches of
64. webdataset reads the very tars that sage_scale reads; the other two read their own copies (`pip install -e
'.[bench]'`; one that is not installed is left out). Every loader first gives an epoch whose samples must
equal those that were written, byte for byte. Then all are timed in turn, round after round, from the first
batch to the last, so that starting workers counts for nothing.

All shuffle, as a trainer does, with the settings they come with; sage_scale checks every byte besides. Rows that
name a setting say what it costs or brings: litdata's `batch_decode`, meant for text, makes a shuffled epoch of
arrays several times slower than `batch_decode=0`, which its user has to find; file order is no training order,
but the most that a peer reads. `pread` is the bare loop over the samples' places in our order: the ceiling of any
reader in one process that copies.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.utils.data

from sage_scale.config import Recipe, Stream, Vision
from sage_scale.shards import (
    DatasetInfo,
    PlannedUnit,
    Sample,
    finish_dataset,
    publish_shard,
    sample_key,
    start_dataset,
    write_shard,
)
from sage_scale.storage import open_store
from sage_scale.streaming import open_stream

ROWS, WIDTH, BATCH, PER_SHARD = 64, 512, 64, 256
CEILING = "bare pread loop (ceiling)"

Row = tuple[dict[str, Any], np.ndarray, np.ndarray]
"""Description, segments and features of a sample."""
Batches = Iterator[tuple[list[str], torch.Tensor]]
"""Ids of a batch, and its features, float16 (64 * rows, 512)."""


def make_samples(count: int) -> list[Sample]:
    """Clips of 128 frames in 16 segments that cover all of them, stored at stride 2."""
    rng = np.random.default_rng(0)
    edges = np.arange(0, 2 * ROWS, 8, dtype=np.int32)
    segments_N2 = np.stack([edges, edges + 8], axis=1)
    samples = []
    for number in range(count):
        meta = {
            "id": f"clip-{number}",
            "sentence": f"heute nacht regnet es im norden und im osten bei {number} grad",
            "pseudo_glosses": ["heute", "nacht", "regnen", "norden", "osten", "grad"],
            "language": "de",
            "fps": 25.0,
            "frame_stride": 2,
            "frames": 2 * ROWS,
            "source": "made",
            "signer": "s1",
            "split": "train",
        }
        features_TC = rng.standard_normal((ROWS, WIDTH), dtype=np.float32).astype(np.float16)
        samples.append(
            Sample(key=sample_key(meta["id"]), meta=meta, segments=segments_N2, features=features_TC)
        )
    return samples


def make_recipe() -> Recipe:
    """Features of width 512 at stride 2, the default order."""
    recipe = Recipe(vision=Vision(kind="features"), stream=Stream())
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, feature_dim=WIDTH))


def write_ours(folder: Path, samples: list[Sample]) -> Path:
    """The dataset of shards that sage_scale and webdataset read."""
    recipe = make_recipe()
    store = open_store(folder / "shards")
    units = [samples[begin : begin + PER_SHARD] for begin in range(0, len(samples), PER_SHARD)]
    info = start_dataset(
        store,
        DatasetInfo(
            kind="features",
            recipe=recipe.dataset_fingerprint(),
            manifest="0" * 16,
            units=tuple(PlannedUnit(split="train", clips=len(unit)) for unit in units),
            recipe_part=recipe.dataset_part(),
        ),
    )
    tar = folder / "unit.tar"
    for number, unit in enumerate(units):
        publish_shard(store, write_shard(tar, unit, unit=number, split="train", dataset=info.digest))
    tar.unlink()
    finish_dataset(store)
    return folder / "shards"


SHUFFLE = 256
"""Samples among which webdataset shuffles: as many as a window of ours."""


def ours(shards: Path, workers: int, checked: bool = True) -> Batches:
    """One epoch of the global order."""
    stream = open_stream(shards, make_recipe(), batch_size=BATCH, epochs=1, workers=workers)
    if not checked:
        assert stream.dataset._direct is not None
        stream.dataset._direct.checked = False
    for batch in stream:
        yield [meta["id"] for meta in batch.metas], batch.video.features_FC


def bare_pread(shards: Path, workers: int) -> Batches:
    """The ceiling: one `pread` a sample, in the global order, and nothing else."""
    stream = open_stream(shards, make_recipe(), batch_size=BATCH, epochs=1)
    catalog = stream.dataset.catalog
    files = [os.open(shards / name, os.O_RDONLY) for name in catalog.shards]
    table = catalog.samples
    order = stream.order.epoch(0)[0]
    places = list(zip(table.unit[order].tolist(), table.length[order].tolist(), table.offset[order].tolist()))
    for begin in range(0, len(places), BATCH):
        for unit, length, offset in places[begin : begin + BATCH]:
            os.pread(files[unit], length, offset)
        yield [""] * len(places[begin : begin + BATCH]), torch.empty(0)
    for file in files:
        os.close(file)


def collate(rows: list[Row]) -> tuple[list[str], torch.Tensor]:
    """What a peer's user writes: descriptions, and the features of all samples, one after another."""
    return [row[0]["id"] for row in rows], torch.from_numpy(np.concatenate([row[2] for row in rows]))


def with_webdataset(shards: Path) -> Callable[[int], Batches]:
    """webdataset's own decoding, batches by its loader."""
    import webdataset

    urls = [str(path) for path in sorted(shards.glob("*.tar"))]

    def row(sample: dict[str, Any]) -> Row:
        return sample["json"], sample["segments.npy"], sample["features.npy"]

    def epoch(workers: int) -> Batches:
        dataset = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(SHUFFLE).decode().map(row)
        dataset = dataset.batched(BATCH, collation_fn=collate)
        yield from webdataset.WebLoader(dataset, batch_size=None, num_workers=workers)

    return epoch


def with_mosaic(folder: Path, samples: list[Sample]) -> Callable[[int], Batches]:
    """mosaicml-streaming from its own MDS shards."""
    from streaming import MDSWriter, StreamingDataset

    columns = {"json": "json", "segments": "ndarray:int32", "features": f"ndarray:float16:{ROWS},{WIDTH}"}
    with MDSWriter(out=str(folder / "mds"), columns=columns) as writer:
        for sample in samples:
            writer.write({"json": sample.meta, "segments": sample.segments, "features": sample.features})

    def pairs(rows: list[dict[str, Any]]) -> tuple[list[str], torch.Tensor]:
        return collate([(row["json"], row["segments"], row["features"]) for row in rows])

    def epoch(workers: int) -> Batches:
        dataset = StreamingDataset(local=str(folder / "mds"), batch_size=BATCH, shuffle=True)
        yield from torch.utils.data.DataLoader(dataset, BATCH, num_workers=workers, collate_fn=pairs)

    return epoch


def with_litdata(folder: Path, samples: list[Sample], **settings: Any) -> Callable[[int], Batches]:
    """litdata from its own chunks, written directly so that no process pool is started."""
    from litdata import StreamingDataLoader, StreamingDataset

    if not (folder / "lit").exists():
        write_litdata(folder / "lit", samples)

    def pairs(rows: list[dict[str, Any]]) -> tuple[list[str], torch.Tensor]:
        return [json.loads(row["json"])["id"] for row in rows], torch.cat([row["features"] for row in rows])

    def epoch(workers: int) -> Batches:
        dataset = StreamingDataset(str(folder / "lit"), **{"shuffle": True, **settings})
        yield from StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=pairs)

    return epoch


def write_litdata(folder: Path, samples: list[Sample]) -> None:
    """Chunks of 64 MB."""
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for number, sample in enumerate(samples):
        # The description as one string: litdata would serialise each of its values by itself.
        writer[number] = {
            "json": json.dumps(sample.meta),
            "segments": torch.from_numpy(sample.segments),
            "features": torch.from_numpy(sample.features),
        }
    writer.done()
    writer.merge()


def assert_equal(batches: Batches, samples: list[Sample]) -> None:
    """Each sample once, its features as written."""
    wanted = {sample.meta["id"]: sample.features for sample in samples}
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


def print_table(
    title: str, names: Iterable[str], workers: list[int], best: dict[tuple[str, int], float]
) -> None:
    """One row a loader, one column a number of workers."""
    print(f"\n{title:44s}" + "".join(f"{f'{count} workers':>12s}" for count in workers))
    for name in names:
        cells = [f"{best[name, count]:12,.0f}" if (name, count) in best else " " * 12 for count in workers]
        print(f"{name:44s}" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2], help="worker counts tried for each loader"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        samples = make_samples(options.samples)
        shards = write_ours(place, samples)
        loaders: dict[str, Callable[[int], Batches]] = {
            "sage_scale": lambda workers: ours(shards, workers),
            "sage_scale, hashes not checked": lambda workers: ours(shards, workers, checked=False),
        }
        peers = {
            "webdataset": lambda: with_webdataset(shards),
            "mosaicml-streaming": lambda: with_mosaic(place, samples),
            "litdata": lambda: with_litdata(place, samples),
            "litdata, batch_decode=0": lambda: with_litdata(place, samples, batch_decode=0),
            "litdata, file order": lambda: with_litdata(place, samples, shuffle=False),
        }
        for name, make in peers.items():
            try:
                loaders[name] = make()
            except ImportError as error:
                print(f"{name} is left out: {error}")
        for name, loader in loaders.items():
            for workers in options.workers:
                assert_equal(loader(workers), samples)
            print(f"{name}: each of {len(samples)} samples once, equal to what was written", flush=True)
        loaders[CEILING] = lambda workers: bare_pread(shards, workers)
        rates: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for _ in range(options.rounds):
            for name, loader in loaders.items():
                for workers in options.workers if name != CEILING else [0]:
                    rates.setdefault((name, workers), []).append(rate(loader(workers)))
    wall = {key: max(value for value, _ in values) for key, values in rates.items()}
    cpu = {key: max(value for _, value in values) for key, values in rates.items() if key[1] == 0}
    print_table(f"samples/s, best of {options.rounds}", loaders, options.workers, wall)
    print_table("samples a CPU second, one process", loaders, [0], cpu)
    print()
    for what, names in (
        ("as they come", [name for name in peers if "," not in name]),
        ("with any setting or order", list(peers)),
    ):
        speed, name, workers = max((wall[key], *key) for key in wall if key[0] in names)
        print(
            f"sage_scale in one process is {wall['sage_scale', 0] / speed:.1f} times the best peer {what} ({name}, "
            f"{workers} workers)"
        )
    print(f"and {wall['sage_scale', 0] / wall[CEILING, 0]:.2f} of the bare pread loop")


if __name__ == "__main__":
    main()
