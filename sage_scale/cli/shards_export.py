"""`sage-scale shards export`: a dataset in a format of others, with its dataset card."""

from __future__ import annotations

from shlex import quote
from typing import Annotated

import typer

from sage_scale.cli import DatasetUrl
from sage_scale.cli.shards_change import Out, Threads
from sage_scale.errors import DatasetError, UsageError
from sage_scale.untrusted.display import size
from sage_scale.untrusted.printer import echo
from sage_scale.untrusted.progress import Progress

FORMATS = ("hf", "pose-webdataset")


def export(
    url: DatasetUrl,
    out: Out,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="hf: Parquet for datasets.load_dataset; pose-webdataset: tars of keypoints for sldl.",
        ),
    ] = "hf",
    name: Annotated[str, typer.Option(help="Name on the dataset card; else the corpus'.")] = "",
    licence: Annotated[
        str, typer.Option(help="Licence of the corpus, an identifier of the hub: cc-by-nc-4.0.")
    ] = "",
    threads: Threads = 4,
) -> None:
    """Write a dataset for other tools, with a dataset card. The same command resumes, and follows later changes."""
    from sage_scale.reporting.dataset_card import (
        checked_licence,
        dataset_card,
        load_dataset_code,
        pose_webdataset_code,
    )
    from sage_scale.shards import open_dataset
    from sage_scale.shards.export import CARD, Format, export_dataset
    from sage_scale.storage import open_to_write

    if form not in FORMATS:
        raise UsageError(f"--format {form}: must be {' or '.join(FORMATS)}")
    checked_licence(licence)
    dataset = open_dataset(url)
    title = (
        name
        or f"{dataset.info.recipe_part.get('corpus', {}).get('name') or 'sign language'} {dataset.info.kind}"
    )
    if form == "hf":
        try:
            from sage_scale.shards.parquet import HuggingFace
        except ModuleNotFoundError:
            raise UsageError("--format hf needs pyarrow: pip install 'sage-scale[hf]'") from None
        writer: Format = HuggingFace(dataset)
        usage = load_dataset_code(dataset)
    else:
        from sage_scale.shards.pose_webdataset import BODY_PARTS, PoseWebDataset

        writer = PoseWebDataset(dataset)
        usage = pose_webdataset_code(dataset, BODY_PARTS)
    store = open_to_write(out)
    with Progress("export", "shards") as show:
        made = export_dataset(dataset, store, writer, threads=threads, progress=show)
    if made.problems:
        for problem in made.problems:
            echo(problem)
        raise DatasetError(
            f"{dataset.url}: {len(made.problems)} of {len(dataset.units)} shards are damaged, the others are exported: "
            f"`sage-scale shards repair {quote(dataset.url)}`, then the same command again"
        )
    card = dataset_card(dataset, title, writer.ending, writer.members, usage, made.bytes, licence)
    store.put(CARD, card.encode())
    splits = ", ".join(f"{split} {clips:,}" for split, clips in dataset.splits.items())
    stale = f", {made.deleted} outdated ones deleted" if made.deleted else ""
    echo(
        f"{store.url}: {len(dataset.records):,} clips ({splits}) in {len(dataset.units)} files, {size(made.bytes)}; "
        f"{made.written} written now{stale}"
    )
