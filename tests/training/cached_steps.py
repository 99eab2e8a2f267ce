"""Steps of stage 1 for tests, direct and through the embedding cache, on clips made by hand.

Run by each rank: cached_steps.py gradients KIND FOLDER prints, for each ZeRO stage, how far the gradients of cached
and of direct steps are from those in FOLDER (`write_expected`, in one process), and what was reduced.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from factories.training import tiny_recipe
from transformers import MBartConfig, MBartForConditionalGeneration

from sage_scale.config import Recipe
from sage_scale.models.sage.embedding_cache import EmbeddingCache, even_slices, run_task
from sage_scale.models.sage.mbart import TextTargets
from sage_scale.models.sage.model import SageAligner
from sage_scale.streaming import Batch
from sage_scale.training import distributed
from sage_scale.training.engine import Engine
from sage_scale.vision.packed import PackedVideo

CASES = [
    ("unequal, frozen", "frozen", [24, 17], (0, 1, 2, 3)),
    ("unequal, group", "group", [24, 17], (1, 2, 3)),
    ("one empty, frozen", "frozen", [16, 0], (2, 3)),
    ("one empty, group", "group", [16, 0], (3,)),
]
"""A name, model.batchnorm, the clips of each of two ranks, and the ZeRO stages."""
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


def make_clips(
    recipe: Recipe, count: int, width: int = 256, equal: bool = False
) -> tuple[Batch, TextTargets, torch.Tensor]:
    """Clips of 1 to 4 segments of 1 to 5 frames (`equal`: of 4 of 5), texts, and text ids of which two are equal."""
    generator = torch.Generator().manual_seed(7)
    segments = torch.randint(4 if equal else 1, 5, (count,), generator=generator)
    frames = torch.randint(5 if equal else 1, 6, (int(segments.sum()),), generator=generator)
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
        segment_frames_N=frames, clip_segments_B=segments, clip_seeds_B=torch.arange(count) + 1000, **content
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
        labels_BL=torch.randint(5, 50, (count, 6), generator=generator),
        inputs_BL=torch.randint(5, 50, (count, 6), generator=generator),
    )
    ids = torch.arange(count)
    ids[-1] = ids[0]
    return batch, text, ids


def part_of(batch: Batch, text: TextTargets, ids: torch.Tensor, rows: slice) -> tuple:
    """Some clips with their texts."""
    return batch.select(rows), text.select(rows), ids[rows]


def expected(recipe: Recipe, counts: list[int]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the whole batch in float64 by plain torch: every group with its graph, one loss."""
    chunks = chunks_of(counts)
    model = make_aligner(recipe).double().train()
    batch, text, ids = make_clips(recipe, sum(counts))
    text = replace(text, embeddings_MD=text.embeddings_MD.double(), hidden_MD=text.hidden_MD.double())
    encoded, start = [], 0
    term_counts = model.term_counts(batch.video, text)
    for count in counts:
        for rows in even_slices(count, chunks):
            clips = slice(start + rows.start, start + rows.stop)
            encoded.append(
                model.encode_with_terms(batch.select(clips).video, text.select(clips), term_counts)
            )
        start += count
    tokens, hidden, terms = zip(*encoded, strict=True)
    share, _ = model.loss(torch.cat(tokens), torch.cat(hidden), batch.video.clip_segments_B, text, ids)
    share = share + sum(model.term_weights[name] * term for part in terms for name, term in part.items())
    share.backward()
    return share.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def chunks_of(counts: list[int]) -> int:
    """Chunks that every rank makes."""
    return max(-(-count // CHUNK) for count in counts)


def recipe_of(kind: str, batchnorm: str, *changes: str) -> Recipe:
    """The recipe of a case."""
    return cached_recipe(kind, batchnorm, "clcl.same_text=masked", *changes)


def write_expected(kind: str, folder: Path) -> None:
    """One file a case, in this process alone."""
    for name, batchnorm, counts, _ in CASES:
        torch.save(expected(recipe_of(kind, batchnorm), counts), folder / f"{kind}, {name}.pt")


REDUCED = {"calls": 0, "bytes": 0}


def count_reductions() -> None:
    """From now on torch.distributed's reductions of more than a kilobyte are counted in REDUCED.

    Before DeepSpeed starts, which keeps some of these functions.
    """

    def counted(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = [*args, *kwargs.values()]
            flat = [part for value in given for part in (value if isinstance(value, list) else [value])]
            size = max(part.numel() * part.element_size() for part in flat if torch.is_tensor(part))
            if size > 1024:
                REDUCED["calls"] += 1
                REDUCED["bytes"] += size
            return original(*args, **kwargs)

        return call

    for name in ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor", "_reduce_scatter_base"):
        setattr(dist, name, counted(getattr(dist, name)))


def whole_gradients(engine: Engine) -> dict[str, torch.Tensor]:
    """Mean over ranks of every parameter's gradient, before the optimizer's step."""
    from deepspeed.utils import safe_get_full_grad

    if engine.stage.zero_stage == 0:
        return {name: parameter.grad.clone() for name, parameter in engine.trainable_parameters()}
    return {
        name: safe_get_full_grad(parameter).float().reshape(engine.full_shape(parameter)).clone()
        for name, parameter in engine.trainable_parameters()
    }


def one_step(recipe: Recipe, counts: list[int], zero: int, cached: bool) -> dict[str, Any]:
    """One step of this rank at this ZeRO stage: the gradients, the buffers, the loss and what was reduced."""
    ranks = distributed.initialise()
    stage = replace(recipe.pretrain, zero_stage=zero)
    engine = Engine(make_aligner(recipe), stage, ranks, forward=run_task)
    model = engine.model.train()
    start = sum(counts[: ranks.rank])
    batch, text, ids = part_of(*make_clips(recipe, sum(counts)), slice(start, start + counts[ranks.rank]))
    before = dict(REDUCED)
    if cached:
        share, _ = EmbeddingCache(model, engine).backward(batch, text, ids, chunks_of(counts))
    else:
        share, _ = engine.forward(model, batch.video, text, ids)
        engine.backward(share)
        share = share.detach()
    seen = {name: value - before[name] for name, value in REDUCED.items()}
    gradients = whole_gradients(engine)
    engine.step(0.0)
    loss = distributed.sum_over_ranks([float(share)], ranks.device)[0]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    weights = {name: engine.weight(parameter) for name, parameter in engine.trainable_parameters()}
    return {
        "gradients": gradients, "loss": loss, "buffers": buffers, "weights": weights, **seen,
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


def whole_distance(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Relative error of all gradients as one vector."""
    error = sum(float((found[name].double() - value).square().sum()) for name, value in wanted.items())
    return (error / sum(float(value.double().square().sum()) for value in wanted.values())) ** 0.5


def compare(kind: str, folder: Path) -> None:
    count_reductions()
    ranks = distributed.initialise()
    for name, batchnorm, counts, stages in CASES:
        recipe = recipe_of(kind, batchnorm)
        loss, wanted = torch.load(folder / f"{kind}, {name}.pt")
        for zero in stages:
            cached = one_step(recipe, counts, zero, cached=True)
            row = {
                "case": name, "zero": zero, "chunks": chunks_of(counts), "loss": abs(cached["loss"] - loss) / loss,
                "gradients": whole_distance(cached["gradients"], wanted),
                "worst": distance(cached["gradients"], wanted),
                "calls": cached["calls"], "bytes": cached["bytes"],
            }  # fmt: skip
            if batchnorm == "frozen":
                direct = one_step(recipe, counts, zero, cached=False)
                row |= {
                    "direct": distance(cached["gradients"], direct["gradients"]),
                    "direct_calls": direct["calls"], "direct_bytes": direct["bytes"],
                    "weights": distance(cached["weights"], direct["weights"]),
                }  # fmt: skip
            if ranks.is_main:
                print("RESULT " + json.dumps(row), flush=True)
    distributed.close()


def peak_bytes(kind: str, clips: int, chunk: int) -> int:
    """Most bytes of tensors that a step holds at once, beyond those that were there before it, by torch's own count."""
    recipe = cached_recipe(kind, "group", "vision.size=32", "vision.crop=32", "pretrain.zero_stage=0")
    engine = Engine(make_aligner(recipe), recipe.pretrain, distributed.initialise(), forward=run_task)
    model = engine.model.train()
    given = make_clips(recipe, clips, equal=True)
    cache = EmbeddingCache(model, engine)
    cache.backward(*make_clips(recipe, 1), 1)  # gradients are there before
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        if chunk < clips:
            cache.backward(*given, -(-clips // chunk))
        else:
            share, _ = engine.forward(model, given[0].video, *given[1:])
            engine.backward(share)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(held.max())


if __name__ == "__main__":
    # DeepSpeed's launcher adds an option of its own.
    what, *rest = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    assert what == "gradients"
    compare(rest[0], Path(rest[1]))
