"""Frames a second of a frozen backbone, as precompute runs it, in float32 and bfloat16, by batch.

    python benchmarks/gpu_backbone.py            # on a GPU
    python benchmarks/gpu_backbone.py --small    # shows that all of it runs, on a CPU too

Random weights of DINOv2 ViT-S/14 and ResNet-34, drawn frames of 256 x 256, through `vision.backbones.FrozenBackbone`.
Before anything is timed, float32 features on the device must equal the CPU's, and bfloat16 ones must be near them.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
from common import parse

from sage_scale.config import Vision
from sage_scale.vision.backbones import FrozenBackbone

NEAR = {"float32": 2e-2, "bfloat16": 1e-1}
"""Largest relative Euclidean difference from the CPU's float32 rows; TF32 convolutions and float16 storage count."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=8192)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 128, 512])
    options = parse(parser, device=True, frames=8, batches=[4])
    size, crop = (64, 56) if options.small else (256, 224)
    plain = Vision(kind="features", allow_random_backbone=True, size=size, crop=crop)
    pictures = np.random.default_rng(0).integers(0, 256, (options.frames, crop, crop, 3), np.uint8)
    print(f"{torch.cuda.get_device_name() if options.device == 'cuda' else 'CPU'}, torch {torch.__version__}")
    print("| backbone | arithmetic | batch | frames/s | apart from the CPU's float32 |\n" + "|---" * 5 + "|")
    for name in ("dinov2-vits14", "resnet34"):
        vision = replace(plain, backbone=name)
        expected = FrozenBackbone(vision, "cpu").pictures(pictures[:4])[0].astype(np.float32)
        for dtype in ("float32", "bfloat16"):
            for batch in options.batches:
                chosen = replace(vision, backbone_dtype=dtype, backbone_batch=batch)
                backbone = FrozenBackbone(chosen, options.device)
                rows = backbone.pictures(pictures[: max(4, batch)])[0][:4].astype(np.float32)  # also warms up
                apart = float(np.linalg.norm(rows - expected) / np.linalg.norm(expected))
                assert apart < NEAR[dtype], f"{name}, {dtype}, batch {batch}: {apart:.1e} from the CPU's"
                begun = time.perf_counter()
                backbone.pictures(pictures)
                rate = len(pictures) / (time.perf_counter() - begun)
                print(f"| {name} | {dtype} | {batch} | {rate:,.0f} | {apart:.1e} |", flush=True)


if __name__ == "__main__":
    main()
