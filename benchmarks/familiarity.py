"""Real and synthetic signing told apart: false alarms and alarms of a trained model's familiarity.

    python benchmarks/familiarity.py RUN --data SHARDS --real FOLDER_OF_VIDEOS [--out TABLE.md]

RUN is a run on the synthetic corpus (`make demo`), SHARDS its dataset. Familiar signing, which must not be warned of:
dev, test and held-out signers, and new synthetic videos of unseen resolutions, frame rates, light and walls.
Unfamiliar: the real videos and copies of them, each another cut, crop, mirror image, light, blur, frame rate and
resolution. The limit is the export's, which `finetune` wrote from train and dev; nothing is changed in the run.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from random import Random
from unittest import mock

import av
import numpy as np
import torch
from common import parse
from PIL import Image, ImageFilter

from sage_scale.config import load_recipe
from sage_scale.corpora.manifest import Clip
from sage_scale.corpora.synthetic import make_corpus
from sage_scale.corpora.synthetic import render as rendering
from sage_scale.corpora.synthetic.animation import animate
from sage_scale.corpora.synthetic.grammar import signing
from sage_scale.corpora.synthetic.sampling import draw_splits
from sage_scale.corpora.synthetic.signers import SIGNERS
from sage_scale.errors import ClipRejected
from sage_scale.precompute import precompute_corpus
from sage_scale.streaming import open_evaluation
from sage_scale.training.export import SearchingModel
from sage_scale.training.stage import run_stage
from sage_scale.translation.translate import Translator

Frames = list[np.ndarray]
SIZES = (48, 96, 240)
RATES = (12.5, 15.0, 29.97, 50.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--data")
    parser.add_argument("--real", type=Path, help="folder of videos of real signing")
    parser.add_argument("--clips", type=int, default=32, help="new synthetic clips in each condition")
    parser.add_argument("--copies", type=int, default=50, help="perturbed copies of the real videos")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parse(parser, clips=1, copies=2)
    with tempfile.TemporaryDirectory(prefix="familiarity-") as folder:
        if options.small:
            options.run, options.data = tiny_run(Path(folder))
        if options.run is None or options.data is None:
            parser.error("give a run and --data")
        table = measured(options, Path(folder))
    print(table)
    if options.out:
        options.out.write_text(table + "\n", encoding="utf-8")


def measured(options: argparse.Namespace, folder: Path) -> str:
    """Returns the table: clips, those warned of, and distances in units of the limit."""
    translator = Translator(options.run, device="cpu")
    model, known = translator.model, translator.familiarity
    if known is None or not isinstance(model, SearchingModel):
        raise SystemExit(f"{options.run} has no statistics: run `sage-scale evaluate --run {options.run}`")

    @torch.no_grad()
    def judged(video) -> tuple[float, bool]:
        tokens_ND, _ = model.visual_tokens(video)
        return known.distance(tokens_ND) / known.limit, bool(known.warnings(tokens_ND))

    def of_file(path: Path) -> tuple[float, bool] | None:
        try:
            return judged(translator.prepare(Clip(id=path.stem, video=str(path)))[1])
        except ClipRejected as rejected:
            print(f"{path.name}: {rejected}", flush=True)
            return None

    familiar: dict[str, list[tuple[float, bool]]] = {}
    for split, name in (("dev", "dev"), ("test", "test"), ("test_heldout", "test, held-out signers")):
        batches = open_evaluation(options.data, translator.recipe, split, batch_size=1)
        familiar[name] = [judged(batch.video) for batch in batches if batch.keys]
    for name, path in synthetic_videos(folder, options.clips):
        familiar.setdefault(name, []).extend(filter(None, [of_file(path)]))
    real: dict[str, list[tuple[float, bool]]] = {}
    originals = sorted(options.real.glob("*.mp4")) if options.real else []
    if originals:
        real["real videos"] = [found for path in originals if (found := of_file(path))]
        copies = perturbed_copies(originals, folder, options.copies)
        real["perturbed copies"] = [found for path in copies if (found := of_file(path))]
    rows = [
        f"limit {known.limit:.1f}, training clips have {known.token_limits[0]} to {known.token_limits[1]} tokens\n",
        "| signing | clips | warned of | distance / limit: median | least | greatest |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for groups, total in ((familiar, "**familiar**"), (real, "**unfamiliar**")):
        for name, clips in [*groups.items(), (total, [pair for part in groups.values() for pair in part])]:
            if clips:
                distances, warned = [pair[0] for pair in clips], sum(pair[1] for pair in clips)
                rows.append(
                    f"| {name} | {len(clips)} | {warned} ({100 * warned / len(clips):.1f}%) | "
                    f"{np.median(distances):.2f} | {min(distances):.2f} | {max(distances):.2f} |"
                )
    return "\n".join(rows)


def synthetic_videos(folder: Path, clips: int) -> Iterator[tuple[str, Path]]:
    """Yields (condition, video) of sentences of another seed, by all ten signers in turn."""
    for number, item in enumerate(draw_splits(77, {"train": clips})):
        signer = SIGNERS[number % len(SIGNERS)]
        motion = animate(signing(item.meaning), signer, Random(number))
        plain = list(rendering.render(motion, signer))
        rng = np.random.default_rng(number)
        red, green, blue = (int(value) for value in rng.integers(30, 255, 3))
        painted = dataclasses.replace(signer, background=(red, green, blue))
        videos: dict[str, tuple[Frames, float]] = {"new sentences": (plain, 25)}
        for size in SIZES:
            videos[f"{size} x {size} pixels"] = ([resized(frame, size, size) for frame in plain], 25)
        wide = [np.pad(frame, ((0, 0), (50, 50), (0, 0)), mode="edge") for frame in plain]
        videos["228 x 128 pixels"] = (wide, 25)
        for rate in RATES:
            videos[f"{rate:g} frames a second"] = (at_rate(plain, 25, rate), rate)
        videos["darker"] = ([(0.6 * frame).astype(np.uint8) for frame in plain], 25)
        videos["brighter"] = ([np.clip(1.25 * frame + 15.0, 0, 255).astype(np.uint8) for frame in plain], 25)
        videos["blurred"] = ([blurred(frame, 1.2) for frame in plain], 25)
        videos["another wall"] = (list(rendering.render(motion, painted)), 25)
        with mock.patch.object(rendering, "_background", return_value=cluttered(rng)):
            videos["cluttered wall"] = (list(rendering.render(motion, signer)), 25)
        # Of no kind by which the export's limit was widened:
        noise = rng.normal(0, 12, (len(plain), *plain[0].shape))
        videos["noise"] = (list(np.clip(plain + noise, 0, 255).astype(np.uint8)), 25)
        videos["grey"] = (
            [np.repeat(frame.mean(-1, keepdims=True), 3, -1).astype(np.uint8) for frame in plain],
            25,
        )
        videos["tilted by 6 degrees"] = ([tilted(frame, 6) for frame in plain], 25)
        videos["strong compression"] = (plain, 25)
        for name, (frames, rate) in videos.items():
            crf = 40 if name == "strong compression" else 21
            yield name, written(folder / "synthetic.mp4", frames, rate, crf)


def perturbed_copies(originals: Sequence[Path], folder: Path, count: int) -> Iterator[Path]:
    """Yields `count` copies of the videos in turn, each changed at random."""
    sources = [read(path) for path in originals]
    for number in range(count):
        rng = Random(number)
        frames, rate = sources[number % len(sources)]
        length = min(len(frames), int(rate * rng.uniform(2.5, 9)))
        start = rng.randint(0, len(frames) - length)
        frames = frames[start : start + length]
        height, width = frames[0].shape[:2]
        share = rng.uniform(0.7, 1)
        top, left = (int((1 - share) * rng.random() * side) for side in (height, width))
        frames = [
            frame[top : top + int(share * height), left : left + int(share * width)] for frame in frames
        ]
        if rng.random() < 0.5:
            frames = [frame[:, ::-1] for frame in frames]
        light, contrast = rng.uniform(0.7, 1.3), rng.uniform(0.7, 1.3)
        frames = [
            np.clip((frame.astype(np.float32) - 128) * contrast + 128 * light, 0, 255).astype(np.uint8)
            for frame in frames
        ]
        if rng.random() < 0.3:
            radius = rng.uniform(0.5, 2)
            frames = [blurred(frame, radius) for frame in frames]
        if rng.random() < 0.3:
            frames = [np.repeat(frame.mean(-1, keepdims=True), 3, -1).astype(np.uint8) for frame in frames]
        wanted, scale = rng.choice([*RATES, 25.0]), rng.choice([0.3, 0.5, 1.0])
        height, width = (max(48, int(side * scale)) for side in frames[0].shape[:2])
        frames = [resized(frame, width, height) for frame in at_rate(frames, rate, wanted)]
        yield written(folder / "real.mp4", frames, wanted)


def cluttered(rng: np.random.Generator) -> Image.Image:
    """A wall of smooth colours with bars, of the size that the renderer wants."""
    side = rendering.SIZE * 2
    wall = Image.fromarray(rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(wall).copy()
    for place in rng.integers(0, side - 8, 5):
        pixels[:, place : place + 8] = rng.integers(0, 255, 3)
    for place in rng.integers(0, side - 8, 4):
        pixels[place : place + 6] = rng.integers(0, 255, 3)
    return Image.fromarray(pixels)


def resized(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    """The frame at another size."""
    return np.asarray(
        Image.fromarray(np.ascontiguousarray(frame)).resize((width, height), Image.Resampling.BICUBIC)
    )


def blurred(frame: np.ndarray, radius: float) -> np.ndarray:
    """The frame after a Gaussian."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(frame)).filter(ImageFilter.GaussianBlur(radius)))


def tilted(frame: np.ndarray, degrees: float) -> np.ndarray:
    """The frame turned about its middle, with the colour of its first pixel in the corners."""
    picture = Image.fromarray(frame)
    return np.asarray(picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=picture.getpixel((0, 0))))


def at_rate(frames: Frames, rate: float, wanted: float) -> Frames:
    """The frames shown at another rate: some left out, or shown twice."""
    count = max(1, int(len(frames) * wanted / rate))
    return [frames[min(int(number * rate / wanted), len(frames) - 1)] for number in range(count)]


def read(path: Path) -> tuple[Frames, float]:
    """The frames of a video, at most 320 pixels wide and high, and its rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 25)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    share = min(1.0, 320 / max(frames[0].shape[:2]))
    height, width = (int(side * share) for side in frames[0].shape[:2])
    return [resized(frame, width, height) for frame in frames], rate


def written(path: Path, frames: Frames, rate: float, crf: int = 21) -> Path:
    """An H.264 file of the frames, cut to even sides."""
    height, width = (side // 2 * 2 for side in frames[0].shape[:2])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": str(crf)}
        for frame in frames:
            pixels = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def tiny_run(folder: Path) -> tuple[Path, str]:
    """A run of one step on a tiny synthetic corpus, for --small."""
    small = [
        "corpus.train_clips=8", "corpus.dev_clips=3", "corpus.test_clips=2", "corpus.heldout_clips=1",
        "shards.clips_per_unit=32", "model.backbone.depths=[1,1]", "model.backbone.widths=[8,16]", "vision.size=32",
        "vision.crop=32", "model.token_dim=24", "denoise.steps=2", "denoise.vocabulary=120", "finetune.max_steps=1",
        "finetune.init=none", "finetune.freeze=none", "stream.lanes=4", "evaluation.beams=1", "evaluation.max_tokens=8",
        "finetune.batch_size=8", "precompute.actors=1", "denoise.width=32", "denoise.layers=1", "denoise.heads=2",
    ]  # fmt: skip
    recipe, corpus, shards = load_recipe("demo", small), folder / "corpus", str(folder / "shards")
    make_corpus(recipe.corpus, corpus, workers=1)
    precompute_corpus(corpus="synthetic", root=corpus, out=shards, recipe="demo", overrides=small, quiet=True)
    run_stage("finetune", recipe, folder / "run", shards)
    return folder / "run", shards


if __name__ == "__main__":
    main()
