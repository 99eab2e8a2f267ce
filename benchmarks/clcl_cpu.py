"""CLCL forward and backward on this CPU: tiled against the naive reference, in one run.

    python benchmarks/clcl_cpu.py [--threads 2] [--rounds 5] [--clips 192] [--width 512] [--tile 1024x512]

First it asserts that the ways agree; then it times them in turns, one after the other in every round, and prints for
full and for ragged lengths (from 1 to the maximum): the best wall and CPU seconds, the ratio to the reference, and the
share of the matrix rate that was reached, counting 8 E D operations for E pairs of real tokens. The matrix rate is that
of products of 1,024 x 1,024 x 1,024, measured in the same rounds. At last, each way runs in a process of its own that
says how far its memory grew. Other work on the machine slows all ways, but not alike: look at the load it prints first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import parse
from torch import Tensor

from sage_scale.losses import clcl_tiled, reference_similarity, tiled_clcl_similarity
from sage_scale.losses.products import Precision, precision_of_products

N, M = 64, 32
TAU = 0.07
WAYS = ("reference", "float32", "bfloat16")
Timing = tuple[float, float]
"""Wall and CPU seconds."""


def made(clips: int, width: int, ragged: bool) -> tuple[Tensor, ...]:
    """Tokens with a gradient, lengths, and a gradient of Zv and Zt."""
    generator = torch.Generator().manual_seed(0)
    lengths = [
        torch.randint(1, most + 1, (clips,), generator=generator) if ragged else torch.full((clips,), most)
        for most in (N, M)
    ]
    tokens = [torch.randn(int(n.sum()), width, generator=generator).requires_grad_() for n in lengths]
    return *tokens, *lengths, torch.randn(2, clips, clips, generator=generator)


def step(way: str, visual: Tensor, text: Tensor, n: Tensor, m: Tensor, grad_2BB: Tensor) -> list[Tensor]:
    """Zv, Zt and the gradients of both sides."""
    if way == "reference":
        Z = reference_similarity(visual, text, n, m, TAU)
    else:
        precision: Precision = "bfloat16" if way == "bfloat16" else "float32"
        Z = tiled_clcl_similarity(visual, text, n, m, TAU, products=precision)
    grads = torch.autograd.grad(Z, (visual, text), (grad_2BB[0], grad_2BB[1]))
    return [Z[0].detach(), Z[1].detach(), *grads]


def timed(work: Callable[[], object]) -> Timing:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def matrix_rate(precision: Precision, size: int = 1024, products: int = 20) -> Timing:
    """Seconds for 1e9 operations."""
    left, right, out = (torch.randn(size, size) for _ in range(3))
    with precision_of_products(precision, left.device):
        torch.mm(left, right, out=out)
        wall, cpu = timed(lambda: [torch.mm(left, right, out=out) for _ in range(products)])
    giga = 2 * size**3 * products / 1e9
    return wall / giga, cpu / giga


def global_batch_counts(width: int) -> None:
    """Assert that all ways give the same, on fewer clips."""
    for ragged in (False, True):
        inputs = made(24, width, ragged)
        wanted = step("reference", *inputs)
        for way, bound in (("float32", 1e-5), ("bfloat16", 1e-2)):
            for found, value in zip(step(way, *inputs), wanted):
                assert float((found - value).norm() / value.norm()) < bound, (
                    f"{way} differs from the reference"
                )


def speed(clips: int, width: int, rounds: int) -> None:
    titles = ("lengths", "way", "wall s", "CPU s", "x faster", "by CPU", "of the matrix rate")
    print("\n{:8} {:10} {:>8} {:>8} {:>9} {:>7} {:>24}".format(*titles))
    for ragged in (False, True):
        inputs = made(clips, width, ragged)
        giga = 8 * int(inputs[2].sum()) * int(inputs[3].sum()) * width / 1e9
        taken: dict[str, list[Timing]] = {way: [] for way in WAYS}
        rates: dict[Precision, list[Timing]] = {"float32": [], "bfloat16": []}
        for _ in range(rounds):
            for way in WAYS:
                taken[way].append(timed(partial(step, way, *inputs)))
            for precision in rates:
                rates[precision].append(matrix_rate(precision))
        best = {way: [min(times[kind] for times in taken[way]) for kind in (0, 1)] for way in WAYS}
        for way in WAYS:
            (wall, cpu), (naive_wall, naive_cpu) = best[way], best["reference"]
            rate = min(seconds for seconds, _ in rates["bfloat16" if way == "bfloat16" else "float32"])
            share = f"{giga * rate / wall:.0%} of {1 / rate:,.0f} GFLOP/s"
            if way == "reference":
                share = "-"
            print(
                f"{'ragged' if ragged else 'full':8} {way:10} {wall:8.2f} {cpu:8.2f} {naive_wall / wall:9.2f} "
                f"{naive_cpu / cpu:7.2f} {share:>24}",
                flush=True,
            )


def memory(clips: int, width: int, threads: int) -> None:
    """Growth of the resident set over the inputs, by way, each in a process of its own."""
    print(f"\n{'way':10} {'MB above the inputs':>20}")
    for way in WAYS:
        size = ["--clips", str(clips), "--width", str(width), "--threads", str(threads)]
        command = [sys.executable, __file__, "--grow", way, *size]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{way:10} {json.loads(run.stdout):20.0f}", flush=True)


def growth(way: str, clips: int, width: int) -> float:
    """MB that the peak of the resident set is above what it was with inputs and libraries in place."""
    inputs = made(clips, width, ragged=False)
    step(way, *made(4, width, ragged=False))  # libraries are loaded and threads started by this
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    step(way, *inputs)
    return (_status("VmHWM") - before) * 1024 / 1e6


def _status(field: str) -> int:
    """kB of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=192)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tile", default="x".join(map(str, clcl_tiled.CPU_TILE)), help="tokens by tokens")
    parser.add_argument("--grow", choices=WAYS, help=argparse.SUPPRESS)
    options = parse(parser, rounds=1, clips=6, width=32)
    torch.set_num_threads(options.threads)
    visual, text = map(int, options.tile.split("x"))
    clcl_tiled.CPU_TILE = visual, text
    if options.grow:
        print(json.dumps(growth(options.grow, options.clips, options.width)))
        return
    print(f"B={options.clips} N={N} M={M} D={options.width}, {options.threads} threads, tile {options.tile},")
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    global_batch_counts(options.width)
    print("All ways agree (float32 to 1e-5, bfloat16 products to 1e-2).")
    speed(options.clips, options.width, options.rounds)
    memory(options.clips, options.width, options.threads)


if __name__ == "__main__":
    main()
