"""`sage-scale plan`: what a corpus and a recipe need, before anything is started.

Storage and precompute, memory, time and money of both stages on 1, 8, 32 and your GPUs, stage 1's largest batch, and
every constant of the arithmetic with its source.

sage-scale plan sage-phoenix14t --gpu h200 --gpus 8 --cpus 96
sage-scale plan sage-youtube-sl25 --prices prices.yaml --json
sage-scale plan sage-phoenix14t --corpus inspect.json --calibration machine.yaml
sage-scale plan sage-phoenix14t --gpu rtx3090 model.batchnorm=frozen pretrain.chunk_frames=128 finetune.chunk_frames=128
sage-scale plan sign2gpt-phoenix14t --gpu a100-40 --frames 256 pretrain.chunk_frames=256 finetune.chunk_frames=256
sage-scale plan sage-phoenix14t --memory-gb 24 --tokens 16 --words 12 vision.kind=features
sage-scale plan sage-phoenix14t --shards data/shards stream.fraction=0.1
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sage_scale.cli import Overrides, RecipeToShow
from sage_scale.errors import UsageError
from sage_scale.untrusted.display import printable
from sage_scale.untrusted.printer import console, echo, echo_json, tell

if TYPE_CHECKING:
    from sage_scale.config import Recipe
    from sage_scale.planning.corpus_size import CorpusSize
    from sage_scale.planning.overview import Overview

WIDTH = 118


def plan(
    recipe: RecipeToShow,
    overrides: Overrides = None,
    gpu: Annotated[
        str, typer.Option(help="Device: h200, h100, a100, a100-40, l40s, rtx4090, rtx3090, b200, or cpu.")
    ] = "h200",
    memory_gb: Annotated[float, typer.Option(help="Memory of the device, 10^9 bytes; 0: the GPU's.")] = 0,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of a node (ranks, with --gpu cpu).")] = 1,
    cpus: Annotated[
        int, typer.Option(min=0, help="CPUs of a node; 0: 12 for each GPU, and 96 for precompute.")
    ] = 0,
    corpus: Annotated[
        str, typer.Option(help="Published corpus, or file of `corpus inspect --json`; else the recipe's.")
    ] = "",
    shards: Annotated[
        list[str] | None,
        typer.Option("--shards", "--data", help="Dataset whose samples are measured; may be repeated."),
    ] = None,
    prices: Annotated[str, typer.Option(help="Your prices, YAML (launch/prices.yaml shows the form).")] = "",
    calibration: Annotated[str, typer.Option(help="Rates that `bench calibrate` measured.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="A page of Markdown.")] = False,
    batch: Annotated[
        list[int] | None, typer.Option(help="Global batch; may be repeated. Default: 16 256 4096 65536.")
    ] = None,
    chunk: Annotated[
        int, typer.Option(min=0, help="Clips in a chunk of the embedding cache; 0: the recipe's, or 16.")
    ] = 0,
    frames: Annotated[float, typer.Option(min=0, help="Stored frames of a mean clip; 0: by the corpus.")] = 0,
    tokens: Annotated[float, typer.Option(min=0, help="Visual tokens of a mean clip; 0: by the corpus.")] = 0,
    words: Annotated[float, typer.Option(min=0, help="Text tokens of a mean clip; 0: by the corpus.")] = 0,
    prototypes: Annotated[
        int, typer.Option(min=1, help="Pseudo-glosses with a prototype (Sign2GPT).")
    ] = 2500,
    vocabulary: Annotated[
        int, typer.Option(min=0, help="Subwords that trimming leaves; 0: the language model's own.")
    ] = 0,
    share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the device's matrix rate that is reached; 0: assumed."),
    ] = 0,
    ranks: Annotated[int, typer.Option(min=0, hidden=True)] = 0,
) -> None:
    """Storage, precompute, memory, time and money of a corpus under a recipe, with every constant's source."""
    from dataclasses import replace

    from sage_scale.config import load_recipe
    from sage_scale.planning import GPUS, ClipSize, Gpu, PlanRequest
    from sage_scale.planning.constants import load_constants
    from sage_scale.planning.overview import make_overview
    from sage_scale.planning.preprocessing import clip_size
    from sage_scale.planning.prices import read_prices
    from sage_scale.planning.training_time import Machine
    from sage_scale.registry import model_spec

    if ranks:
        tell("sage-scale plan: --ranks is now --gpus, the GPUs of a node; use the new name")
        gpus = ranks
    if gpu not in GPUS and gpu != "cpu":
        raise UsageError(f"no GPU '{gpu}' in the list ({', '.join(GPUS)}): give its memory with --memory-gb")
    constants = load_constants(calibration)
    if gpu == "cpu":
        from sage_scale.cli.doctor import usable_memory

        device = Gpu(usable_memory() / 1e9 / gpus, constants.number("cpu.flops_per_cpu_s", "float32") / 1e12)
    else:
        device = GPUS[gpu]
    device = replace(device, memory_gb=memory_gb) if memory_gb else device
    paid = read_prices(prices) if prices else None
    chosen = load_recipe(recipe, overrides or ())
    spec = model_spec(chosen.model.kind)
    if spec.plan is None:
        raise UsageError(f"recipe {chosen.name}: its model {spec.title} has no plan of its memory")
    counted, said = _size(chosen, corpus, shards or [])
    clip = clip_size(chosen, counted, constants)
    clip = ClipSize(frames or clip.frames, tokens or clip.visual_tokens, words or clip.text_tokens)
    reached = share or constants.number("cpu.share" if gpu == "cpu" else "gpu.share", "training")
    request = PlanRequest(
        chosen, clip, nodes * gpus, gpu, device, tuple(batch or ()), chunk, prototypes, vocabulary, reached
    )
    plans = spec.part("plan")(request)
    remote = not shards or any(url.startswith("s3://") for url in shards)
    machine = Machine(gpu=gpu, device=device, cpus=(cpus or 12 * gpus) / gpus, share=share, remote=remote)
    made = make_overview(
        chosen, counted, clip, plans, constants, machine, nodes, gpus, cpus or 96, prices=paid
    )
    if as_json:
        echo_json(made.to_mapping(), indent=1)
    elif markdown:
        echo(*_page(made, overrides or ()))
    else:
        _print(made, plans, said)


def _size(recipe: Recipe, corpus: str, shards: list[str]) -> tuple[CorpusSize, str]:
    """Returns the corpus' size, and a line on the training clips of given datasets.

    With both, the clips are the corpus' and the mean clip is the datasets': a part of the corpus that was made first.
    """
    from dataclasses import replace

    from sage_scale.planning.corpus_size import corpus_size, dataset_size, published_sizes

    if not shards:
        return corpus_size(recipe, corpus), ""
    from sage_scale.streaming.mixture import open_datasets

    datasets = list(open_datasets(shards))
    known = published_sizes().get(recipe.corpus.name)
    whole = corpus_size(recipe, corpus) if corpus else None
    height = whole.height if whole else known.height if known else 720
    measured = dataset_size(recipe, datasets, height)
    if whole is None:
        return measured, _training_clips(recipe, shards)
    named = replace(
        measured, name=whole.name, source=f"clips: {whole.source}; a clip: {measured.name}",
        train=whole.train, dev=whole.dev, test=whole.test, pictures=whole.pictures,
    )  # fmt: skip
    return named, _training_clips(recipe, shards)


def _training_clips(recipe: Recipe, data: list[str]) -> str:
    """Returns the number of training clips of the datasets, and the steps of an epoch of each stage."""
    from sage_scale.streaming.mixture import mixed_order, open_datasets

    stream = recipe.stream
    catalog, order = mixed_order(open_datasets(data), "train", stream, seed=stream.seed, require_text=True)
    steps = (-(-order.length // stage.batch_size) for stage in (recipe.pretrain, recipe.finetune))
    shown = " and ".join(f"{count:,}" for count in steps)
    return f"{catalog.describe_subset(stream.fraction)}; steps of an epoch in stages 1 and 2: {shown}"


def _print(made: Overview, plans: Any, said: str) -> None:
    from rich.table import Table

    from sage_scale.planning.overview import notes, sources, tables

    screen = console(sys.stdout, width=WIDTH)
    for shown in plans.shown():
        screen.print(shown)
    screen.print()
    for line in notes(made):
        screen.print(line)
    for title, columns, rows in tables(made):
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        screen.print(table)
    for heading, lines in (("advice", made.advice()), ("constants", sources(made))):
        screen.print(heading)
        for line in lines:
            screen.print(f"- {line}")
    if said:
        screen.print(said)


def _page(made: Overview, overrides: Any) -> list[str]:
    from sage_scale.planning.overview import notes, sources, tables

    lines = [f"## {made.recipe.name}", ""]
    changes = "".join(f" {change}" for change in overrides)
    lines += [f"`sage-scale plan {made.recipe.name}{changes} --gpu {made.machine.gpu} --markdown`", ""]
    lines += [f"- {printable(line)}" for line in (*notes(made), *made.advice())]
    for title, columns, rows in tables(made):
        lines += ["", f"**{title}**", "", _row(columns), _row(["---"] * len(columns))]
        lines += [_row([cell.replace("|", "\\|") for cell in row]) for row in rows]
    return [*lines, "", "**constants**", "", *(f"- {printable(line)}" for line in sources(made))]


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
