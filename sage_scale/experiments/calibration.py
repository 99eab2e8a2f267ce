"""Rates of this machine for `sage-scale plan --calibration`, measured one after the other on one thread.

Rates of processors are in CPU seconds, so that other work on the machine changes them little (shared caches and cores
still do); disk, store and all-reduce are in seconds of the clock, and say the machine's load. Pictures are made unless
videos are given: a textured ground, a patch that moves, a camera's noise.
"""

from __future__ import annotations

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import yaml
from PIL import Image

from sage_scale.config import Recipe, Vision
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import RecipeError, UsageError
from sage_scale.planning.constants import Constant
from sage_scale.segmentation import segment_clip
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
from sage_scale.text.pseudogloss import cached_glosser
from sage_scale.vision.backbone_choice import bfloat16_units
from sage_scale.vision.decode import decode_clip, encode_jpeg

HEIGHTS = {260: (210, 260), 480: (640, 480), 720: (1280, 720), 1080: (1920, 1080)}
"""Width and height of the made videos."""
FOLDERS = {260: (210, 260, "png"), 512: (512, 512, "jpg")}
"""Width, height and format of the made folders of frames."""
SIDES = (64, 128, 256)
QUALITIES = (75, 85, 92, 95)
FRAMES = 50
SENTENCES = {
    "words": ("de", "morgen regnet es im süden und am abend weht ein kräftiger wind aus west"),
    "characters": ("zh", "明天南方有雨晚上刮强西风"),
}
_MB = 1_000_000
Measure = Callable[[], float]


@dataclass(frozen=True)
class Settings:
    """How long and on what is measured."""

    recipe: Recipe
    seconds: float = 1.0
    """CPU seconds of a measurement, at least."""
    videos: tuple[Path, ...] = ()
    """Videos in place of made ones."""
    store: str = ""
    """Object store or folder whose rate is measured; empty: none."""


def cpu_rate(work: Callable[[], float], seconds: float) -> float:
    """Returns what `work` does in a CPU second; it returns its amount. The median of three, after one to warm up."""
    work()
    rates = []
    for _ in range(3):
        amount, begun = 0.0, time.process_time()
        while time.process_time() - begun < seconds / 3:
            amount += work()
        rates.append(amount / (time.process_time() - begun))
    return statistics.median(rates)


def machine() -> str:
    """Returns processor, CPUs and load, for the source of a figure."""
    listing = Path("/proc/cpuinfo")
    text = listing.read_text(errors="replace") if listing.exists() else ""
    name = next(
        (line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "CPU"
    )
    units = bfloat16_units() or "no bfloat16 units"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} CPUs, {units}{gpu}, load {os.getloadavg()[0]:.1f}"


class Calibration:
    """Collects the measured constants; `command` is the command line that they are measured by."""

    def __init__(self, command: str) -> None:
        self.command, self.constants = command, dict[str, Constant]()

    def add(self, name: str, value: float | Mapping[str, float], unit: str) -> None:
        """Take a constant, three digits of each number."""
        rounded: Any = (
            {str(key): float(f"{v:.3g}") for key, v in value.items()}
            if isinstance(value, Mapping)
            else float(f"{value:.3g}")
        )
        self.constants[name] = Constant(
            name=name,
            value=rounded,
            unit=unit,
            device=machine(),
            date=time.strftime("%Y-%m-%d"),
            command=self.command,
        )

    def to_yaml(self) -> str:
        """Returns a file for `plan --calibration`."""
        entries = {
            name: {
                "value": dict(c.value) if isinstance(c.value, Mapping) else c.value,
                "unit": c.unit, "device": c.device, "date": c.date, "command": c.command,
            }
            for name, c in self.constants.items()
        }  # fmt: skip
        return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=10_000)


def pieces(settings: Settings) -> Iterator[tuple[str, Callable[[Calibration], None]]]:
    """Yields name and work of each measurement."""
    yield "decoding", lambda found: _decoding(found, settings)
    yield "JPEG", lambda found: _jpeg(found, settings)
    yield "segments and text", lambda found: _segments_and_text(found, settings)
    yield "frozen backbones", lambda found: _backbones(found, settings)
    yield "writing and loading", lambda found: _shards(found, settings)
    yield "matrix products", lambda found: _matrices(found, settings)
    yield "disk", lambda found: _disk(found, settings)
    yield "all-reduce", _all_reduce


def _pictures(width: int, height: int, frames: int) -> Iterator[np.ndarray]:
    """Yields uint8 (H, W, 3): a textured ground with noise, and a patch that moves."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(
        rng.integers(0, 255, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    )
    ground = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noise = rng.normal(0, 3, (4, height, width, 1)).astype(np.int16)
    side = min(width, height) // 4
    for t in range(frames):
        picture = ground + noise[t % len(noise)]
        top, left = (int((0.4 + 0.3 * np.sin(t / p)) * n) for p, n in ((5.0, height), (7.0, width)))
        picture[top : top + side, left : left + side] = ground[:side, :side] // 2 + 100
        yield np.clip(picture, 0, 255).astype(np.uint8)


def _write_video(path: Path, width: int, height: int) -> None:
    with av.open(str(path), "w") as container:
        options = {"threads": "1", "preset": "veryfast", "crf": "23"}
        stream: Any = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in _pictures(width, height, FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _decoding(found: Calibration, settings: Settings) -> None:
    vision = replace(Vision(), max_frames=1_000_000)

    def rate(clip: Clip) -> float:
        return cpu_rate(lambda: decode_clip(clip, vision, grey=True).total_frames, settings.seconds)

    with tempfile.TemporaryDirectory(prefix="sage-scale-calibrate-") as scratch:
        rates: dict[str, list[float]] = {}
        if settings.videos:
            for path in settings.videos:
                clip = Clip(id=path.stem, video=str(path))
                rates.setdefault(str(_height(path)), []).append(rate(clip))
        else:
            for height, (width, _) in HEIGHTS.items():
                path = Path(scratch) / f"{height}.mp4"
                _write_video(path, width, height)
                rates[str(height)] = [rate(Clip(id=str(height), video=str(path)))]
        unit = "frames a CPU second, by the picture's height: decode, cut, scale to 256 pixels, and a grey picture"
        ordered = sorted(rates, key=int)
        found.add("decode.frames_per_cpu_s", {key: statistics.median(rates[key]) for key in ordered}, unit)
        folders = {}
        for height, (width, _, ending) in FOLDERS.items():
            folder = Path(scratch) / str(height)
            folder.mkdir()
            for number, picture in enumerate(_pictures(width, height, FRAMES)):
                Image.fromarray(picture).save(folder / f"{number:04d}.{ending}")
            folders[str(height)] = rate(Clip(id=str(height), video=str(folder)))
        unit = "frames a CPU second, by the picture's height: folders of PNG (260) and JPEG (512) files"
        found.add("decode.folder_frames_per_cpu_s", folders, unit)


def _height(path: Path) -> int:
    try:
        with av.open(str(path)) as container:
            return int(container.streams.video[0].height)
    except (av.FFmpegError, IndexError):
        raise UsageError(f"--videos: {path} is no video that can be opened") from None


def _stills(settings: Settings, side: int) -> list[np.ndarray]:
    """Returns pictures of a side: of the videos where they are given, or made ones."""
    if not settings.videos:
        return list(_pictures(side, side, 16))
    vision = replace(settings.recipe.vision, size=side, crop=side, max_frames=1_000_000)
    stills: list[np.ndarray] = []
    for path in settings.videos:
        frames = decode_clip(Clip(id=path.stem, video=str(path)), vision, grey=False).frames
        stills += list(frames[:: max(1, len(frames) // 16)])
    return stills


def _jpeg(found: Calibration, settings: Settings) -> None:
    encode: dict[str, float] = {}
    decode: dict[str, float] = {}
    sizes: dict[str, float] = {}
    quality: dict[str, float] = {}
    for side in sorted({*SIDES, settings.recipe.vision.size}):
        stills = _stills(settings, side)
        stored = [encode_jpeg(picture, 92) for picture in stills]
        encode[str(side)] = cpu_rate(partial(_encoded, stills), settings.seconds)
        decode[str(side)] = cpu_rate(partial(_decoded, stored), settings.seconds)
        sizes[str(side)] = statistics.fmean(map(len, stored))
        if side == SIDES[-1]:
            means = {q: statistics.fmean(len(encode_jpeg(p, q)) for p in stills) for q in QUALITIES}
            quality = {str(q): mean / means[92] for q, mean in means.items()}
    of = f"{len(settings.videos)} videos given" if settings.videos else "made pictures"
    found.add("jpeg.encode_frames_per_cpu_s", encode, "frames a CPU second, by the side of a stored frame")
    found.add("jpeg.decode_frames_per_cpu_s", decode, "frames a CPU second, by the side of a stored frame")
    if settings.videos:  # made pictures say nothing of real ones
        found.add("jpeg.bytes", sizes, f"bytes of a frame at quality 92, by its side; {of}")
        found.add("jpeg.quality", quality, f"bytes at a quality against quality 92; {of}")


def _encoded(stills: Sequence[np.ndarray]) -> float:
    return float(len([encode_jpeg(picture, 92) for picture in stills]))


def _decoded(stored: Sequence[bytes]) -> float:
    for data in stored:
        with Image.open(io.BytesIO(data)) as image:
            np.asarray(image)
    return float(len(stored))


def _segments_and_text(found: Calibration, settings: Settings) -> None:
    with tempfile.TemporaryDirectory(prefix="sage-scale-calibrate-") as scratch:
        path = Path(scratch) / "clip.mp4"
        _write_video(path, 320, 240)
        clip = decode_clip(Clip(id="clip", video=str(path)), Vision(), grey=True)
    for name, tagger in (("motion", "motion"), ("labels", "uniform")):
        kind: Any = tagger
        chosen: Any = replace(settings.recipe.segmentation, tagger=kind)

        def segment(chosen: Any = chosen) -> float:
            segment_clip(clip, chosen)
            return clip.total_frames

        rate = cpu_rate(segment, settings.seconds)
        found.add(f"segment.{name}_frames_per_cpu_s", rate, "frames a CPU second")
    for name, (language, sentence) in SENTENCES.items():
        try:
            glosser = cached_glosser(language, replace(settings.recipe.text, tagger="auto"))
            glosser(sentence)
        except RecipeError:
            continue  # no tagger of that language is installed

        def tag(glosser: Any = glosser, sentence: str = sentence) -> float:
            glosser(sentence)
            return 1.0

        found.add(
            f"text.{name}_sentences_per_cpu_s",
            cpu_rate(tag, settings.seconds),
            "sentences a CPU second, of words seen before",
        )


def _backbones(found: Calibration, settings: Settings) -> None:
    from sage_scale.vision.backbones import FrozenBackbone

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = 256 if device == "cuda" else 16
    pictures = np.stack(list(_pictures(224, 224, batch)))
    rates = {}
    for name in ("resnet34", "dinov2-vits14"):
        for dtype in ("float32", "bfloat16"):
            vision: Any = replace(
                Vision(), kind="features", backbone=name, backbone_dtype=dtype, allow_random_backbone=True,
                size=224, crop=224, backbone_batch=batch,
            )  # fmt: skip
            backbone = FrozenBackbone(vision, device)

            def work(backbone: Any = backbone) -> float:
                return len(backbone.pictures(pictures)[0])

            rates[f"{name} {dtype}"] = cpu_rate(work, settings.seconds)
    if device == "cpu":
        found.add(
            "backbone.frames_per_cpu_s",
            rates,
            "frames of 224 pixels a CPU second, by backbone and arithmetic",
        )


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


def _matrices(found: Calibration, settings: Settings) -> None:
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        ones = torch.ones(1024, 1024, dtype=dtype)

        def product(ones: torch.Tensor = ones) -> float:
            torch.mm(ones, ones)
            return 2.0 * 1024**3

        rates[name] = cpu_rate(product, settings.seconds)
    found.add("cpu.flops_per_cpu_s", rates, "FLOP a CPU second of a product of 1,024 x 1,024, by arithmetic")


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


def _all_reduce(found: Calibration) -> None:
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


def videos_of(folder: Path, most: int = 8) -> tuple[Path, ...]:
    """Returns at most so many videos of a folder, evenly spaced by name. Raises UsageError where there is none."""
    endings = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".ts"}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    if not found:
        raise UsageError(f"--videos: no video in {folder}")
    return tuple(
        found[number * len(found) // min(most, len(found))] for number in range(min(most, len(found)))
    )
