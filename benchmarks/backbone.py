"""What fills a frozen backbone's batches, in which arithmetic, and whether decoding ahead of it pays.

    python benchmarks/backbone.py [--clips 12] [--crop 224]

Clips of 20 to 90 stored frames (as captions give them at stride 2) through a ResNet-34 of random weights in batches of
32 and 128: batches of each clip's own, and shared ones. Then a unit of small videos with and without the thread that
decodes ahead. Rows must be equal bit for bit wherever they are compared. Processor time, except where it says wall.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import parse
from decode import make_video

from sage_scale.config import Vision, from_mapping
from sage_scale.corpora.manifest import Clip
from sage_scale.precompute.sample_maker import SampleMaker
from sage_scale.precompute.unit_clips import UnitClips
from sage_scale.vision.backbones import FrozenBackbone
from sage_scale.vision.feature_batches import FeatureBatches


def batches(clips: list[np.ndarray], crop: int) -> None:
    """One table: frames a second by batch, arithmetic and way."""
    frames = sum(map(len, clips))
    print(
        f"{len(clips)} clips of {min(map(len, clips))} to {max(map(len, clips))} frames, {frames} in all:\n"
    )
    print("| batch | arithmetic | each clip's own, frames/CPU s | shared, frames/CPU s | ratio |")
    print("|---|---|---|---|---|")
    for batch in (32, 128):
        for dtype in ("float32", "bfloat16"):
            vision = Vision(
                kind="features", size=crop, crop=crop, allow_random_backbone=True, backbone_batch=batch,
                backbone_dtype=dtype,
            )  # fmt: skip
            backbone = FrozenBackbone(vision)
            begun = time.process_time()
            own = [backbone.pictures(clip) for clip in clips]
            middle = time.process_time()
            together: FeatureBatches[int] = FeatureBatches(backbone)
            pairs = [pair for k, clip in enumerate(clips) for pair in together.add(k, clip)]
            pairs += together.flush()
            ended = time.process_time()
            assert all(np.array_equal(rows, own[k]) for k, rows in pairs) and len(pairs) == len(clips)
            rates = frames / (middle - begun), frames / (ended - middle)
            print(f"| {batch} | {dtype} | {rates[0]:.1f} | {rates[1]:.1f} | {rates[1] / rates[0]:.2f} |")


def ahead(width: int, height: int, number: int) -> None:
    """One table: wall seconds of a unit, decoding ahead or clip by clip."""
    print("\n| content | one after the other, wall s | decoding ahead, wall s | ratio |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        clips = []
        for k in range(number):
            make_video(Path(folder) / f"{k}.mp4", width, height, 100)  # 50 stored: five whole batches of 10
            clips.append(Clip(id=str(k), video=f"{folder}/{k}.mp4", sentence="x"))
        for name, vision in (
            ("JPEG frames", {"size": 256, "crop": 224}),
            ("features", {
                "kind": "features", "size": 128, "crop": 64, "allow_random_backbone": True, "backbone_batch": 10,
            }),
        ):  # fmt: skip
            recipe = from_mapping({
                "corpus": {"name": "videos", "language": "de"},
                "text": {"tagger": "none", "target": "sentence"},
                "vision": vision,
            })  # fmt: skip
            taken: dict[bool, float] = {}
            for _ in range(2):  # the better of two: other work is going on
                for alone in (True, False):
                    maker = SampleMaker(recipe)
                    maker.load()
                    begun = time.perf_counter()
                    assert len(list(UnitClips(maker, clips, alone=alone))) == len(clips)
                    seconds = time.perf_counter() - begun
                    taken[alone] = min(taken.get(alone, seconds), seconds)
            print(f"| {name} | {taken[True]:.2f} | {taken[False]:.2f} | {taken[False] / taken[True]:.2f} |")


def main() -> None:
    """Print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--crop", type=int, default=224)
    arguments = parse(parser, clips=2, crop=32)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    side = arguments.crop
    clips = [
        rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        for n in rng.integers(20, 91, arguments.clips)
    ]
    batches(clips, side)
    ahead(*((64, 48, 2) if arguments.small else (640, 480, 12)))


if __name__ == "__main__":
    main()
