"""`sage-scale plan`: memory and arithmetic of both stages, and stage 1's largest batch, before anything is started.

sage-scale plan sage-phoenix14t --gpu h200 --ranks 8
sage-scale plan sage-phoenix14t --gpu rtx3090 model.batchnorm=frozen pretrain.chunk_frames=128 finetune.chunk_frames=128
sage-scale plan sign2gpt-phoenix14t --gpu a100-40 --frames 256 pretrain.chunk_frames=256 finetune.chunk_frames=256
sage-scale plan sage-phoenix14t --memory-gb 24 --tokens 16 --words 12 vision.kind=features
sage-scale plan sage-phoenix14t --data data/shards stream.fraction=0.1
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from sage_scale.cli import Overrides, RecipeToShow
from sage_scale.errors import UsageError
from sage_scale.untrusted.printer import console

if TYPE_CHECKING:
    from sage_scale.config import Recipe


def plan(
    recipe: RecipeToShow,
    overrides: Overrides = None,
    gpu: Annotated[
        str, typer.Option(help="Device: h200, h100, a100, a100-40, l40s, rtx4090, rtx3090, b200.")
    ] = "h200",
    memory_gb: Annotated[float, typer.Option(help="Memory of the device, 10^9 bytes; 0: the GPU's.")] = 0,
    ranks: Annotated[int, typer.Option(min=1, help="Devices.")] = 1,
    batch: Annotated[
        list[int] | None, typer.Option(help="Global batch; may be repeated. Default: 16 256 4096 65536.")
    ] = None,
    chunk: Annotated[
        int, typer.Option(min=0, help="Clips in a chunk of the embedding cache; 0: the recipe's, or 16.")
    ] = 0,
    frames: Annotated[
        float, typer.Option(help="Stored frames of a mean clip; 0: 117 (PHOENIX14T) over the stride.")
    ] = 0,
    tokens: Annotated[float, typer.Option(min=1, help="Visual tokens of a mean clip.")] = 16,
    words: Annotated[float, typer.Option(min=1, help="Text tokens of a mean clip.")] = 12,
    prototypes: Annotated[
        int, typer.Option(min=1, help="Pseudo-glosses with a prototype (Sign2GPT).")
    ] = 2500,
    vocabulary: Annotated[
        int, typer.Option(min=0, help="Subwords that trimming leaves; 0: the language model's own.")
    ] = 0,
    share: Annotated[float, typer.Option(help="Share of the device's matrix rate that is reached.")] = 0.4,
    data: Annotated[
        list[str] | None, typer.Option(help="Dataset whose training clips are counted; may be repeated.")
    ] = None,
) -> None:
    """Memory of both stages by part at the recipe's batch; stage 1 at others, and the largest that fits."""
    from sage_scale.config import load_recipe
    from sage_scale.planning import GPUS, ClipSize, Gpu, PlanRequest
    from sage_scale.registry import model_spec

    if gpu not in GPUS:
        raise UsageError(f"no GPU '{gpu}' in the list ({', '.join(GPUS)}): give its memory with --memory-gb")
    device = GPUS[gpu] if not memory_gb else Gpu(memory_gb, GPUS[gpu].bf16_tflops)
    chosen = load_recipe(recipe, overrides or ())
    clip = ClipSize(frames or 117 / chosen.vision.frame_stride, tokens, words)
    screen = console(sys.stdout, width=118)
    spec = model_spec(chosen.model.kind)
    if spec.plan is None:
        raise UsageError(f"recipe {chosen.name}: its model {spec.title} has no plan of its memory")
    request = PlanRequest(
        chosen, clip, ranks, gpu, device, tuple(batch or ()), chunk, prototypes, vocabulary, share
    )
    for shown in spec.part("plan")(request):
        screen.print(shown)
    if data:
        screen.print(_training_clips(chosen, data))


def _training_clips(recipe: Recipe, data: list[str]) -> str:
    """Returns the number of training clips of the datasets, and the steps of an epoch of each stage."""
    from sage_scale.streaming.mixture import mixed_order, open_datasets

    stream = recipe.stream
    catalog, order = mixed_order(open_datasets(data), "train", stream, seed=stream.seed, require_text=True)
    steps = (-(-order.length // stage.batch_size) for stage in (recipe.pretrain, recipe.finetune))
    shown = " and ".join(f"{count:,}" for count in steps)
    return f"{catalog.describe_subset(stream.fraction)}; steps of an epoch in stages 1 and 2: {shown}"
