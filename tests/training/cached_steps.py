"""Steps of stage 1 for tests, direct and through the embedding cache, on clips made by hand.

Run by each rank: cached_steps.py gradients KIND prints, for each ZeRO stage, how far the gradients of cached and of
direct steps are from `expected`, and what was reduced; cached_steps.py memory CLIPS CHUNK prints a step's peak.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from tiny_world import tiny_recipe
from transformers import MBartConfig, MBartForConditionalGeneration

from sage_scale.config import Recipe
from sage_scale.models.language import TextTargets
from sage_scale.models.sage import SageAligner
from sage_scale.streaming import Batch
from sage_scale.training import distributed
from sage_scale.training.embedding_cache import EmbeddingCache, even_slices, run_task
from sage_scale.training.engine import Engine
from sage_scale.vision.packed import PackedVideo

LAYOUTS = {"unequal": [20, 9], "one empty": [16, 0]}
"""Clips of each of two ranks."""
CHUNK = 8


def cached_recipe(kind: str, batchnorm: str, *changes: str) -> Recipe:
    """Dropout and augmentation on; two weights of more than 100,000 numbers, which ZeRO-3 does cut."""
    return tiny_recipe(
        kind,
        f"model.batchnorm={batchnorm}",
        "model.dropout=0.2",
        "model.token_dim=512",
        "model.backbone.widths=[8,48]",
        "model.mapper_norm=batch",
        "pretrain.augment.brightness=0.3",
        "pretrain.augment.rotation=10",
        "pretrain.clip=0",
        *changes,
    )


def make_aligner(recipe: Recipe, width: int = 256) -> SageAligner:
    """The same weights at every call, with running statistics that are not the identity."""
    torch.manual_seed(0)
    config = MBartConfig(
        vocab_size=50,
        d_model=width,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        init_std=0.05,
    )
    model = SageAligner(recipe, MBartForConditionalGeneration(config))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            torch.nn.init.normal_(buffer, std=0.1)
        if name.endswith("running_var"):
            torch.nn.init.uniform_(buffer, 0.5, 2)
    return model


def make_clips(recipe: Recipe, count: int, width: int = 256) -> tuple[Batch, TextTargets, torch.Tensor]:
    """Clips of 1 to 4 segments of 1 to 5 frames, their texts, and text ids of which two are equal."""
    generator = torch.Generator().manual_seed(7)
    segments = torch.randint(1, 5, (count,), generator=generator)
    frames = torch.randint(1, 6, (int(segments.sum()),), generator=generator)
    words = torch.randint(1, 6, (count,), generator=generator)
    total, size = int(frames.sum()), recipe.vision.size
    content: dict[str, Any] = {}
    if recipe.vision.kind == "frames":
        content["frames_FCHW"] = torch.randint(
            0, 256, (total, 3, size, size), dtype=torch.uint8, generator=generator
        )
    else:
        content["features_FC"] = torch.randn(total, recipe.model.feature_dim, generator=generator)
    video = PackedVideo(
        segment_frames_N=frames, clip_segments_B=segments, draws_B=torch.arange(count) + 1000, **content
    )
    batch = Batch(
        keys=[str(clip) for clip in range(count)],
        metas=[{}] * count,
        segments=[np.zeros((0, 2), np.int32)] * count,
        video=video,
        weights_B=torch.ones(count),
        positions_B=np.arange(count),
        global_batch=count,
        epoch=0,
        position=count,
    )
    M = int(words.sum())
    text = TextTargets(
        embeddings_MD=torch.randn(M, width, generator=generator),
        hidden_MD=torch.randn(M, width, generator=generator),
        lengths_B=words,
    )
    ids = torch.arange(count)
    ids[-1] = ids[0]
    return batch, text, ids


def part_of(batch: Batch, text: TextTargets, ids: torch.Tensor, rows: slice) -> tuple:
    """Some clips with their texts."""
    words = torch.repeat_interleave(text.lengths_B)
    chosen = torch.isin(words, torch.arange(len(ids))[rows])
    some = TextTargets(
        embeddings_MD=text.embeddings_MD[chosen],
        hidden_MD=text.hidden_MD[chosen],
        lengths_B=text.lengths_B[rows],
    )
    return batch.select(rows), some, ids[rows]


def expected(recipe: Recipe, counts: list[int], chunks: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the whole batch in float64 by plain torch: every group with its graph, one loss."""
    model = make_aligner(recipe).double().train()
    batch, text, ids = make_clips(recipe, sum(counts))
    text = TextTargets(
        embeddings_MD=text.embeddings_MD.double(),
        hidden_MD=text.hidden_MD.double(),
        lengths_B=text.lengths_B,
    )
    encoded, start = [], 0
    for count in counts:
        for rows in even_slices(count, chunks):
            encoded.append(model.encode(batch.select(slice(start + rows.start, start + rows.stop)).video))
        start += count
    tokens, hidden = (torch.cat(parts) for parts in zip(*encoded, strict=True))
    share, _ = model.loss(tokens, hidden, batch.video.clip_segments_B, text, ids)
    share.backward()
    return share.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@contextlib.contextmanager
def reductions() -> Iterator[dict[str, int]]:
    """Counts calls and bytes of torch.distributed's reductions of more than a kilobyte."""
    names = ["all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor", "_reduce_scatter_base"]
    seen = {"calls": 0, "bytes": 0}
    originals = {name: getattr(dist, name) for name in names}

    def counted(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = [*args, *kwargs.values()]
            flat = [part for value in given for part in (value if isinstance(value, list) else [value])]
            size = max(part.numel() * part.element_size() for part in flat if torch.is_tensor(part))
            if size > 1024:
                seen["calls"] += 1
                seen["bytes"] += size
            return originals[name](*args, **kwargs)

        return call

    for name in names:
        setattr(dist, name, counted(name))
    try:
        yield seen
    finally:
        for name in names:
            setattr(dist, name, originals[name])


def whole_gradients(engine: Engine) -> dict[str, torch.Tensor]:
    """Mean over ranks of every parameter's gradient, before the optimizer's step."""
    from deepspeed.utils import safe_get_full_grad

    if engine.stage.zero_stage == 0:
        return {name: parameter.grad.clone() for name, parameter in engine.trained()}
    return {
        name: safe_get_full_grad(parameter).float().reshape(engine.shape(parameter)).clone()
        for name, parameter in engine.trained()
    }


def one_step(recipe: Recipe, counts: list[int], zero: int, cached: bool) -> dict[str, Any]:
    """One step of this rank at this ZeRO stage: the gradients, the buffers, the loss and what was reduced."""
    from dataclasses import replace

    ranks = distributed.initialise()
    stage = replace(recipe.pretrain, zero_stage=zero)
    engine = Engine(make_aligner(recipe), stage, ranks, forward=run_task)
    model = engine.model.train()
    start = sum(counts[: ranks.rank])
    batch, text, ids = part_of(*make_clips(recipe, sum(counts)), slice(start, start + counts[ranks.rank]))
    chunks = max(-(-count // CHUNK) for count in counts)
    with reductions() as seen:
        if cached:
            share, _ = EmbeddingCache(model, engine).backward(batch, text, ids, chunks)
        else:
            share, _ = engine.forward(model, batch.video, text, ids)
            engine.backward(share)
            share = share.detach()
    gradients = whole_gradients(engine)
    engine.step(0.0)
    loss = distributed.sum_over_ranks([float(share)], ranks.device)[0]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    weights = {name: engine.weight(parameter) for name, parameter in engine.trained()}
    return {
        "gradients": gradients, "loss": loss, "buffers": buffers, "weights": weights, "chunks": chunks, **seen,
    }  # fmt: skip


def distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Largest relative error of a parameter's gradient, in the Euclidean norm.

    Gradients that are zero but for rounding (of a bias before BatchNorm) count against the largest one.
    """
    assert found.keys() == wanted.keys()
    largest = max(float(value.norm()) for value in wanted.values())
    return max(
        float((found[name].double() - value).norm()) / max(float(value.norm()), 1e-2 * largest)
        for name, value in wanted.items()
    )


def compare(kind: str) -> None:
    ranks = distributed.initialise()
    for name, counts in LAYOUTS.items():
        for batchnorm in ("frozen", "group"):
            recipe = cached_recipe(kind, batchnorm, "clcl.same_text=masked")
            for zero in (0, 1, 2, 3):
                cached = one_step(recipe, counts, zero, cached=True)
                loss, wanted = expected(recipe, counts, cached["chunks"])
                row = {
                    "layout": name, "batchnorm": batchnorm, "zero": zero, "chunks": cached["chunks"],
                    "loss": abs(cached["loss"] - loss) / loss,
                    "gradients": distance(cached["gradients"], wanted),
                    "calls": cached["calls"], "bytes": cached["bytes"],
                }  # fmt: skip
                if batchnorm == "frozen":
                    direct = one_step(recipe, counts, zero, cached=False)
                    row |= {
                        "direct": distance(cached["gradients"], direct["gradients"]),
                        "direct_calls": direct["calls"], "direct_bytes": direct["bytes"],
                        "weights": distance(cached["weights"], direct["weights"]),
                    }  # fmt: skip
                if ranks.first:
                    print("RESULT " + json.dumps(row), flush=True)
    distributed.close()


def peak(clips: int, chunk: int) -> None:
    """Peak of a cached step's memory above what the process held before it (in MB), in a fresh process."""
    ranks = distributed.initialise()
    recipe = cached_recipe(
        "frames", "group", "vision.size=64", "vision.crop=64", "model.backbone.widths=[16,32]"
    )
    engine = Engine(make_aligner(recipe), recipe.pretrain, ranks, forward=run_task)
    engine.model.train()
    warm = make_clips(recipe, 1)
    EmbeddingCache(engine.model, engine).backward(*warm, 1)
    engine.step(0.0)
    given = make_clips(recipe, clips)
    before = _resident_mb()
    _reset_peak()
    EmbeddingCache(engine.model, engine).backward(*given, -(-clips // chunk))
    frames = given[0].video.frames_FCHW
    print("RESULT " + json.dumps({
        "clips": clips, "chunk": chunk, "peak_mb": _peak_mb() - before,
        "frames_mb": frames.numel() / 2**20, "frames": len(frames),
    }))  # fmt: skip
    distributed.close()


def _resident_mb() -> float:
    return _status("VmRSS")


def _peak_mb() -> float:
    return max(_status("VmHWM"), 0.0)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if sys.argv[1] == "gradients":
        compare(sys.argv[2])
    else:
        peak(int(sys.argv[2]), int(sys.argv[3]))
