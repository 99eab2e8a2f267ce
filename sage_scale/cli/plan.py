"""`sage-scale plan`: memory and arithmetic of both stages, and stage 1's largest batch, before anything is started.

sage-scale plan sage-phoenix14t --gpu h200 --ranks 8
sage-scale plan sage-phoenix14t --gpu rtx3090 model.batchnorm=frozen pretrain.chunk_frames=128 finetune.chunk_frames=128
sage-scale plan sign2gpt-phoenix14t --gpu a100-40 --frames 256 pretrain.chunk_frames=256 finetune.chunk_frames=256
sage-scale plan sage-phoenix14t --memory-gb 24 --tokens 16 --words 12 vision.kind=features
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sage_scale.errors import UsageError
from sage_scale.untrusted.printer import console

if TYPE_CHECKING:
    from rich.table import Table

    from sage_scale.config import Recipe
    from sage_scale.models.sage.plan import Stage1
    from sage_scale.models.sage.plan_stage2 import Stage2
    from sage_scale.models.sign2gpt.plan import Sign2GptPlan
    from sage_scale.planning import Gpu


def plan(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or path to its YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")
    ] = None,
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
) -> None:
    """Memory of both stages by part at the recipe's batch; stage 1 at others, and the largest that fits."""
    from rich.table import Table

    from sage_scale.config import load_recipe
    from sage_scale.models.sage.plan import Stage1
    from sage_scale.models.sage.plan_stage2 import Stage2
    from sage_scale.models.sign2gpt.plan import Sign2GptPlan
    from sage_scale.planning import GPUS, Gpu, LossSize, loss_bytes
    from sage_scale.planning.loss import WAYS
    from sage_scale.planning.step import ClipSize

    if gpu not in GPUS:
        raise UsageError(f"no GPU '{gpu}' in the list ({', '.join(GPUS)}): give its memory with --memory-gb")
    device = GPUS[gpu] if not memory_gb else Gpu(memory_gb, GPUS[gpu].bf16_tflops)
    chosen = load_recipe(recipe, overrides or ())
    clip = ClipSize(frames or 117 / chosen.vision.frame_stride, tokens, words)
    screen = console(sys.stdout, width=118)
    if chosen.model.kind == "sign2gpt":
        screen.print(
            *_sign2gpt(Sign2GptPlan(chosen, clip, ranks, prototypes), gpu, device, batch or (), share),
            sep="\n",
        )
        return
    bf16 = chosen.pretrain.precision != "fp32"
    micro = chunk or chosen.pretrain.micro_batch or 16
    stage = Stage1(chosen, clip, ranks, bf16)
    width = stage.width
    screen.print(
        f"recipe {chosen.name}: {ranks} x {gpu} with {device.memory_gb:g} GB, ZeRO-{chosen.pretrain.zero_stage}, "
        f"encoder in {'bfloat16' if bf16 else 'float32'}\n"
        f"a clip: {clip.frames:.0f} stored frames, {tokens:g} visual and {words:g} text tokens of width {width}\n"
    )
    second = Stage2(chosen, clip, ranks, chosen.finetune.precision != "fp32", vocabulary)
    screen.print(_by_part(chosen, stage, second))
    table = Table(title="stage 1 on one rank, GB", title_justify="left")
    for name in ("batch", "loss naive", "tiled", "ring", "weights", "direct step", f"cached by {micro}",
                 "host", "PFLOP encoder", "loss", "seconds a step"):  # fmt: skip
        table.add_column(name, justify="right")
    for size in batch or [16, 256, 4096, 65536]:
        losses = [loss_bytes(LossSize(size, tokens, words, width, ranks), way) for way in WAYS]
        direct, cached = stage.plan(size), stage.plan(size, micro_batch=micro)
        table.add_row(
            f"{size:,}", *map(_gb, losses), _gb(direct.weights_bytes), _gb(direct.device_bytes),
            _gb(cached.device_bytes), _gb(cached.host_bytes), f"{cached.encoder_operations / 1e15:.3g}",
            f"{cached.loss_operations / 1e15:.3g}",
            f"{cached.operations / (share * device.bf16_tflops * 1e12):.3g}",
        )  # fmt: skip
    screen.print(table)
    largest = Table(title=f"largest batch in {device.memory_gb:g} GB a rank", title_justify="left")
    for name in ("encoder", *(f"loss {way}" for way in WAYS)):
        largest.add_column(name, justify="right")
    for name, held in (("direct", 0), (f"cached by {micro}", micro)):
        found = [stage.largest_batch(device.memory_gb * 1e9, way, held) for way in WAYS]
        largest.add_row(name, *(f"{size:,}" for size in found))
    screen.print(largest)
    screen.print(
        f"seconds: the cached step at {100 * share:g}% of {device.bf16_tflops:g} TFLOP/s, without loading and "
        "traffic; host: the rank's clips before decoding is repeated"
    )


def _by_part(recipe: Recipe, stage1: Stage1, stage2: Stage2) -> Table:
    """Memory of a step of each stage at the recipe's own batch."""
    from rich.table import Table

    first = stage1.plan(recipe.pretrain.batch_size, micro_batch=recipe.pretrain.micro_batch)
    second = stage2.plan(recipe.finetune.batch_size)
    table = Table(title="the recipe's own steps, one rank, GB by part", title_justify="left")
    table.add_column("part")
    table.add_column(f"stage 1, batch {first.batch}", justify="right")
    table.add_column(f"stage 2, batch {second.batch}", justify="right")
    for name, part in (
        ("weights, float32", "weights"),
        ("gradients", "gradients"),
        ("optimizer states", "states"),
        ("own part of the weights (ZeRO-1, 2)", "flat"),
        ("frozen weights", "frozen"),
        ("bfloat16 copies of a step", "rounded"),
    ):
        table.add_row(name, _gb(getattr(first.memory, part)), _gb(getattr(second.weights, part)))
    table.add_row("frame encoder to tokens", _gb(first.encoder_bytes), _gb(second.visual_bytes))
    table.add_row("language model's layers", "", _gb(second.language_bytes))
    table.add_row("tokens of all clips", _gb(first.tokens_bytes), "")
    table.add_row("loss", _gb(first.loss_bytes), _gb(second.logits_bytes))
    table.add_section()
    table.add_row("peak", _gb(first.device_bytes), _gb(second.device_bytes))
    return table


def _sign2gpt(
    plan: Sign2GptPlan, gpu: str, device: Gpu, batches: Sequence[int], share: float
) -> Iterator[str | Table]:
    """What is printed of Sign2GPT: both stages' steps by part, at the recipe's batch and others."""
    from rich.table import Table

    recipe, clip = plan.recipe, plan.clip
    sizes = f"{clip.frames:.0f} stored frames, {clip.visual_tokens:.0f} visual and {clip.text_tokens:g} text tokens"
    yield f"recipe {recipe.name}: {plan.ranks} x {gpu} with {device.memory_gb:g} GB\na clip: {sizes}\n"
    for stage, number in (("pretrain", 1), ("finetune", 2)):
        steps = [plan.plan(stage, size) for size in (getattr(recipe, stage).batch_size, *batches)]
        table = Table(title=f"stage {number} on one rank, GB by part", title_justify="left")
        table.add_column("part")
        for step in steps:
            table.add_column(f"batch {step.batch:,}", justify="right")
        for name, of in (
            ("frozen weights", lambda step: step.weights.frozen),
            ("trained weights, gradients, optimizer", lambda step: step.weights.total - step.weights.frozen),
            (
                "stored frames" if recipe.vision.kind == "frames" else "features",
                lambda step: step.pixels_bytes,
            ),
            ("below the adapters (then free)", lambda step: step.below_bytes),
            ("spatial model", lambda step: step.spatial_bytes),
            ("sign encoder" + (" and prototypes" if number == 1 else ""), lambda step: step.signs_bytes),
            ("language model's layers", lambda step: step.language_bytes),
            ("logits", lambda step: step.logits_bytes),
        ):
            if any(of(step) for step in steps):
                table.add_row(name, *(_gb(of(step)) for step in steps))
        table.add_section()
        table.add_row("peak", *(_gb(step.device_bytes) for step in steps))
        rate = share * device.bf16_tflops * 1e12
        table.add_row("seconds a step", *(f"{step.operations / rate:.3g}" for step in steps))
        yield table
        most = plan.largest_batch(stage, device.memory_gb * 1e9)
        yield f"largest batch in {device.memory_gb:g} GB a rank: {most:,}\n"
    reached = f"{100 * share:g}% of {device.bf16_tflops:g} TFLOP/s"
    yield f"seconds: at {reached}, without loading, traffic and what chunks compute again"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g}" if size < 1e12 else f"{size / 1e9:,.0f}"
