"""CLCL on a GPU: memory, share of the matrix rate, beside the naive loss and the MaxSim kernels of others.

    python benchmarks/clcl_gpu.py           # one H200, one call of under ten minutes
    python benchmarks/clcl_gpu.py --small   # shows that all of it runs, on a CPU too

Asserts equality with the reference in float64 before it times anything. Operations are counted as 8 E D, E pairs of
tokens: similarities twice, two gradients, both sides trained. The rate is that of a plain matrix product of the same
precision, measured in the same run. Memory is the peak beside the inputs. Peers (`late-interaction-kernels`,
`flash-maxsim`) are used where they can be imported; `--peers FOLDER` is searched too (pip install --no-deps --target).
Needs torch, transformers and this project's folder on PYTHONPATH; no DeepSpeed.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from common import parse
from torch import Tensor

from sage_scale.config import Clcl
from sage_scale.losses import chosen_implementation, clcl_loss, objective_of, reference_similarity
from sage_scale.losses.products import Precision

PRODUCTS: dict[Precision, float] = {"bfloat16": 1e-2, "tfloat32": 2e-3, "float32": 2e-5}
"""Precisions, and how far their gradients may be from float64 (relative, Euclidean)."""


@dataclass(frozen=True)
class Sizes:
    """What is run: (B, N, M, D) of each part."""

    large: tuple[tuple[int, int, int, int], ...]
    naive_tokens: tuple[int, int, int]
    naive_limit: int
    maxsim: tuple[tuple[int, int, int, int], ...]
    matrix: int


FULL = Sizes(
    large=((4096, 64, 32, 512), (4096, 64, 32, 1024)),
    naive_tokens=(64, 32, 512),
    naive_limit=4096,
    maxsim=((1024, 64, 32, 128), (1024, 64, 32, 512)),
    matrix=8192,
)
SMALL = Sizes(
    large=((48, 8, 4, 32), (48, 8, 4, 64)),
    naive_tokens=(8, 4, 32),
    naive_limit=64,
    maxsim=((16, 8, 4, 32),),
    matrix=256,
)


class Bench:
    """A device with its clock and its memory."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeats: int = 3) -> float:
        """Shortest of a few runs, after one that compiles and warms up."""
        work()
        best = float("inf")
        for _ in range(repeats):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            best = min(best, time.perf_counter() - started)
        return best

    def peak_gb(self, work: Callable[[], object]) -> float:
        """Peak beside what was there before, 10^9 bytes; nan on the CPU, which keeps no count."""
        if not self.cuda:
            work()
            return float("nan")
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        self.wait()
        return (torch.cuda.max_memory_allocated() - before) / 1e9

    def rates(self, side: int) -> dict[Precision, float]:
        """Operations a second of a square matrix product, by precision."""
        found = {}
        for name in PRODUCTS:
            dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
            if self.cuda:
                torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "tfloat32" else "ieee"
            a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in range(2))
            found[name] = 2 * side**3 / self.seconds(lambda a=a, b=b: a @ b, repeats=10)
        if self.cuda:
            torch.backends.cuda.matmul.fp32_precision = "ieee"
        return found

    def batch(self, B: int, N: int, M: int, D: int, ragged: bool = False, dtype: torch.dtype = torch.float32):
        """Random tokens of both sides, to be trained, their lengths, and a scale."""
        generator = torch.Generator().manual_seed(B + D)
        lengths = [
            torch.randint(1, most + 1, (B,), generator=generator) if ragged else torch.full((B,), most)
            for most in (N, M)
        ]
        tokens = [
            torch.randn(int(length.sum()), D, generator=generator, dtype=torch.float64)
            if ragged
            else torch.randn(int(length.sum()), D, device=self.device)
            for length in lengths
        ]
        visual, text = (token.to(self.device, dtype).requires_grad_() for token in tokens)
        scale = torch.tensor([14.0], device=self.device, dtype=dtype, requires_grad=True)
        return visual, text, *(length.to(self.device) for length in lengths), scale


def step(given: tuple, settings: Clcl) -> Tensor:
    """Forward and backward as the trainer calls it; gradients are left in the inputs."""
    visual, text, visual_lengths, text_lengths, scale = given
    for tensor in (visual, text, scale):
        tensor.grad = None
    loss = objective_of(settings).share(visual, text, visual_lengths, text_lengths, scale)
    loss.backward()
    return loss.detach()


def naive_step(given: tuple) -> Tensor:
    """The same by the reference."""
    visual, text, visual_lengths, text_lengths, scale = given
    for tensor in (visual, text, scale):
        tensor.grad = None
    loss = clcl_loss(*reference_similarity(visual, text, visual_lengths, text_lengths), scale)
    loss.backward()
    return loss.detach()


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Largest relative error, Euclidean."""
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))


def check_equality(bench: Bench) -> None:
    """Loss and gradients of ragged batches against the reference in float64, in every precision."""
    for B, N, M, D in ((24, 17, 9, 64), (40, 64, 32, 128), (12, 128, 70, 64)):
        exact = bench.batch(B, N, M, D, ragged=True, dtype=torch.float64)
        wanted_loss = naive_step(exact)
        wanted = [exact[place].grad.clone() for place in (0, 1, 4)]
        given = bench.batch(B, N, M, D, ragged=True)
        for name, limit in PRODUCTS.items():
            loss = step(given, replace(Clcl(), products=name))
            found = error([given[place].grad for place in (0, 1, 4)], wanted)
            off = abs(float(loss) - float(wanted_loss)) / float(wanted_loss)
            assert off < limit and found < limit, (
                f"{name} at {(B, N, M, D)}: loss {off:.1e}, gradients {found:.1e}"
            )
    print("equal to the reference in float64: " + ", ".join(f"{n} to {v:g}" for n, v in PRODUCTS.items()))


def large_batches(bench: Bench, sizes: Sizes, rates: dict[Precision, float]) -> None:
    print("\n| B | N | M | D | products | s, forward and backward | TFLOP/s (8 E D) | share of the matrix rate | "
          "GB beside inputs | at most 4 GB |\n|" + "---|" * 10)  # fmt: skip
    for B, N, M, D in sizes.large:
        given = bench.batch(B, N, M, D)
        for name in PRODUCTS:
            settings = replace(Clcl(), products=name)
            memory = bench.peak_gb(lambda given=given, settings=settings: step(given, settings))
            seconds = bench.seconds(lambda given=given, settings=settings: step(given, settings))
            rate = 8 * (B * N) * (B * M) * D / seconds
            fits = "-" if np.isnan(memory) else "yes" if memory <= 4 else "**no**"
            print(f"| {B} | {N} | {M} | {D} | {name} | {seconds:.3g} | {rate / 1e12:.3g} | "
                  f"{100 * rate / rates[name]:.0f}% | {memory:.2f} | {fits} |", flush=True)  # fmt: skip
        del given


def beside_naive(bench: Bench, sizes: Sizes) -> None:
    """The reference at twice the batch again and again, until memory ends; ours at the largest that it held."""
    N, M, D = sizes.naive_tokens
    B, held = 16, None
    while sizes.naive_limit >= B:
        given = bench.batch(B, N, M, D)
        try:
            memory = bench.peak_gb(lambda given=given: naive_step(given))
            held = (B, memory, bench.seconds(lambda given=given: naive_step(given), repeats=2))
        except torch.OutOfMemoryError:
            break
        finally:
            del given
        B *= 2
    assert held is not None, "not even 16 clips"
    B, memory, seconds = held
    print(f"\nnaive, float32, N={N} M={M} D={D}: the largest power of 2 it holds is B={B}")
    print("| way | s | GB | times faster |\n|---|---|---|---|")
    print(f"| naive | {seconds:.3g} | {memory:.2f} | 1 |")
    given = bench.batch(B, N, M, D)
    for name in PRODUCTS:
        settings = replace(Clcl(), products=name)
        own = bench.peak_gb(lambda settings=settings: step(given, settings))
        time_s = bench.seconds(lambda settings=settings: step(given, settings))
        print(f"| ours, {name} | {time_s:.3g} | {own:.2f} | {seconds / time_s:.1f} |", flush=True)


def peers() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """What others offer: (queries, documents), both (B, tokens, D), to sums of maxima (B, B); a line for who lacks."""
    found: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    for package, function, options in (
        ("late_interaction_kernels", "maxsim", {}),
        ("flash_maxsim", "flash_maxsim_batched_train", {"shared_docs": True}),
    ):
        try:
            call = getattr(importlib.import_module(package), function)
        except (ImportError, AttributeError) as missing:
            print(f"\n{package} is left out: {missing}")
            continue
        found[package] = lambda q, d, call=call, options=options: call(q, d, **options)
    return found


def beside_maxsim(bench: Bench, sizes: Sizes) -> None:
    """Forward and backward of MaxSim in both directions: similarities of all pairs, then their weighted sum."""
    others = peers()
    print("\n| MaxSim, both directions | B | N | M | D | s | GB beside inputs |\n|" + "---|" * 7)
    for size in sizes.maxsim:
        for name, work in maxsim_steps(bench, size, others).items():
            memory = bench.peak_gb(work)
            shown = " | ".join(map(str, size))
            print(f"| {name} | {shown} | {bench.seconds(work):.3g} | {memory:.2f} |", flush=True)


def maxsim_steps(
    bench: Bench, size: tuple[int, int, int, int], others: dict[str, Callable[[Tensor, Tensor], Tensor]]
) -> dict[str, Callable[[], object]]:
    """A step of each way, after its similarities were found equal to float64's."""
    B, N, M, D = size
    v, t, *_ = bench.batch(B, N, M, D)
    half = torch.bfloat16 if bench.cuda else torch.float32
    q, d = (
        torch.nn.functional.normalize(x.detach(), dim=1).view(B, -1, D).to(half).requires_grad_()
        for x in (v, t)
    )
    pull = torch.randn(2, B, B, device=bench.device) / B
    with torch.no_grad():
        exact = [sums_of_maxima(q.double(), d.double()), sums_of_maxima(d.double(), q.double())]
    steps: dict[str, Callable[[], object]] = {}

    def peer(call: Callable[[Tensor, Tensor], Tensor]) -> None:
        q.grad = d.grad = None
        (call(q, d).float() * pull[0]).sum().backward()
        (call(d, q).float() * pull[1]).sum().backward()

    for name, call in others.items():
        off = error([call(q, d).float().detach(), call(d, q).float().detach()], exact)
        assert off < 1e-2, f"{name}: MaxSim is {off:.1e} off"
        steps[name] = partial(peer, call)
    given = (v, t, *(torch.full((B,), length, device=bench.device) for length in (N, M)))

    def ours(products: Precision) -> None:
        v.grad = t.grad = None
        Zv, Zt = own_maxsim(given, products)
        (Zv * pull[0] * N + Zt * pull[1].T * M).sum().backward()

    some: tuple[Precision, ...] = ("bfloat16", "float32")
    for products in some:
        own = own_maxsim(given, products)
        off = error([own[0].detach() * N, own[1].detach().T * M], exact)
        assert off < 1e-2, f"ours, {products}: MaxSim is {off:.1e} off"
        steps[f"ours, {products}"] = partial(ours, products)
    return steps


def sums_of_maxima(q: Tensor, d: Tensor) -> Tensor:
    """(B, B): MaxSim of queries and documents, both (B, tokens, D), a few queries at a time."""
    parts = [torch.einsum("aid,bjd->abij", q[a : a + 8], d).amax(3).sum(2) for a in range(0, len(q), 8)]
    return torch.cat(parts)


def own_maxsim(given: tuple, products: Precision) -> tuple[Tensor, Tensor]:
    """Means of maxima in both directions, (B, B) each."""
    from sage_scale.losses import clcl_similarity

    return clcl_similarity(*given, tau=0.0, products=products)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="folder with the packages of others")
    options = parse(parser, device=True)
    if options.peers:
        sys.path.insert(0, options.peers)
    bench, sizes = Bench(options.device), SMALL if options.small else FULL
    started = time.perf_counter()
    name = torch.cuda.get_device_name() if bench.cuda else "CPU"
    print(f"{name}, torch {torch.__version__}, tiles by {chosen_implementation(bench.device)}")
    check_equality(bench)
    rates = bench.rates(sizes.matrix)
    print("matrix rate, TFLOP/s: " + ", ".join(f"{key} {value / 1e12:.3g}" for key, value in rates.items()))
    large_batches(bench, sizes, rates)
    beside_maxsim(bench, sizes)
    beside_naive(bench, sizes)
    print(f"\nall of it took {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
