"""The measurements of `bench calibrate`, in their order; here all but those of clips (calibration_clips.py)."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sage_scale.experiments.calibration import Calibration, Settings, cpu_rate, run_verb
from sage_scale.experiments.calibration_clips import backbones, decoding, jpeg, segments_and_text
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
from sage_scale.streaming.opening import open_stream

_MB = 1_000_000


def pieces(settings: Settings) -> Iterator[tuple[str, Callable[[Calibration], None]]]:
    """Yields name and work of each measurement."""
    for name, measure in (
        ("decoding", decoding),
        ("JPEG", jpeg),
        ("segments and text", segments_and_text),
        ("frozen backbones", backbones),
        ("writing and loading", _shards),
        ("start of precompute", _precompute_start),
        ("matrix products", _matrices),
        ("disk", _disk),
        ("all-reduce", _all_reduce),
    ):
        yield name, partial(measure, settings=settings)


def _shards(found: Calibration, settings: Settings) -> None:
    rows, width, count = 64, 512, 512
    features = np.random.default_rng(0).normal(size=(rows, width)).astype(np.float16)
    samples = []
    for number in range(count):
        meta: dict[str, Any] = {
            "id": f"c{number}", "sentence": "ein satz", "pseudo_glosses": ["satz"], "language": "de", "fps": 25.0,
            "frame_stride": 2, "frames": 2 * rows, "source": "c.mp4", "signer": "", "split": "train",
        }  # fmt: skip
        segments = np.arange(0, 2 * rows + 1, 8, dtype=np.int32)
        pairs = np.stack([segments[:-1], segments[1:]], axis=1)
        samples.append(Sample(key=sample_key(meta["id"]), meta=meta, segments=pairs, features=features))
    recipe = replace(
        settings.recipe,
        vision=replace(settings.recipe.vision, kind="features", fps=25.0, frame_stride=2, feature_views=1),
        model=replace(settings.recipe.model, feature_dim=width),
        stream=replace(
            settings.recipe.stream, workers=0, lanes=8, fraction=1.0, mix="none", cache_decoded_mb=0
        ),
    )
    with tempfile.TemporaryDirectory(prefix="sage-scale-calibrate-") as scratch:
        store = open_store(str(Path(scratch) / "set"))
        info = DatasetInfo(
            kind="features", recipe="calibration", manifest="calibration",
            units=(PlannedUnit(split="train", clips=count),), recipe_part=recipe.dataset_part(),
        )  # fmt: skip
        start_dataset(store, info)
        tar = Path(scratch) / "000000.tar"

        def write() -> float:
            write_shard(tar, samples, unit=0, split="train", dataset=info.digest)
            return tar.stat().st_size

        rate = cpu_rate(write, settings.seconds)
        found.add("write.bytes_per_cpu_s", rate, "bytes a CPU second: tar, hashes, index")
        publish_shard(store, tar)
        finish_dataset(store)
        stream = open_stream(store.url, recipe, batch_size=64, workers=0)
        batches = iter(stream)

        def load() -> float:
            next(batches)
            return 64.0 * rows * width * 2

        rate = cpu_rate(load, settings.seconds)
        found.add("loader.bytes_per_cpu_s", rate, "bytes of features a CPU second: read, checked, packed")


def _precompute_start(found: Calibration, settings: Settings) -> None:
    one = [f"corpus.{split}_clips=1" for split in ("train", "dev", "test", "heldout")]
    with tempfile.TemporaryDirectory(prefix="sage-scale-calibrate-") as scratch:
        corpus = ("--corpus", "synthetic", "--root", Path(scratch) / "corpus")
        run_verb("corpus make", "corpus", "make", *corpus, *one)
        begun = time.perf_counter()
        run_verb(
            "precompute", "precompute", *corpus, "--out", Path(scratch) / "set", "--recipe", "demo", *one
        )
        unit = "seconds before the first clip, Ray and the tagger's model: precompute of four clips, by the clock"
        found.add("precompute.start_s", time.perf_counter() - begun, unit)


def _matrices(found: Calibration, settings: Settings) -> None:
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        ones = torch.ones(1024, 1024, dtype=dtype)

        def product(ones: torch.Tensor = ones) -> float:
            torch.mm(ones, ones)
            return 2.0 * 1024**3

        rates[name] = cpu_rate(product, settings.seconds)
    found.add("cpu.flops_per_cpu_s", rates, "FLOP a CPU second of a product of 1,024 x 1,024, by arithmetic")

    if torch.cuda.is_available():
        ones = torch.ones(8192, 8192, dtype=torch.bfloat16, device="cuda")

        def on_gpu() -> float:
            for _ in range(8):
                torch.mm(ones, ones)
            torch.cuda.synchronize()
            return 16.0 * 8192**3

        rate = cpu_rate(on_gpu, settings.seconds, time.perf_counter)
        found.add("gpu.matrix_flops_per_s", rate, "FLOP a second of a product of 8,192 x 8,192 in bfloat16")


def _disk(found: Calibration, settings: Settings) -> None:
    data = os.urandom(8 * _MB)
    with tempfile.NamedTemporaryFile(
        prefix="sage-scale-calibrate-", dir=settings.recipe.stream.cache_dir or None
    ) as f:
        for _ in range(32):
            f.write(data)
        f.flush()
        os.fsync(f.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        f.seek(0)
        begun = time.perf_counter()
        while f.read(8 * _MB):
            pass
        found.add(
            "disk.bytes_per_s", 32 * len(data) / (time.perf_counter() - begun), "bytes a second, by the clock"
        )
    if not settings.store:
        return
    store = open_store(settings.store)
    name = f"calibration-{os.getpid()}-{time.time_ns()}.tmp"
    try:
        begun = time.perf_counter()
        for number in range(8):
            store.put(f"{name}{number}", data)
        unit = "bytes a second, by the clock, of one process"
        found.add("save.bytes_per_s", 8 * len(data) / (time.perf_counter() - begun), unit)
        begun = time.perf_counter()
        for number in range(8):
            store.get(f"{name}{number}")
        found.add("store.bytes_per_s", 8 * len(data) / (time.perf_counter() - begun), unit)
    finally:
        for number in range(8):
            store.delete(f"{name}{number}")


def _all_reduce(found: Calibration, settings: Settings) -> None:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    ranks = gpus if gpus > 1 else 2
    if gpus == 1:
        return  # one GPU exchanges with none
    with tempfile.TemporaryDirectory(prefix="sage-scale-calibrate-") as scratch:
        result = Path(scratch) / "rate"
        arguments = (ranks, str(Path(scratch) / "meet"), str(result), gpus > 1)
        torch.multiprocessing.spawn(_reduce, arguments, nprocs=ranks)  # type: ignore[no-untyped-call]
        rate = float(result.read_text())
    how = f"{ranks} GPUs, NCCL" if gpus > 1 else f"{ranks} processes, gloo"
    found.add(
        "network.in_node_bytes_per_s", rate, f"bytes a second that a rank sends in an all-reduce; {how}"
    )


def _reduce(rank: int, ranks: int, meet: str, result: str, cuda: bool) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meet}", rank=rank, world_size=ranks)
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    data = torch.ones(8 * _MB, device=device)
    times = []
    for _ in range(6):
        dist.barrier()
        begun = time.perf_counter()
        dist.all_reduce(data)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    if rank == 0:
        moved = 2 * (ranks - 1) / ranks * 4 * len(data)
        Path(result).write_text(str(moved / statistics.median(times[1:])))
    dist.destroy_process_group()
