"""Samples a second from local shards, beside webdataset, mosaicml-streaming and litdata, in one run.

    python benchmarks/loaders.py [--peers .peers] [--rounds 3] [--samples 4096] [--workers 0 2]

4,096 samples of 64 x 512 float16 features (64 KiB) with segments and description, page cache warm, batches of
64. webdataset reads the very tars that sage_scale reads; the other two read their own copies, in a process of an
environment of their own: `--peers FOLDER` names one that has them, or is where one is made from peers.txt (they want
an older transformers than ours). Every loader first gives an epoch whose samples must
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
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from common import Asked, parse, peers_python
from factories.datasets import write_dataset
from loaders_peers import BATCH, ROWS, SEGMENTS_N2, WIDTH, Batches, Row, assert_equal, collate, rate

from sage_scale.config import Recipe, Stream, Vision
from sage_scale.shards import Sample, sample_key
from sage_scale.streaming import open_stream

PER_SHARD = 256
CEILING = "bare pread loop (ceiling)"


def make_samples(count: int) -> list[Sample]:
    """Clips of 128 frames in 16 segments that cover all of them, stored at stride 2."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        meta: dict[str, Any] = {
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
            Sample(key=sample_key(meta["id"]), meta=meta, segments=SEGMENTS_N2, features=features_TC)
        )
    return samples


def features_of(samples: list[Sample]) -> np.ndarray:
    """Features of all samples, (S, 64, 512)."""
    return np.array([sample.features for sample in samples])


def make_recipe() -> Recipe:
    """Features of width 512 at stride 2, the default order."""
    recipe = Recipe(vision=Vision(kind="features"), stream=Stream())
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, feature_dim=WIDTH))


def write_ours(folder: Path, samples: list[Sample]) -> Path:
    """The dataset of shards that sage_scale and webdataset read."""
    units = [("train", samples[begin : begin + PER_SHARD]) for begin in range(0, len(samples), PER_SHARD)]
    write_dataset(folder / "shards", units, make_recipe())
    return folder / "shards"


SHUFFLE = 256
"""Samples among which webdataset shuffles: as many as a window of ours."""


def ours(shards: Path, workers: int, checked: bool = True) -> Batches:
    """One epoch of the global order."""
    stream = open_stream(shards, make_recipe(), batch_size=BATCH, epochs=1, workers=workers)
    if not checked:
        assert stream.dataset.feature_reader is not None
        stream.dataset.feature_reader.checked = False
    for batch in stream:
        assert batch.video.features_FC is not None
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


class Peer:
    """A process of the peers' environment, which writes their copies of the samples and times them."""

    def __init__(self, python: str, folder: Path, samples: list[Sample]) -> None:
        np.save(folder / "features.npy", features_of(samples))
        (folder / "metas.json").write_text(json.dumps([sample.meta for sample in samples]))
        script = Path(__file__).with_name("loaders_peers.py")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = Asked([python, str(script), str(folder)], environment)
        self.names, missing = json.loads(self.process.answer())
        for name, why in missing.items():
            print(f"{name} is left out: {why}")

    def ask(self, what: str, name: str, workers: int) -> Any:
        """`check` or `rate` of a loader."""
        self.process.say(json.dumps([what, name, workers]))
        return json.loads(self.process.answer())


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
    parser.add_argument("--peers", type=Path, help="environment of the peers; made where it is missing")
    options = parse(parser, rounds=1, samples=512, workers=[0])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


def measure(options: argparse.Namespace, place: Path) -> None:
    """Compare, time in turn, and print the tables."""
    samples = make_samples(options.samples)
    shards = write_ours(place, samples)
    metas, features_STC = [sample.meta for sample in samples], features_of(samples)
    own: dict[str, Callable[[int], Batches]] = {
        "sage_scale": lambda workers: ours(shards, workers),
        "sage_scale, hashes not checked": lambda workers: ours(shards, workers, checked=False),
        "webdataset": with_webdataset(shards),
    }
    others: list[str]
    ask: Any
    peer = Peer(peers_python(options.peers), place, samples) if options.peers else None
    if peer is None:
        print("mosaicml-streaming and litdata are left out: no --peers FOLDER")
        others, ask = [], None
    else:
        others, ask = peer.names, peer.ask
    for name in (*own, *others):
        for workers in options.workers:
            if name in own:
                assert_equal(own[name](workers), metas, features_STC)
            else:
                assert ask("check", name, workers) == "equal"
        print(f"{name}: each of {len(samples)} samples once, equal to what was written", flush=True)
    own[CEILING] = lambda workers: bare_pread(shards, workers)
    names = [*own, *others]
    rates: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        for name in names:
            for workers in options.workers if name != CEILING else [0]:
                found = ask("rate", name, workers) if name in others else rate(own[name](workers))
                rates.setdefault((name, workers), []).append(found)
    wall = {key: max(value for value, _ in values) for key, values in rates.items()}
    cpu = {key: max(value for _, value in values) for key, values in rates.items() if key[1] == 0}
    print_table(f"samples/s, best of {options.rounds}", names, options.workers, wall)
    print_table("samples a CPU second, one process", names, [0], cpu)
    print()
    for what, some in (
        ("as they come", ["webdataset", *(name for name in others if "," not in name)]),
        ("with any setting or order", ["webdataset", *others]),
    ):
        speed, name, workers = max((wall[key], *key) for key in wall if key[0] in some)
        print(
            f"sage_scale in one process is {wall['sage_scale', 0] / speed:.1f} times the best peer {what} ({name}, "
            f"{workers} workers)"
        )
    print(f"and {wall['sage_scale', 0] / wall[CEILING, 0]:.2f} of the bare pread loop")


if __name__ == "__main__":
    main()
