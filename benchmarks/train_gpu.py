"""Both stages at full size on one GPU: step time and peak memory, beside the released layout and beside the plan.

    python benchmarks/train_gpu.py           # one H200, one call of under ten minutes
    python benchmarks/train_gpu.py --small   # shows that all of it runs, on a CPU too

Random weights in the true shapes (ResNet-34, mBART-large-50 with a vocabulary trimmed to 4,096, or whole with
`--vocabulary 0`), made frames of 256 x 256, clips of 116 frames of which every second is stored, in segments of 2 to
5 stored frames. Losses of all layouts must agree (float32, BatchNorm frozen) before anything is timed. Then come stage
1 at batch 16 in the released code's layout, packed, in chunks, compiled; stage 2 at batch 8; and the features path at a
global batch of 16,384 through the embedding cache, with its share of the matrix rate measured in the same run. Every
line has what `sage-scale plan` predicts. The paper reports about 60 GB (Table 3). Needs DeepSpeed beside torch and
transformers.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from common import parse
from frames_path import random_targets, released
from transformers import MBartForConditionalGeneration

from sage_scale.config import Recipe, Stage, load_recipe, override
from sage_scale.models.sage.describe import language_model_config
from sage_scale.models.sage.embedding_cache import EmbeddingCache, run_task
from sage_scale.models.sage.model import SageAligner, SageTranslator
from sage_scale.models.sage.plan import Stage1, Stage2
from sage_scale.planning.step import ClipSize
from sage_scale.streaming import Batch
from sage_scale.training import distributed
from sage_scale.training.distributed import Ranks
from sage_scale.training.engine import Engine, compute_dtype
from sage_scale.vision.packed import PackedVideo

WORDS = 12


@dataclass(frozen=True)
class Sizes:
    """What is run."""

    changes: tuple[str, ...]
    stored_frames: int
    stage1: int
    stage2: int
    chunk_frames: int
    features: int
    features_chunk: int
    matrix: int
    steps: int


FULL = Sizes((), 58, 16, 8, 128, 16384, 2048, 8192, 5)
SMALL = Sizes(
    (
        "vision.size=40", "vision.crop=32", "model.backbone.depths=[1,1]", "model.backbone.widths=[8,16]",
        "model.token_dim=32", "model.feature_dim=16",
    ),
    12, 3, 2, 16, 24, 8, 256, 1,
)  # fmt: skip


class Bench:
    """The device, its clock and its memory; lines of one table."""

    def __init__(self, ranks: Ranks, sizes: Sizes, vocabulary: int) -> None:
        self.ranks, self.sizes, self.vocabulary = ranks, sizes, vocabulary
        self.cuda = ranks.device.type == "cuda"
        self.rate = 0.0

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def half(self, stage: Stage) -> bool:
        """Whether forward and backward are in 16 bits."""
        return compute_dtype(stage, self.ranks.device) is not torch.float32

    def language_model(self, recipe: Recipe, layers: int | None = None) -> MBartForConditionalGeneration:
        """mBART with random weights, made on the device; `layers` fewer where only a part is needed."""
        config = language_model_config(recipe)
        if self.vocabulary:
            config.vocab_size = self.vocabulary
        if layers is not None:
            config.encoder_layers, config.decoder_layers = layers, 1
        with torch.device(self.ranks.device):
            return MBartForConditionalGeneration(config)

    def measure_rate(self) -> None:
        """Operations a second of a plain bfloat16 product."""
        size = self.sizes.matrix
        a = torch.randn(size, size, device=self.ranks.device, dtype=torch.bfloat16)
        for _ in range(3):
            a @ a
        self.wait()
        begun = time.perf_counter()
        for _ in range(10):
            a @ a
        self.wait()
        self.rate = 20 * size**3 / (time.perf_counter() - begun)

    def line(
        self, name: str, clips: int, step: Callable[[], float], planned: float, operations: float
    ) -> tuple[float, float]:
        """Time a step, its memory, and print both; seconds and GB."""
        for _ in range(2):
            loss = step()
        assert np.isfinite(loss), f"{name}: loss {loss}"
        self.wait()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(self.sizes.steps):
            begun = time.perf_counter()
            step()
            self.wait()
            seconds.append(time.perf_counter() - begun)
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.cuda else float("nan")
        best = min(seconds)
        print(
            f"{name:34s}{clips:7,}{best:9.3f}{clips / best:11.1f}{peak:9.2f}{planned / 1e9:9.2f}"
            f"{planned / 1e9 / peak - 1:+8.0%}{operations / best / 1e12:9.1f}{operations / best / self.rate:7.0%}",
            flush=True,
        )
        return best, peak

    def clear(self) -> None:
        """Give back what the last case held."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()


def made_video(
    recipe: Recipe, clips: int, stored: int, features: bool = False
) -> tuple[PackedVideo, ClipSize]:
    """Clips of about `stored` stored frames in segments of 2 to 5."""
    generator = torch.Generator().manual_seed(0)
    lengths, counts = [], []
    for _ in range(clips):
        own: list[int] = []
        while sum(own) < stored:
            own.append(int(torch.randint(2, 6, (), generator=generator)))
        lengths += own
        counts.append(len(own))
    total, side = sum(lengths), recipe.vision.size
    content = (
        {"features_FC": torch.randn(total, recipe.model.feature_dim, generator=generator).half()}
        if features
        else {
            "frames_FCHW": torch.randint(
                0, 256, (total, 3, side, side), dtype=torch.uint8, generator=generator
            )
        }
    )
    video = PackedVideo(
        segment_frames_N=torch.tensor(lengths), clip_segments_B=torch.tensor(counts),
        clip_seeds_B=torch.arange(clips) + 1, **content,
    )  # fmt: skip
    return video, ClipSize(total / clips, sum(counts) / clips, WORDS)


def assert_equal(bench: Bench, recipe: Recipe) -> None:
    """Packed, released and chunked layouts give one loss and one gradient norm, in float32."""
    video, _ = made_video(recipe, 2, bench.sizes.stored_frames)
    video = video.to(bench.ranks.device)
    found = []
    chunks = [f"pretrain.chunk_frames={bench.sizes.chunk_frames // 4}"]
    for changes, layout in (([], False), ([], True), (chunks, False)):
        torch.manual_seed(0)
        model = (
            SageAligner(override(recipe, changes), bench.language_model(recipe, 3))
            .to(bench.ranks.device)
            .train()
        )
        model = released(model) if layout else model
        text = random_targets(2, language_model_config(recipe).d_model, bench.ranks.device)
        loss, _ = model(video, text)
        loss.backward()
        norm = float(
            torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        )
        found.append((float(loss.detach()), norm))
        del model, loss
        bench.clear()
    for loss, norm in found[1:]:
        assert (
            abs(loss - found[0][0]) < 1e-4 * abs(found[0][0]) and abs(norm - found[0][1]) < 1e-2 * found[0][1]
        ), found
    print(
        f"packed, released and chunked layouts agree: loss {found[0][0]:.6f}, gradient norm {found[0][1]:.4g}\n"
    )


def stage1(bench: Bench, recipe: Recipe, name: str, layout: bool = False) -> tuple[float, float]:
    """Stage 1 on frames, one direct step."""
    clips = bench.sizes.stage1
    video, clip = made_video(recipe, clips, bench.sizes.stored_frames)
    video = video.to(bench.ranks.device)
    torch.manual_seed(0)
    model = SageAligner(recipe, bench.language_model(recipe, 3))
    engine = Engine(released(model) if layout else model, recipe.pretrain, bench.ranks)
    text = random_targets(clips, language_model_config(recipe).d_model, bench.ranks.device)

    def step() -> float:
        share, _ = engine.forward(video, text)
        engine.backward(share)
        engine.step(0.5)
        return float(share.detach())

    plan = Stage1(recipe, clip, 1, bench.half(recipe.pretrain)).plan(clips)
    # The text side is outside of a step here.
    return bench.line(name, clips, step, plan.device_bytes - plan.weights.frozen, plan.operations)


def stage2(bench: Bench, recipe: Recipe, name: str) -> tuple[float, float]:
    """Stage 2: visual side and the whole of mBART."""
    clips = bench.sizes.stage2
    video, clip = made_video(recipe, clips, bench.sizes.stored_frames)
    video = video.to(bench.ranks.device)
    torch.manual_seed(0)
    model = SageTranslator(recipe, bench.language_model(recipe))
    engine = Engine(model, recipe.finetune, bench.ranks)
    vocabulary = model.language_model.config.vocab_size
    labels = torch.randint(4, vocabulary, (clips, WORDS + 2), device=bench.ranks.device)

    def step() -> float:
        loss, tokens = engine.forward(video, labels, labels.roll(1, 1), recipe.finetune.label_smoothing)
        engine.backward(loss / tokens)
        engine.step(0.5)
        return float(loss.detach() / tokens)

    plan = Stage2(recipe, clip, 1, bench.half(recipe.finetune), vocabulary).plan(clips)
    return bench.line(name, clips, step, plan.device_bytes, plan.operations)


def features(bench: Bench, recipe: Recipe) -> None:
    """The features path: a large batch through the embedding cache."""
    clips, chunk = bench.sizes.features, bench.sizes.features_chunk
    video, clip = made_video(recipe, clips, bench.sizes.stored_frames, features=True)
    nothing = np.zeros((0, 2), np.int32)
    batch = Batch(
        keys=[str(number) for number in range(clips)], metas=[{}] * clips, segments=[nothing] * clips, video=video,
        weights_B=torch.ones(clips), positions_B=np.arange(clips), global_batch=clips, epoch=0, position=clips,
    )  # fmt: skip
    torch.manual_seed(0)
    model = SageAligner(recipe, bench.language_model(recipe, 3))
    engine = Engine(model, recipe.pretrain, bench.ranks, forward=run_task)
    cache = EmbeddingCache(model, engine)
    text = random_targets(clips, language_model_config(recipe).d_model, bench.ranks.device)

    def step() -> float:
        share, _ = cache.backward(batch, text, None, -(-clips // chunk))
        engine.step(0.5)
        return float(share)

    plan = Stage1(recipe, clip, 1, bench.half(recipe.pretrain)).plan(clips, "tiled", chunk)
    bench.line(
        "features, embedding cache", clips, step, plan.device_bytes - plan.weights.frozen, plan.operations
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--vocabulary", type=int, default=4096, help="subwords after trimming; 0: all 250,054"
    )
    options = parse(parser, device=True, vocabulary=64)
    begun, sizes = time.perf_counter(), SMALL if options.small else FULL
    bench = Bench(distributed.initialise(), sizes, options.vocabulary)
    small = ("model.language_model=", "denoise.enabled=true", "denoise.width=32") if options.small else ()
    recipe = load_recipe(
        "sage-phoenix14t", ["model.batchnorm=frozen", "model.context_init=random", *sizes.changes, *small]
    )
    print(f"{torch.cuda.get_device_name() if bench.cuda else 'CPU'}, torch {torch.__version__}, "
          f"ZeRO-{recipe.pretrain.zero_stage}, {recipe.pretrain.precision}")  # fmt: skip
    assert_equal(bench, override(recipe, ["pretrain.precision=fp32"]))
    bench.measure_rate()
    print(f"matrix rate, bfloat16: {bench.rate / 1e12:.3g} TFLOP/s\n")
    print(f"{'':34s}{'clips':>7s}{'s':>9s}{'clips/s':>11s}{'GB':>9s}{'planned':>9s}{'off':>8s}"
          f"{'TFLOP/s':>9s}{'MFU':>7s}")  # fmt: skip
    chunked = [f"pretrain.chunk_frames={sizes.chunk_frames}", f"finetune.chunk_frames={sizes.chunk_frames}"]
    theirs = stage1(bench, recipe, "stage 1, released layout", layout=True)
    bench.clear()
    ours = stage1(bench, recipe, "stage 1, packed")
    bench.clear()
    stage1(bench, override(recipe, ["model.batchnorm=sync"]), "stage 1, packed, BatchNorm sync")
    bench.clear()
    stage1(bench, override(recipe, chunked), f"stage 1, chunks of {sizes.chunk_frames}")
    bench.clear()
    compiled = override(recipe, [*chunked, "pretrain.compile=true"])
    stage1(bench, compiled, f"stage 1, chunks of {sizes.chunk_frames}, compiled")
    bench.clear()
    stage2(bench, recipe, "stage 2, packed")
    bench.clear()
    stage2(bench, override(recipe, chunked), f"stage 2, chunks of {sizes.chunk_frames}")
    bench.clear()
    stored = ["vision.kind=features", "model.batchnorm=group", f"pretrain.micro_batch={sizes.features_chunk}",
              f"pretrain.batch_size={sizes.features}", "clcl.products=bfloat16"]  # fmt: skip
    features(bench, override(recipe, stored))
    print(
        f"\nstage 1, packed beside the released layout: {theirs[0] / ours[0]:.2f} times as fast, "
        f"{ours[1] / theirs[1]:.2f} of its memory"
    )
    print(f"all of it took {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
