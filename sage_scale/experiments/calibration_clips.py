"""Rates of what a clip passes in precompute: decoding, JPEG, segments, text, frozen backbones."""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from sage_scale.config import Vision
from sage_scale.corpora.manifest import Clip
from sage_scale.errors import RecipeError, UsageError
from sage_scale.experiments.calibration import Calibration, Settings, cpu_rate
from sage_scale.segmentation import segment_clip
from sage_scale.text.pseudogloss import cached_glosser
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


def decoding(found: Calibration, settings: Settings) -> None:
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


def jpeg(found: Calibration, settings: Settings) -> None:
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


def segments_and_text(found: Calibration, settings: Settings) -> None:
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


def backbones(found: Calibration, settings: Settings) -> None:
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

            clock = time.perf_counter if device == "cuda" else time.process_time
            rates[f"{name} {dtype}"] = cpu_rate(work, settings.seconds, clock)
    if device == "cuda":
        found.add(
            "backbone.frames_per_gpu_s", rates, "frames of 224 pixels a second, by backbone and arithmetic"
        )
    else:
        found.add(
            "backbone.frames_per_cpu_s",
            rates,
            "frames of 224 pixels a CPU second, by backbone and arithmetic",
        )
