"""`sage-scale plan`: memory and arithmetic of stage 1, and its largest batch, before anything is started.

sage-scale plan sage-phoenix14t --gpu h200 --ranks 8
sage-scale plan sage-phoenix14t --memory-gb 24 --tokens 16 --words 12 vision.kind=features
"""

from __future__ import annotations

from typing import Annotated

import typer

from sage_scale.errors import UsageError


def plan(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or path to its YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe.")
    ] = None,
    gpu: Annotated[
        str, typer.Option(help="Device: h200, h100, a100, a100-40, l40s, rtx4090, b200.")
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
    share: Annotated[float, typer.Option(help="Share of the device's matrix rate that is reached.")] = 0.4,
) -> None:
    """Memory and operations of stage 1: loss naive, tiled and ring; encoder direct and cached; the largest batch."""
    from rich.console import Console
    from rich.table import Table

    from sage_scale.config import load_recipe
    from sage_scale.planning import GPUS, ClipSize, Gpu, LossSize, Stage1, loss_bytes
    from sage_scale.planning.loss import WAYS

    if gpu not in GPUS:
        raise UsageError(f"no GPU '{gpu}' in the list ({', '.join(GPUS)}): give its memory with --memory-gb")
    device = GPUS[gpu] if not memory_gb else Gpu(memory_gb, GPUS[gpu].bf16_tflops)
    chosen = load_recipe(recipe, overrides or ())
    clip = ClipSize(frames or 117 / chosen.vision.frame_stride, tokens, words)
    bf16 = chosen.pretrain.precision != "fp32"
    micro = chunk or chosen.pretrain.micro_batch or 16
    stage = Stage1(chosen, clip, ranks, bf16)
    width = stage.width
    console = Console(width=118, highlight=False)
    console.print(
        f"recipe {chosen.name}: {ranks} x {gpu} with {device.memory_gb:g} GB, ZeRO-{chosen.pretrain.zero_stage}, "
        f"encoder in {'bfloat16' if bf16 else 'float32'}\n"
        f"a clip: {clip.frames:.0f} stored frames, {tokens:g} visual and {words:g} text tokens of width {width}\n"
    )
    table = Table(title="one rank, GB", title_justify="left")
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
    console.print(table)
    largest = Table(title=f"largest batch in {device.memory_gb:g} GB a rank", title_justify="left")
    for name in ("encoder", *(f"loss {way}" for way in WAYS)):
        largest.add_column(name, justify="right")
    for name, held in (("direct", 0), (f"cached by {micro}", micro)):
        found = [stage.largest_batch(device.memory_gb * 1e9, way, held) for way in WAYS]
        largest.add_row(name, *(f"{size:,}" for size in found))
    console.print(largest)
    console.print(
        f"seconds: the cached step at {100 * share:g}% of {device.bf16_tflops:g} TFLOP/s, without loading and "
        "traffic; host: the rank's clips before decoding is repeated"
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g}" if size < 1e12 else f"{size / 1e9:,.0f}"
