"""Local attention of the sign encoder against a dense masked one, from 256 to 8,192 frames, in one run.

    python benchmarks/local_attention.py [--rounds 5] [--device cpu|cuda] [--most-dense 4096]

First it asserts that both agree, forward and backward, to 1e-5. Then, for one clip of each length, it times forward and
backward of the attention alone (8 heads of 64, window 7) and of the whole sign encoder of the paper's size, the ways in
turns within each round; the best round counts. Linear cost is a constant time a frame. At last, the same frames as one
long clip and as a ragged batch: packed clips cost what their frames cost.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch
from common import parse
from torch import Tensor

from sage_scale.config.sign2gpt import Sign2Gpt
from sage_scale.models.sign2gpt.local_attention import DenseMask, Windows
from sage_scale.models.sign2gpt.sign_encoder import SignEncoder

FRAMES = (256, 512, 1024, 2048, 4096, 8192)
HEADS, HEAD, WINDOW = 8, 64, 7


def made(frames: int, device: str) -> list[Tensor]:
    """Queries, keys, values, with a gradient each, and the gradient of the output."""
    generator = torch.Generator().manual_seed(frames)
    rows = torch.randn(4, frames, HEADS, HEAD, generator=generator).to(device)
    return [*(x.clone().requires_grad_() for x in rows[:3]), rows[3]]


def attend(way: str, given: list[Tensor]) -> list[Tensor]:
    """The output and the three gradients, the mask made anew as a batch does it once for two layers."""
    *qkv, grad = given
    lengths_B = torch.tensor([grad.shape[0]], device=grad.device)
    if way == "local":
        attention: Windows | DenseMask = Windows(torch.repeat_interleave(lengths_B), WINDOW)
    else:
        attention = DenseMask(lengths_B, window=WINDOW)
    out = attention.attend(*qkv)
    return [out.detach(), *torch.autograd.grad(out, qkv, grad)]


def encode(encoder: SignEncoder, lengths: list[int], device: str) -> Callable[[], None]:
    """One pass forward and backward over clips of these lengths."""
    x_FD = torch.randn(sum(lengths), encoder.settings.width, device=device)
    lengths_B = torch.tensor(lengths, device=device)

    def work() -> None:
        encoder.zero_grad()
        encoder(x_FD, lengths_B)[0].sum().backward()

    return work


def seconds(work: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def best(ways: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Best milliseconds of each way, in turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            taken = seconds(work, device)
            if number:
                times[name].append(1000 * taken)
    return {name: min(values) for name, values in times.items()}


def ragged(frames: int) -> list[int]:
    """Lengths from 1 to 256 that sum to `frames`."""
    generator = torch.Generator().manual_seed(1)
    lengths: list[int] = []
    while sum(lengths) < frames:
        length = int(torch.randint(1, 257, (1,), generator=generator))
        lengths.append(min(length, frames - sum(lengths)))
    return lengths


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--longest", type=int, default=FRAMES[-1], help="frames of the longest clip")
    parser.add_argument("--most-dense", type=int, default=4096, help="longest clip of the dense way")
    options = parse(parser, device=True, rounds=1, longest=256)
    device = options.device
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} thread(s), load {load}")
    lengths = [frames for frames in FRAMES if frames <= options.longest]
    for frames in lengths[:3]:
        given = made(frames, device)
        for ours, theirs in zip(attend("local", given), attend("dense", given), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    print(
        "local equals dense to 1e-5, forward and backward, at 256, 512 and 1,024 frames, or as many of them"
    )
    encoder = SignEncoder(Sign2Gpt(dropout=0.0, drop_path=0.0)).to(device)
    print("\n| frames | local, ms | us a frame | dense, ms | dense / local | sign encoder, ms | us a frame |")
    print("|---|---|---|---|---|---|---|")
    for frames in lengths:
        given = made(frames, device)
        ways: dict[str, Callable[[], object]] = {
            way: lambda way=way, given=given: attend(way, given)
            for way in ("local", "dense")
            if way == "local" or frames <= options.most_dense
        }
        ways["encoder"] = encode(encoder, [frames], device)
        took = best(ways, options.rounds, device)
        dense = (
            f"{took['dense']:.1f} | {took['dense'] / took['local']:.1f}" if "dense" in took else "not run | "
        )
        print(
            f"| {frames:,} | {took['local']:.2f} | {1000 * took['local'] / frames:.1f} | {dense} | "
            f"{took['encoder']:.0f} | {1000 * took['encoder'] / frames:.0f} |",
            flush=True,
        )
    many = ragged(lengths[-1])
    took = best(
        {"one": encode(encoder, [lengths[-1]], device), "many": encode(encoder, many, device)},
        options.rounds,
        device,
    )
    print(
        f"\n{lengths[-1]:,} frames as one clip: {took['one']:.0f} ms; as {len(many)} clips of 1 to 256: "
        f"{took['many']:.0f} ms"
    )


if __name__ == "__main__":
    main()
