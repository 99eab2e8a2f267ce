"""Peak memory of one actor of precompute, by backbone and clip, beside the least budget that is chosen for it.

    python benchmarks/actor_memory.py

Each row is a process of its own that makes a unit of one clip, without Ray, which adds some 50 MB to an actor.
Memory is what the actor's own guard counts: anonymous pages, not shared ones. The longest clip of a default recipe has
3,000 frames. Weights are random, which changes no size. The budget must hold the peak.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from common import parse
from factories.precompute import manifest_of, recipe_for
from factories.videos import camera_pictures, write_video

from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.job import PrecomputeJob
from sage_scale.precompute.memory import MemoryGuard, least_memory_mb, own_memory_mb
from sage_scale.precompute.progress import UnitDone

CASES = (
    ("frames", "", 10, 720),
    ("frames", "", 118, 240),
    ("resnet34", "float32", 4, 720),
    ("dinov2-vits14", "float32", 4, 720),
    ("dinov2-vits14", "bfloat16", 4, 720),
    ("resnet34", "float32", 40, 1080),
    ("resnet34", "float32", 118, 240),
)
"""Stored kind or backbone, arithmetic, seconds of the clip at 25 frames a second, height of its pictures."""

WIDTHS = {"resnet34": 512, "dinov2-vits14": 384}
"""Numbers in a row of features."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", nargs=4, help="one row, in this process")
    parser.add_argument("--cases", type=int, default=len(CASES))
    options = parse(parser, cases=1)
    if options.case:
        kind, dtype, seconds, height = options.case
        measure(kind, dtype, int(seconds), int(height))
        return
    print(
        "| stored | clip | before the first clip, MB | peak, MB | least budget, MB |\n|---|---|---|---|---|",
        flush=True,
    )
    for case in CASES[: options.cases]:
        subprocess.run([sys.executable, __file__, "--case", *map(str, case)], check=True)


def measure(kind: str, dtype: str, seconds: int, height: int) -> None:
    """Prints one row. Raises AssertionError where the peak is above the budget."""
    vision: dict = {"size": 256, "crop": 224}
    if kind != "frames":
        vision |= {
            "kind": "features",
            "backbone": kind,
            "backbone_dtype": dtype,
            "allow_random_backbone": True,
        }
    with tempfile.TemporaryDirectory(prefix="sage-scale-memory-") as folder:
        root = Path(folder) / "corpus"
        width = height * 16 // 9 // 16 * 16
        scene = (
            np.random.default_rng(0)
            .integers(0, 255, (height // 16, width // 16, 3))
            .repeat(16, 0)
            .repeat(16, 1)
        )
        pictures = camera_pictures(scene, seconds * 25, 255 - scene[:64, :64], seed=1)
        write_video(root / "train" / "clip.mp4", pictures, options={"threads": "1", "preset": "ultrafast"})
        (root / "train" / "clip.txt").write_text("Ein Satz.\n", encoding="utf-8")
        del pictures, scene
        recipe = recipe_for(
            root, vision=vision, **({"model": {"feature_dim": WIDTHS[kind]}} if kind in WIDTHS else {})
        )
        out = str(Path(folder) / "out")
        job = PrecomputeJob(recipe=recipe, manifest=manifest_of(recipe), url=out, quiet=True)
        guard = MemoryGuard(10**6)  # ends nothing
        worker = UnitWorker(job.recipe, out)
        worker.environment()
        before = own_memory_mb()
        *_, last = worker.work(job.units[0], "0" * 64)
        assert isinstance(last, UnitDone), last
        least = least_memory_mb(job.recipe)
        stored = f"{kind}, {dtype}" if dtype else kind
        print(
            f"| {stored} | {seconds} s, {height}p | {before:,.0f} | {guard.peak_mb:,.0f} | {least:,} |",
            flush=True,
        )
        assert guard.peak_mb < least


if __name__ == "__main__":
    main()
